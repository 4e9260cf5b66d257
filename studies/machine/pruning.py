"""When a trial of a single-objective search is given up: far below the median of the others at the same update.

Far is more than twice the noise floor, the standard deviation over seeds of one recipe: two trials that differ by less
may be one recipe twice. Without a noise floor nothing is pruned, and a study with several objectives never is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial

from studies.machine.trial_queue import SEARCH
from workbench.common.files import read_json
from workbench.common.jsonl import read_lines

MARGIN_SDS = 2.0
MIN_OTHERS = 4
"""Trials that must have a score at an update before a median of them means anything."""
Milestones = dict[int, dict[str, float]]
"""Student updates -> readings there by name."""


def is_behind(score: float, others: Sequence[float], noise_floor: float) -> bool:
    """The median rule, never inside the noise floor."""
    return len(others) >= MIN_OTHERS and score < statistics.median(others) - MARGIN_SDS * noise_floor


def scores_at(update: int, trials: Iterable[FrozenTrial], but: int) -> list[float]:
    """What trials other than number `but` reported at `update`; of one run folder the newest trial alone."""
    found = {
        trial.user_attrs.get("run"): trial.intermediate_values[update]
        for trial in trials
        if trial.number != but and update in trial.intermediate_values
    }
    return [value for value in found.values() if math.isfinite(value)]


def read_milestones(folder: Path) -> Milestones:
    """What a run has told of its milestones so far: its distance, and its scores where it takes any."""
    return dict(read_lines(folder / "milestones.jsonl"))


def noise_floor_of(folder: Path, objective: str) -> float | None:
    """The noise floor that a finished `noise-floor` study in `folder` found in `objective`, if there is one.

    The standard deviation over seeds of the final values or of those at a milestone, whichever is largest: fewer cases
    are scored there. Recipes that a search drew there differ in more than the seed and do not count.
    """
    if not (folder / "study.json").is_file():
        return None
    content = read_json(folder / "study.json", "run the study noise-floor again, or give noise_floor=")
    arms = [arm for arm in content.get("arms", []) if arm["name"] != SEARCH]
    trials = [trial for arm in arms for trial in arm["trials"] if objective in trial.get("values", {})]
    finals = [float(trial["values"][objective]) for trial in trials]
    series: dict[str, list[float]] = {}
    for trial in trials:
        for update, scores in (trial.get("milestones") or {}).items():
            if objective in scores:
                series.setdefault(update, []).append(float(scores[objective]))
    spreads = [statistics.stdev(values) for values in (finals, *series.values()) if len(values) > 2]
    return max(spreads) if spreads else None
