"""Whether arms collapse: a score that rose and then fell, beyond what choosing the highest of noisy milestones makes of
no fall at all.

The peak of a run is chosen without the run and without the cases that its fall is measured on: as the highest milestone
of the arm's other runs on one half of the cases. The fall is measured on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studies.analysis.arms import Arm, run_folder
from studies.analysis.crossed import Contrast, Table, components, run_scores
from studies.analysis.families import LEVEL, holm_levels
from workbench.common.jsonl import MILESTONE_CASES, read_lines

Milestones = Mapping[int, Table]
"""Student update -> scores (runs, cases) of an arm, of the same runs and cases at every update."""
Case = tuple[str, str, str]
"""(bench, category, case)."""


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


def fall_rows(folder: Path, found: Sequence[Arm]) -> list[dict[str, Any]]:
    """Fall of every arm whose runs kept their cases at milestones, and whether it is an alarm."""
    falls = {arm.name: fall for arm in found if (fall := fall_of(milestones_of(folder, arm))) is not None}
    return [
        {
            "arm": arm,
            "runs": len(fall.peaks),
            "peaks": sorted({*fall.peaks}),
            "peak": fall.on_peaks,
            "last": fall.on_peaks - fall.contrast.value,
            "fall": fall.contrast.value,
            "p": fall.p,
            "alarm": alarm,
        }
        for (arm, fall), alarm in zip(falls.items(), alarms(list(falls.values())), strict=True)
    ]


def milestones_of(folder: Path, arm: Arm) -> Milestones:
    """Of the milestones and cases that all finished runs of the arm share."""
    runs = [_scored_cases(run) for trial in arm.finished if (run := run_folder(folder, trial)) is not None]
    updates = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not updates:
        return {}
    shared = sorted(set.intersection(*({*run[update]} for run in runs for update in updates)))
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in shared:
        groups.setdefault(case[:2], []).append(case)
    return {
        update: {
            key: np.array([[run[update][case] for case in cases] for run in runs]) for key, cases in groups.items()
        }
        for update in updates
    }


def _scored_cases(run: Path) -> dict[int, dict[Case, float]]:
    """Student update -> score of every case."""
    return {
        update: {
            (bench, category, case): float(score)
            for bench, of_bench in row.items()
            for category, of_category in of_bench.items()
            for case, score in of_category.items()
        }
        for update, row in read_lines(run / MILESTONE_CASES)
    }


def alarms(falls: Sequence[Fall]) -> list[bool]:
    """Which arms of a study collapse: Holm's procedure over them, an error of 5 % for all together."""
    p = [fall.p for fall in falls]
    return [bool(value <= level) for value, level in zip(p, holm_levels(p, LEVEL), strict=True)]
