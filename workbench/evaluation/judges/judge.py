"""What a judge is: anything that scores answers. There are three, in `local`, `second` and `vlm_judge`, which `choose`
makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from workbench.evaluation.metrics_file import JudgeRecord

if TYPE_CHECKING:
    from workbench.evaluation.cases.case import Case

LOCAL = "local"
"""Name of the judge whose scores are the benchmarks' own; every other judge's stand under its name."""
NEEDS_LOCAL = "add local to evaluation.judges"
Shown = Sequence[tuple["Case", np.ndarray, np.ndarray]]
"""Cases with two answers each, (H, W, 3) uint8."""


class Scored(Protocol):
    """A judgement of one answer: a score between 1 and 5, and what it rests on."""

    @property
    def score(self) -> float: ...

    def details(self) -> dict[str, Any]:
        """What a line of `evaluation/vlm.jsonl` or `cases.jsonl` holds besides the score."""
        ...


@dataclass(frozen=True)
class Unanswered:
    """No score, and why."""

    reason: str


@dataclass(frozen=True)
class Judged:
    """Judgements of answers: name of the judge -> a score of every answer. features: (answers, D), seen: the
    attributes of every answer; both of a judge that looks with a network of its own, else None."""

    scores: Mapping[str, Sequence[Scored | Unanswered]]
    features: np.ndarray | None = None
    seen: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Choice:
    """Which of two answers is better, in the order shown."""

    winner: Literal["A", "B"]
    reason: str


class Judge(Protocol):
    """Scores answers, under one name or, for several asked together, under several.

    title: for tables. fingerprint: distinguishes its judgements from another version's, so that they may be kept with
    the answers; empty for a judge that has to be asked each time, and with it nothing is kept.
    """

    @property
    def title(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def check(self, cases: Sequence[Case]) -> None:
        """Before anything is drawn. Raises: UserError where it can judge no answer to a case."""
        ...

    def judge(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> Judged:
        """Score the answer (H, W, 3) uint8 to every case."""
        ...

    def prefer(self, shown: Shown) -> dict[str, list[Choice | Unanswered]]:
        """Name -> which of two answers is better, for every pair; empty for a judge that does not compare."""
        ...

    def records(self) -> dict[str, JudgeRecord]:
        """Name -> who it is and what it was asked; nothing of the local judge, who is named elsewhere."""
        ...
