"""One model answers all cases under all seeds; the judge looks at every answer once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from workbench.common.clock import Clock
from workbench.common.cores import usable_cores
from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.evaluation.answer_cache import Answer, Chunk, Store, chunk_key
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.local import LocalJudge, judge_case
from workbench.evaluation.judges.vlm_judge import Panel, Unanswered
from workbench.evaluation.judges.vlm_reply import Verdict
from workbench.evaluation.measures.readings import read_case
from workbench.evaluation.models import ModelUnderTest

CHUNK = 256
"""Cases drawn, judged and forgotten at once."""
MOST_THREADS = 8


@dataclass
class Answers:
    """All answers of one model. features: (answers, D); images: (case, seed) -> image, of the cases that are kept;
    verdicts: vision-language judge -> what it said of every row."""

    rows: list[Answer] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    images: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    verdicts: dict[str, list[Verdict | Unanswered]] = field(default_factory=dict)
    seconds: float = 0.0

    def by_category(self, bench: str) -> dict[str, np.ndarray]:
        """Scores (cases, seeds) of each category, cases and seeds in the order answered."""
        table: dict[str, dict[str, list[float]]] = {}
        for row in self.rows:
            if row.bench == bench:
                table.setdefault(row.category, {}).setdefault(row.case, []).append(row.judgement.score)
        return {category: np.array(list(cases.values())) for category, cases in table.items()}

    def features_of(self, bench: str, seed: int | None = None) -> np.ndarray:
        """Features (n, D) of the answers to one benchmark, under one seed or all."""
        chosen = [
            feature
            for row, feature in zip(self.rows, self.features, strict=True)
            if row.bench == bench and seed in (None, row.seed)
        ]
        return np.stack(chosen) if chosen else np.zeros((0, 0), np.float32)


def chunks(cases: Sequence[Case], size: int) -> Iterator[list[Case]]:
    """Cases in order, at most `size` at once, each chunk of one task."""
    for _, group in groupby(cases, key=lambda case: case.task):
        same = list(group)
        for start in range(0, len(same), size):
            yield same[start : start + size]


def answer(
    model: ModelUnderTest,
    cases: Sequence[Case],
    seeds: Sequence[int],
    judge: LocalJudge,
    keep: Iterable[str] = (),
    panel: Panel | None = None,
    store: Store | None = None,
    clock: Clock | None = None,
    stream: str = "",
) -> Answers:
    """Draw and judge every case under every seed. keep: ids of the cases whose images stay; panel: more judges, which
    need every image, so that nothing is taken from the store then. store: of answers given before, unless the model has
    one. stream: noise of other streams is other noise under the same seeds."""
    answers, kept, clock = Answers(), set(keep), clock or Clock()
    usable = model.store or store if model.fingerprint and panel is None else None
    for seed in seeds:
        for part in chunks(cases, CHUNK):
            wanted = [case.id for case in part if case.id in kept]
            draw = partial(_drawn, model, part, seed, judge, wanted, answers, panel, clock, stream)
            if usable:
                weights = {"model": model.fingerprint, **model.sampling}
                chunk = usable.once(chunk_key(weights, judge.fingerprint, part, f"{stream}{seed}", wanted), draw)
            else:
                chunk = draw()
            answers.rows += chunk.answers
            answers.features.extend(chunk.features)
            answers.images |= {(case, seed): image for case, image in chunk.images.items()}
            answers.seconds += chunk.seconds
    return answers


def _drawn(
    model: ModelUnderTest,
    cases: Sequence[Case],
    seed: int,
    judge: LocalJudge,
    keep: Sequence[str],
    answers: Answers,
    panel: Panel | None,
    clock: Clock,
    stream: str,
) -> Chunk:
    """Fresh answers to `cases` under one seed; what the panel says goes to `answers` at once."""
    images, seconds = model.draw(cases, [case.noise_seed(f"{stream}{seed}") for case in cases])
    found = Answers()
    judge_into(found, cases, images, seed, judge, clock)
    if panel is not None:
        with clock.phase("panel"):
            for name, verdicts in panel.score(cases, images).items():
                answers.verdicts.setdefault(name, []).extend(verdicts)
    kept = {case.id: image for case, image in zip(cases, images, strict=True) if case.id in keep}
    return Chunk(found.rows, np.stack(found.features), kept, seconds)


def judge_into(
    answers: Answers,
    cases: Sequence[Case],
    images: Sequence[np.ndarray],
    seed: int,
    judge: LocalJudge,
    clock: Clock | None = None,
) -> None:
    """Append the judgements and features of `images`."""
    clock = clock or Clock()
    for case, image in zip(cases, images, strict=True):
        assert image.dtype == np.uint8 and image.ndim == 3, f"{case.id}: images are (H, W, 3) uint8"
    with clock.phase("judging"):
        seen, quality, features = judge.see(images)

    def one(case: Case, image: np.ndarray, attributes: dict[str, Any], q: float) -> Answer:
        judgement, reading = judge_case(case, image, attributes, q), read_case(case, image, attributes)
        return Answer(case.id, case.bench, case.category, seed, judgement, reading)

    # Filters over pixels let go of the interpreter's lock.
    with clock.phase("readings"), ThreadPoolExecutor(min(MOST_THREADS, usable_cores())) as pool:
        answers.rows.extend(pool.map(one, cases, images, seen, quality.tolist()))
    answers.features.extend(features)


def write_answers(answers: dict[str, Answers], path: Path) -> None:
    """One JSON object a model, case and seed: what `compare` pairs."""
    lines = []
    for model, of_model in answers.items():
        for row in of_model.rows:
            judged = asdict(row.judgement)
            numbers = {k: _rounded(v) for k, v in judged.items() if k != "heads"}
            heads = {name: _rounded(value) for name, value in judged["heads"].items()}
            reading = {name: value for name, value in asdict(row.reading).items() if value is not None}
            reading = {k: v if isinstance(v, str) else _rounded(v) for k, v in reading.items()}
            place = {"model": model, "bench": row.bench, "category": row.category, "case": row.case, "seed": row.seed}
            lines.append(json.dumps({**place, **numbers, "heads": heads, "reading": reading}))
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def read_scores(path: Path) -> dict[str, dict[tuple[str, str, str, int], float]]:
    """model -> (bench, category, case, seed) -> score. Raises UserError if the file is missing or broken."""
    scores: dict[str, dict[tuple[str, str, str, int], float]] = {}
    try:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            key = (row["bench"], row["category"], row["case"], int(row["seed"]))
            scores.setdefault(row["model"], {})[key] = float(row["score"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no usable scores in {path} ({error}); run `workbench evaluate` on the run first") from error
    return scores


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 5)
