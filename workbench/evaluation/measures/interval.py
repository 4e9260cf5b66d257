"""A mean with its interval, apart from how it is computed: what reads scores needs no numerical library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean over `n` cases with its interval; low and high are None for a single case, the mean is NaN for none."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}
