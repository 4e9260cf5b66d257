"""Measures of many answers at once.

What an edit did to all that had to stay (`measures.drift`) takes some 20 ms, in numpy calls so short that threads wait
for each other's interpreter lock and eight are slower than one: where there are many, processes do it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from workbench.common.cores import usable_cores
from workbench.common.parent import Helpers
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.local import Judgement
from workbench.evaluation.measures.answer_measures import Measures, measure
from workbench.evaluation.measures.drift import Drift, drift
from workbench.evaluation.measures.ocr import TextReader

MOST_WORKERS = 8
PARALLEL_EDITS = 64
"""From so many edits on, processes measure them: below, they take longer to start."""
EDITS_AT_ONCE = 8


class Measuring:
    """Measures answers, in a `with` block, at whose end its processes end too. reader: of the texts that cases ask for,
    which are not read without it."""

    def __init__(self, reader: TextReader | None = None) -> None:
        self.reader = reader
        self._helpers = Helpers(min(MOST_WORKERS, usable_cores()))

    def __enter__(self) -> Measuring:
        self._helpers.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._helpers.__exit__(kind, value, trace)

    @property
    def name(self) -> str:
        """What it measures, as far as that may differ: part of the key of stored answers."""
        return "measures" if self.reader is None else "measures+ocr"

    def __call__(
        self,
        cases: Sequence[Case],
        images: Sequence[np.ndarray],
        seen: Sequence[Mapping[str, Any] | None],
        judgements: Sequence[Judgement | None],
    ) -> Iterator[Measures]:
        """The measures of every answer (H, W, 3) uint8, in order; arguments as those of `measure`."""
        moved = self._drifts(cases, images)
        # The reader's networks let go of the interpreter's lock, filters over pixels now and then.
        with ThreadPoolExecutor(min(MOST_WORKERS if self.reader else 2, usable_cores())) as pool:
            yield from pool.map(partial(measure, reader=self.reader), cases, images, moved, seen, judgements)

    def _drifts(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> list[Drift | None]:
        """What each answer did to all that had to stay; None for cases that are no edits of one source."""
        sources = {at: source for at, case in enumerate(cases) if (source := case.only_source) is not None}
        answers = [images[at] for at in sources]
        targets = [cases[at].only_target for at in sources]
        if len(answers) < PARALLEL_EDITS:
            drifts = list(map(drift, answers, sources.values(), targets))
        else:
            drifts = list(self._helpers.map(drift, answers, list(sources.values()), targets, at_once=EDITS_AT_ONCE))
        found = dict(zip(sources, drifts, strict=True))
        return [found.get(at) for at in range(len(cases))]
