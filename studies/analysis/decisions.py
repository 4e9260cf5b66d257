"""Three verdicts on a difference: one arm is better, both are equivalent within a margin, or it is undecided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studies.analysis.crossed import Contrast, Quantile, one_sided

MARGIN = 0.05
"""Points of the score (1 to 5) below which a difference does not matter; a study may fix another beforehand."""
EQUIVALENCE = 0.95
"""Confidence of each of the two one-sided tests: the interval between their bounds is one of 90 %."""
Kind = Literal["better", "equivalent", "undecided", "one seed"]


@dataclass(frozen=True)
class Decision:
    """kind: of the first arm less the second; `better` is whichever the sign of the difference says. low, high: bounds
    of the interval, adjusted for the family. small: the difference lies within the margin at 90 %."""

    kind: Kind
    low: float | None
    high: float | None
    small: bool = False


def decide(found: Contrast, quantile: Quantile, margin: float) -> Decision:
    """quantile: of the interval that must exclude 0 for a difference to be shown."""
    if not found.known:
        return Decision("one seed", None, None)
    low, high = found.interval(quantile)
    small = is_equivalent(found, margin)
    if low > 0 or high < 0:
        return Decision("better", low, high, small)
    return Decision("equivalent" if small else "undecided", low, high, small)


def is_equivalent(found: Contrast, margin: float) -> bool:
    """Two one-sided tests at 5 %: the 90 % interval lies within the margin."""
    return abs(found.value) + found.half_width(one_sided(EQUIVALENCE)) < margin
