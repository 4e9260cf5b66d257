"""How far the student's samples are from what they should look like, and when that has got worse for long.

The distance is one between distributions, so it rises when the student saturates, blurs, or draws all alike, and does
not ask it to draw a particular picture. It is measured on the same prompts and noise at every milestone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

PATIENCE = 3
"""Milestones in a row that must be clearly worse than the best before them."""
RELATIVE_MARGIN = 0.15
ABSOLUTE_MARGIN = 0.01
"""Clearly worse: by more than both of these."""


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """(2 E|X - Y| - E|X - X'| - E|Y - Y'|) / E|Y - Y'| of samples x (n, D), y (m, D), pairs of different samples: ().

    0 for like distributions, up to the noise of few samples (Szekely & Rizzo 2013); in units of the spread of y.
    """
    across = torch.cdist(x, y).mean()
    spread_x, spread_y = (torch.cdist(one, one).sum() / (len(one) * (len(one) - 1)) for one in (x, y))
    return (2 * across - spread_x - spread_y) / spread_y


@dataclass
class CollapseMonitor:
    """Distances at the milestones of a run, by update, in order."""

    distances: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, Mapping[str, float]]]) -> CollapseMonitor:
        """From the lines of `milestones.jsonl`, which leave out a distance that is not finite."""
        return cls({update: row.get("distance", math.nan) for update, row in rows})

    def add(self, update: int, distance: float) -> None:
        """Take in a milestone."""
        self.distances[update] = distance

    def best(self) -> int | None:
        """Update of the smallest finite distance, the earlier of two."""
        finite = [update for update, distance in self.distances.items() if math.isfinite(distance)]
        return min(finite, key=lambda update: self.distances[update], default=None)

    def has_collapsed(self) -> bool:
        """Whether the last `PATIENCE` milestones are all clearly worse than the best before them."""
        distances = list(self.distances.values())
        before = [distance for distance in distances[:-PATIENCE] if math.isfinite(distance)]
        last = distances[-PATIENCE:]
        return bool(before) and all(is_clearly_worse(distance, min(before)) for distance in last)

    def best_to_keep(self) -> int | None:
        """Update of the best milestone where the last one is clearly worse, else None."""
        best = self.best()
        if best is None:
            return None
        last = list(self.distances.values())[-1]
        return best if is_clearly_worse(last, self.distances[best]) else None


def is_clearly_worse(distance: float, best: float) -> bool:
    """Beyond what prompts and noise of a milestone explain; not a number is worse than anything."""
    return not distance <= best + max(RELATIVE_MARGIN * abs(best), ABSOLUTE_MARGIN)
