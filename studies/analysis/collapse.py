"""Whether arms collapse: a score that rose and then fell, beyond what choosing the highest of noisy milestones makes of
no fall at all.

The peak of a run is chosen without the run and without the cases that its fall is measured on: as the highest milestone
of the arm's other runs on one half of the cases. The fall is measured on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studies.analysis.crossed import Contrast, Table, components, run_scores
from studies.analysis.families import LEVEL, holm_levels

Milestones = Mapping[int, Table]
"""Student update -> scores (runs, cases) of an arm, of the same runs and cases at every update."""


@dataclass(frozen=True)
class Fall:
    """Fall of an arm from its peak to its last milestone.

    peaks: the update chosen for each run. p: one-sided, of no fall.
    on_peaks: mean score at the chosen peaks, on the half of the cases that the fall is measured on."""

    peaks: tuple[int, ...]
    on_peaks: float
    contrast: Contrast
    p: float


def halves(table: Table) -> tuple[Table, Table]:
    """Every second case of each category, and the others."""
    return {key: scores[:, ::2] for key, scores in table.items()}, {key: of[:, 1::2] for key, of in table.items()}


def fall_of(milestones: Milestones) -> Fall | None:
    """None for fewer than two runs, two milestones, or four cases a category: nothing is left to choose the peak by."""
    updates = sorted(milestones)
    first = next(iter(milestones.values()), {})
    if len(updates) < 2 or not first or any(min(len(of), of.shape[1] // 2) < 2 for of in first.values()):
        return None
    chosen_on, measured_on = zip(*(halves(milestones[update]) for update in updates), strict=True)
    scores = np.array([run_scores(table) for table in chosen_on])
    of_others = scores.sum(axis=1, keepdims=True) - scores
    peaks = of_others.argmax(axis=0)
    tops = {key: np.array([measured_on[peak][key][run] for run, peak in enumerate(peaks)]) for key in measured_on[-1]}
    falls = {key: tops[key] - measured_on[-1][key] for key in tops}
    contrast = components([falls]).contrast([1.0])
    p = contrast.p() / 2 if contrast.value > 0 else 1 - contrast.p() / 2
    return Fall(tuple(updates[peak] for peak in peaks), float(run_scores(tops).mean()), contrast, p)


def alarms(falls: Sequence[Fall]) -> list[bool]:
    """Which arms of a study collapse: Holm's procedure over them, an error of 5 % for all together."""
    p = [fall.p for fall in falls]
    return [bool(value <= level) for value, level in zip(p, holm_levels(p, LEVEL), strict=True)]
