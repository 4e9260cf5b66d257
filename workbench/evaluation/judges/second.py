"""The second judge: another architecture and another training seed.

It chooses neither the few-step teacher nor a study's recipe. Whether it orders models as the first judge does is what
it is for. (It did choose the answers that a specialist went on with: `studies/tiny_model/best_answers.py`.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.evaluation.judges.judge import LOCAL, Choice, Judged, Shown, Unanswered
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.metrics_file import JudgeRecord

if TYPE_CHECKING:
    from workbench.evaluation.cases.case import Case

SECOND = "second"
ASSET = Path(__file__).parents[2] / "assets" / "second_judge"


class SecondJudge:
    """The transformer that ships. A `Judge` whose scores stand next to those of the benchmarks, by the same formula."""

    def __init__(self, folder: Path = ASSET) -> None:
        self._seeing = LocalJudge(folder)
        self.title = self._seeing.title
        self.fingerprint = self._seeing.fingerprint

    def check(self, cases: Sequence[Case]) -> None:
        """See `check_attributes`."""
        self._seeing.check(cases)

    def judge(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> Judged:
        """A judgement of every answer."""
        return Judged({SECOND: self._seeing.judge(cases, images).scores[LOCAL]})

    def prefer(self, shown: Shown) -> dict[str, list[Choice | Unanswered]]:
        """It does not compare."""
        return {}

    def records(self) -> dict[str, JudgeRecord]:
        """Who it is."""
        return {SECOND: JudgeRecord(model=self.title)}
