"""Pruning of a single-objective search: a trial ends when it is far below the median of the others at one update.

Far is more than twice the noise floor, the standard deviation over seeds of one recipe: two trials that differ by less
may be the same recipe twice. Without a noise floor, or with several objectives, nothing is pruned.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from studies.analysis.arms import read_study
from studies.machine.trial_queue import SEARCH
from workbench.common.jsonl import read_scalars

MARGIN_SDS = 2.0
MIN_OTHERS = 4
"""Fewer scores at an update make no median to compare with."""
Milestones = dict[int, dict[str, float]]
"""Student updates -> measurements there by name."""


class NoiseFloorPruner(BasePruner):
    """The median rule, applied only to differences larger than the noise floor."""

    def __init__(self, noise_floor: float) -> None:
        self.noise_floor = noise_floor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the last score of `trial` is far below the median of the others at the same update."""
        update = trial.last_step
        if update is None:
            return False
        others = scores_at(update, study.get_trials(deepcopy=False), trial.number)
        return is_behind(trial.intermediate_values[update], others, self.noise_floor)


def is_behind(score: float, others: Sequence[float], noise_floor: float) -> bool:
    """Whether `score` is below the median of `others` by more than MARGIN_SDS noise floors."""
    return len(others) >= MIN_OTHERS and score < statistics.median(others) - MARGIN_SDS * noise_floor


def scores_at(update: int, trials: Iterable[FrozenTrial], excluded: int) -> list[float]:
    """Scores at `update` of all trials but number `excluded`; of a run folder with several trials, the newest one's."""
    found = {
        trial.user_attrs.get("run"): trial.intermediate_values[update]
        for trial in trials
        if trial.number != excluded and update in trial.intermediate_values
    }
    return [value for value in found.values() if math.isfinite(value)]


def read_milestones(folder: Path) -> Milestones:
    """The milestones of a run so far: its distance to the teacher, and its scores where the recipe asks for them."""
    return dict(read_scalars(folder / "milestones.jsonl"))


def noise_floor_of(folder: Path, objective: str) -> float | None:
    """The noise floor that a finished `noise-floor` study in `folder` found in `objective`, if there is one.

    The standard deviation over seeds of the final values or of those at a milestone (scored on fewer cases), whichever
    is largest. Draws of a search differ in more than the seed and do not count.
    """
    if not (folder / "study.json").is_file():
        return None
    content = read_study(folder)
    arms = [arm for arm in content.get("arms", []) if arm["name"] != SEARCH]
    trials = [trial for arm in arms for trial in arm["trials"] if objective in (trial.get("values") or {})]
    series: dict[str, list[float | None]] = {"": [trial["values"][objective] for trial in trials]}
    for trial in trials:
        for update, scores in (trial.get("milestones") or {}).items():
            if objective in scores:
                series.setdefault(update, []).append(scores[objective])
    finite = [[value for value in of if value is not None and math.isfinite(value)] for of in series.values()]
    spreads = [statistics.stdev(values) for values in finite if len(values) > 2]
    return max(spreads) if spreads else None
