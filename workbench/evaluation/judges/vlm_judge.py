"""Vision-language judges: every answer is shown once to each, and every reply is cached.

A question is cached under the hash of all that it depends on: pixels of the image and of an edit's source, prompt, task
and category (through the wording), judge. So an evaluation that was interrupted asks only for what is missing. A reply
that stays malformed, and a call that fails for good, is `Unanswered`: counted and shown, never replaced by a number.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from workbench.common.files import progress, write_json
from workbench.common.progress import advance, has_own_bar
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.judge import Choice, Judged, Shown, Unanswered
from workbench.evaluation.judges.vlm_client import Client, Endpoint, Missing, endpoint
from workbench.evaluation.judges.vlm_prompts import PAIR_SYSTEM, WORDING, rubric_of, system_prompt, user_prompt
from workbench.evaluation.judges.vlm_reply import Malformed, Verdict, mean_verdict, parse_choice, parse_verdict
from workbench.evaluation.metrics_file import JudgeRecord
from workbench.recipe.config import Vlm

Reply = Verdict | Choice
AnyReply = TypeVar("AnyReply", Verdict, Choice)
MIN_SIDE = 512
"""Pictures smaller than this are enlarged by a whole factor, so that a judge sees what a person would."""
QUESTION = 10
"""Units of a job that a question counts, a network evaluation of one image being one."""
CHARACTERS_PER_TOKEN, PIXELS_PER_IMAGE_TOKEN, REPLY_TOKENS = 4, 28 * 28, 150
"""For estimates; every vendor counts otherwise."""


@dataclass(frozen=True)
class Question:
    """What is asked of a judge: images (H, W, 3) uint8, in the order of the wording. repeat: which time it is asked."""

    system: str
    text: str
    images: tuple[np.ndarray, ...]
    parse: Callable[[str], Reply]
    repeat: int = 0

    def key(self, where: Endpoint) -> str:
        """Name in the cache: a hash of everything that the answer depends on."""
        pixels = [f"{image.shape}{hashlib.sha256(image.tobytes()).hexdigest()}" for image in self.images]
        asked: list[Any] = [where.base_url, where.model, WORDING, MIN_SIDE, self.system, self.text, *pixels]
        if self.repeat:
            asked.append(self.repeat)
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def messages(self) -> list[dict[str, Any]]:
        """In the form of the chat completions API."""
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in self.images]
        content = [{"type": "text", "text": self.text}, *pictures]
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]

    def prompt_tokens(self) -> int:
        """A rough estimate."""
        pixels = sum(math.prod(_shown_size(image)) for image in self.images)
        words = (len(self.system) + len(self.text)) / CHARACTERS_PER_TOKEN
        return round(words + pixels / PIXELS_PER_IMAGE_TOKEN)


def score_question(case: Case, image: np.ndarray) -> Question:
    """How good is `image` as an answer to `case`?"""
    rubric = rubric_of(case.task, case.category)
    text = user_prompt(case.task, case.prompt, len(case.sources))
    return Question(system_prompt(rubric), text, (*case.sources, image), lambda reply: parse_verdict(reply, rubric))


def choice_question(case: Case, a: np.ndarray, b: np.ndarray) -> Question:
    """Which of two answers to `case` is better, in this order?"""
    text = user_prompt(case.task, case.prompt, len(case.sources))
    return Question(PAIR_SYSTEM, text, (*case.sources, a, b), parse_choice)


class VlmJudge:
    """One judge and its cache in `folder`. asked, found: questions put to the API, and answered from the cache."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.name, self.model = client.where.name, client.where.model
        self.asked = self.found = 0

    def look_up(self, question: Question) -> Reply | None:
        """The cached reply; a broken entry counts as none."""
        try:
            reply = question.parse(json.loads(self._path(question).read_bytes())["reply"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, Malformed):
            return None
        self.client.has_answered = True
        return reply

    def ask(self, question: Question) -> Reply | Unanswered:
        """Ask the API and remember a valid reply. Raises UserError, Stopped."""

        def parse(text: str) -> tuple[str, Reply]:
            return text, question.parse(text)

        try:
            text, reply = self.client.ask(question.messages(), parse)
        except Missing as missing:
            return Unanswered(str(missing))
        write_json(self._path(question), {"model": self.model, "wording": WORDING, "reply": text})
        return reply

    def _path(self, question: Question) -> Path:
        key = question.key(self.client.where)
        return self.folder / key[:2] / f"{key}.json"


class Panel:
    """Several judges, asked at the same time, each with its own limit of questions under way. A `Judge`."""

    fingerprint = ""

    def __init__(self, judges: Sequence[VlmJudge], concurrency: int, repeats: int = 1) -> None:
        self.judges, self.concurrency, self.repeats = list(judges), concurrency, repeats

    @property
    def title(self) -> str:
        return ", ".join(f"{judge.name} ({judge.model})" for judge in self.judges)

    def check(self, cases: Sequence[Case]) -> None:
        """Any case can be asked about."""

    def judge(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> Judged:
        """Each judge's reply to the answer of every case; the mean of several where it is asked repeatedly."""
        questions = [score_question(case, image) for case, image in zip(cases, images, strict=True)]
        repeated = [replace(question, repeat=time) for question in questions for time in range(self.repeats)]
        replies = self._all(repeated).items()
        verdicts = {name: [_of(Verdict, reply) for reply in of_judge] for name, of_judge in replies}
        return Judged({name: self._of_each(of_judge) for name, of_judge in verdicts.items()})

    def _of_each(self, verdicts: Sequence[Verdict | Unanswered]) -> list[Verdict | Unanswered]:
        """One verdict an answer, from all times that it was asked for; one that was never given is `Unanswered`."""
        if self.repeats == 1:
            return list(verdicts)
        found: list[Verdict | Unanswered] = []
        for start in range(0, len(verdicts), self.repeats):
            times = verdicts[start : start + self.repeats]
            given = [verdict for verdict in times if isinstance(verdict, Verdict)]
            found.append(mean_verdict(given) if given else times[0])
        return found

    def prefer(self, shown: Shown) -> dict[str, list[Choice | Unanswered]]:
        """Each judge's choice in every pair, shown in the order given."""
        questions = [choice_question(case, a, b) for case, a, b in shown]
        return {name: [_of(Choice, reply) for reply in replies] for name, replies in self._all(questions).items()}

    def records(self) -> dict[str, JudgeRecord]:
        """Model, wording and number of questions of each judge."""
        return {
            judge.name: JudgeRecord(judge.model, WORDING, asked=judge.asked, from_cache=judge.found)
            for judge in self.judges
        }

    def _all(self, questions: Sequence[Question]) -> dict[str, list[Reply | Unanswered]]:
        replies: dict[str, dict[str, Reply | Unanswered]] = {}
        keys = {judge.name: [question.key(judge.client.where) for question in questions] for judge in self.judges}
        missing: list[tuple[VlmJudge, str, Question]] = []
        for judge in self.judges:
            known = replies[judge.name] = {}
            # The same picture shown twice is one question.
            for key, question in dict(zip(keys[judge.name], questions, strict=True)).items():
                reply = judge.look_up(question)
                if reply is None:
                    missing.append((judge, key, question))
                else:
                    known[key] = reply
                    judge.found += 1
                    advance(QUESTION)
        for judge, key, answered in self._asked(missing):
            replies[judge.name][key] = answered
        return {name: [replies[name][key] for key in of_judge] for name, of_judge in keys.items()}

    def _asked(
        self, missing: Sequence[tuple[VlmJudge, str, Question]]
    ) -> Iterator[tuple[VlmJudge, str, Reply | Unanswered]]:
        if not missing:
            return
        shown = progress()
        shown.disable = not has_own_bar()
        with self._pools() as pools, shown as bars:
            futures: dict[Future[Reply | Unanswered], tuple[VlmJudge, str]] = {}
            for judge, key, question in missing:
                futures[pools[judge.name].submit(judge.ask, question)] = judge, key
            bar = bars.add_task("asking the judges", total=len(futures))
            for future in as_completed(futures):
                judge, key = futures[future]
                reply = future.result()
                judge.asked += 1
                bars.advance(bar)
                advance(QUESTION)
                yield judge, key, reply

    @contextmanager
    def _pools(self) -> Iterator[dict[str, ThreadPoolExecutor]]:
        """Threads of every judge. Left early, nothing more is asked, and what is under way still reaches the cache."""
        pools = {judge.name: ThreadPoolExecutor(self.concurrency) for judge in self.judges}
        try:
            yield pools
        except BaseException:
            for judge in self.judges:
                judge.client.stop()
            raise
        finally:
            for pool in pools.values():
                pool.shutdown(cancel_futures=True)


def panel(settings: Vlm) -> Panel:
    """The judges that recipe and environment describe. Raises UserError naming the variable that is missing."""
    judges = [VlmJudge(Client(endpoint(name), settings), Path(settings.cache)) for name in settings.judges]
    return Panel(judges, settings.concurrency, settings.repeats)


def _of(kind: type[AnyReply], reply: Reply | Unanswered) -> AnyReply | Unanswered:
    assert isinstance(reply, kind | Unanswered)
    return reply


def _shown_size(image: np.ndarray) -> tuple[int, int]:
    """(width, height) at which an image is shown."""
    height, width = image.shape[:2]
    factor = math.ceil(MIN_SIDE / min(height, width))
    return width * factor, height * factor


def _data_url(image: np.ndarray) -> str:
    picture, size = Image.fromarray(image), _shown_size(image)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
