"""When a trial of a single-objective search is given up: far below the median of the others at the same update.

Far is more than twice the noise floor, the standard deviation over seeds of one recipe: two trials that differ by less
may be one recipe twice. Without a noise floor nothing is pruned, and a study with several objectives never is.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from datamodules.files import read_json
from workbench.errors import UserError

MARGIN_SDS = 2.0
MIN_OTHERS = 4
"""Trials that must have a score at an update before a median of them means anything."""
Milestones = dict[int, dict[str, float]]
"""Student updates -> scores there."""


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
    """The scores that a run has of its milestones so far; a line cut short by a kill is left out."""
    path = folder / "scores.jsonl"
    found: Milestones = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            update = int(row.pop("update"))
            found[update] = {name: float(value) for name, value in row.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def noise_floor_of(folder: Path) -> float | None:
    """The noise floor that a finished `noise-floor` study in `folder` found, if there is one.

    The standard deviation over seeds of the final scores or of those at a milestone, whichever is largest: fewer cases
    are scored there.
    """
    if not (folder / "study.json").is_file():
        return None
    content = read_json(folder / "study.json", "run the study noise-floor again, or give noise_floor=")
    trials = [trial for arm in content.get("arms", []) for trial in arm["trials"] if trial.get("score") is not None]
    finals = [float(trial["score"]) for trial in trials]
    series: dict[str, list[float]] = {}
    for trial in trials:
        for update, scores in (trial.get("milestones") or {}).items():
            series.setdefault(update, []).append(_score(scores))
    spreads = [statistics.stdev(values) for values in (finals, *series.values()) if len(values) > 2]
    return max(spreads) if spreads else None


def _score(scores: Any) -> float:
    try:
        return float(scores["score"] if isinstance(scores, dict) else scores)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            "the noise-floor study's milestones hold no score: run it again, or give noise_floor="
        ) from None
