"""One model answers all cases under all seeds; every judge scores every answer once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from workbench.common.clock import Clock
from workbench.common.files import write_bytes
from workbench.common.progress import advance
from workbench.evaluation.answer_cache import Answer, Chunk, Store, chunk_key
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.judge import LOCAL, Judge, Scored, Unanswered
from workbench.evaluation.judges.local import Judgement
from workbench.evaluation.measures.answer_measures import Measures
from workbench.evaluation.measuring import Measuring
from workbench.evaluation.models import ModelUnderTest

CHUNK = 256
"""Cases drawn and judged at once; their images are dropped afterwards."""
JUDGED = 1
"""Units of a job that judging an answer counts, a network evaluation of one image being one."""


@dataclass
class Answers:
    """All answers of one model. features: (answers, D) of the local judge, empty without it; images: (case, seed) ->
    image, of the cases that are kept; verdicts: name of every further judge -> its verdict on every row."""

    rows: list[Answer] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    images: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    verdicts: dict[str, list[Scored | Unanswered]] = field(default_factory=dict)
    seconds: float = 0.0

    def by_category(self, bench: str) -> dict[str, np.ndarray]:
        """The local judge's scores (cases, seeds) of each category, cases and seeds in the order answered."""
        table: dict[str, dict[str, list[float]]] = {}
        for row in self.rows:
            if row.bench == bench and row.judgement is not None:
                table.setdefault(row.category, {}).setdefault(row.case, []).append(row.judgement.score)
        return {category: np.array(list(cases.values())) for category, cases in table.items()}

    def by_difficulty(self, bench: str) -> dict[str, dict[str, np.ndarray]]:
        """The same of the parts that categories have: category -> difficulty -> scores (cases, seeds)."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for category, difficulty in sorted({(row.category, row.difficulty) for row in self.rows if row.difficulty}):
            rows = [row for row in self.rows if (row.category, row.difficulty) == (category, difficulty)]
            if scores := Answers(rows).by_category(bench):
                found.setdefault(category, {})[difficulty] = scores[category]
        return found

    def features_of(self, bench: str, seed: int | None = None, category: str | None = None) -> np.ndarray:
        """Features (n, D) of the answers to one benchmark, under one seed or all, of one category or all; (0, 0)
        without any."""
        if not self.features:
            return np.zeros((0, 0), np.float32)
        chosen = [
            feature
            for row, feature in zip(self.rows, self.features, strict=True)
            if row.bench == bench and seed in (None, row.seed) and category in (None, row.category)
        ]
        return np.stack(chosen) if chosen else np.zeros((0, 0), np.float32)


def work_of(nfe: int) -> int:
    """Units of a job that an answer counts: drawing it, and judging it."""
    return nfe + JUDGED


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
    judges: Sequence[Judge],
    keep: Iterable[str] = (),
    store: Store | None = None,
    clock: Clock | None = None,
    stream: str = "",
    measuring: Measuring | None = None,
) -> Answers:
    """Draw and judge every case under every seed. keep: ids of the cases whose images stay. store: of answers given
    before, unless the model has one; unused where a judge needs to see every image. stream: noise of other streams is
    other noise under the same seeds. measuring: without it no measures are taken."""
    answers, kept, clock = Answers(), set(keep), clock or Clock()
    usable = model.store or store if model.fingerprint and all(judge.fingerprint for judge in judges) else None
    judged_by = "+".join([*(judge.fingerprint for judge in judges), *([measuring.name] if measuring else [])])

    def chunk_of(part: Sequence[Case], seed: int, wait: bool) -> Chunk | None:
        wanted = [case.id for case in part if case.id in kept]
        drawn: list[bool] = []
        draw = partial(_drawn, model, part, seed, judges, wanted, clock, stream, measuring, drawn)
        if usable:
            weights = {"model": model.fingerprint, **model.sampling}
            chunk = usable.once(chunk_key(weights, judged_by, part, f"{stream}{seed}", wanted), draw, wait)
        else:
            chunk = draw()
        if chunk and not drawn:
            advance(len(part) * work_of(model.nfe))
        return chunk

    parts = [(part, seed) for seed in seeds for part in chunks(cases, CHUNK)]
    # Of processes that ask one model at once each draws other chunks, and reads those of the others afterwards.
    found = [chunk_of(*part, wait=False) for part in parts]
    for (part, seed), at_once in zip(parts, found, strict=True):
        chunk = at_once or chunk_of(part, seed, wait=True)
        assert chunk is not None, "who waits gets a chunk"
        answers.rows += chunk.answers
        answers.features.extend(chunk.features)
        answers.images |= {(case, seed): image for case, image in chunk.images.items()}
        answers.seconds += chunk.seconds
        for name, verdicts in chunk.verdicts.items():
            answers.verdicts.setdefault(name, []).extend(verdicts)
    return answers


def _drawn(
    model: ModelUnderTest,
    cases: Sequence[Case],
    seed: int,
    judges: Sequence[Judge],
    keep: Sequence[str],
    clock: Clock,
    stream: str,
    measuring: Measuring | None,
    drawn: list[bool],
) -> Chunk:
    """Fresh answers to `cases` under one seed, judged; `drawn` notes that there were none."""
    drawn.append(True)
    images, seconds = model.draw(cases, [case.noise_seed(f"{stream}{seed}") for case in cases])
    found = Answers()
    judge_into(found, cases, images, seed, judges, clock, measuring)
    kept = {case.id: image for case, image in zip(cases, images, strict=True) if case.id in keep}
    features = np.stack(found.features) if found.features else np.zeros((0, 0), np.float32)
    return Chunk(found.rows, features, kept, seconds, found.verdicts)


def judge_into(
    answers: Answers,
    cases: Sequence[Case],
    images: Sequence[np.ndarray],
    seed: int,
    judges: Sequence[Judge],
    clock: Clock | None = None,
    measuring: Measuring | None = None,
) -> None:
    """Append the judgements of `images`, and with `measuring` their measures."""
    clock = clock or Clock()
    for case, image in zip(cases, images, strict=True):
        assert image.dtype == np.uint8 and image.ndim == 3, f"{case.id}: images are (H, W, 3) uint8"
    judgements: Sequence[Judgement | None] = [None] * len(cases)
    seen: Sequence[Mapping[str, Any] | None] = [None] * len(cases)
    for judge in judges:
        with clock.phase("judging"):
            judged = judge.judge(cases, images)
        for name, scores in judged.scores.items():
            if name == LOCAL:
                judgements = [_of_local(score) for score in scores]
            else:
                answers.verdicts.setdefault(name, []).extend(scores)
        if judged.features is not None:
            answers.features.extend(judged.features)
        seen = judged.seen or seen
    measures = []
    with clock.phase("measuring"):
        for of_case in measuring(cases, images, seen, judgements) if measuring else [Measures()] * len(cases):
            measures.append(of_case)
            advance(JUDGED)
    for case, judgement, of_case in zip(cases, judgements, measures, strict=True):
        answers.rows.append(Answer(case.id, case.bench, case.category, seed, judgement, of_case, case.difficulty))


def _of_local(score: Scored | Unanswered) -> Judgement:
    assert isinstance(score, Judgement)
    return score


def write_answers(
    answers: Mapping[str, Answers], cases: Sequence[Case], path: Path, student: Mapping[str, Any] | None = None
) -> None:
    """One JSON object a model, case and seed: what `compare` pairs. The score is null without a local judge.

    student: what else the lines of the model of that name say, its update and the hash of its weights.
    """
    lines, asked = [], {case.id: case.asked() for case in cases}
    for model, of_model in answers.items():
        identity = (student or {}) if model == "student" else {}
        for row in of_model.rows:
            place = {"model": model, "bench": row.bench, "category": row.category, "case": row.case, "seed": row.seed}
            place |= {"difficulty": row.difficulty} if row.difficulty else {}
            place |= {"asked": asked[row.case], **identity}
            scored = row.judgement
            judged = {"score": None} if scored is None else {"score": scored.score, **scored.details()}
            measures = {name: value for name, value in asdict(row.measures).items() if value is not None}
            lines.append(json.dumps({**place, **_rounded(judged), "measures": _rounded(measures)}))
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value if value is None or isinstance(value, str) else round(float(value), 5)
