"""What a study found: `study.json` for the report, and a table on the terminal."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.text import Text

from studies.analysis import arms, comparisons, effects
from studies.factors import level_text
from studies.machine.storage import shown
from studies.machine.trial_queue import SEARCH, error_of, is_duplicate
from studies.study import Study
from workbench.common.files import write_bytes
from workbench.common.tables import Table
from workbench.evaluation.cases.count import count_cases
from workbench.evaluation.measures.interval import Interval
from workbench.recipe.config import Recipe

SEARCH_ARM = SEARCH
BEST_TRIALS = 5


def arm_of(trial: FrozenTrial) -> str:
    """Name of the arm, or `search` for a drawn recipe, by its entry `ARM@SEED` in the queue."""
    return _entry(trial)[0]


def _entry(trial: FrozenTrial) -> tuple[str, str]:
    arm, _, seed = str(trial.user_attrs.get("entry", f"{SEARCH_ARM}@{trial.number}")).rpartition("@")
    return arm, seed


def describe(optuna_study: optuna.Study, study: Study, base: Recipe, command: Sequence[str]) -> None:
    """Write into the storage what `study.json` says of the study as a whole, whichever worker writes it, and what
    optuna-dashboard calls its objectives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna_study.set_metric_names([*study.OBJECTIVES])
    cases = count_cases(base.data, base.evaluation)
    optuna_study.set_user_attr("budget", {"updates": base.trainer.updates, "cases": cases})
    optuna_study.set_user_attr("command", [_without_password(word) for word in command])


def _without_password(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key}={shown(value)}" if key == "storage" else word


def write_json(optuna_study: optuna.Study, study: Study, name: str, storage: str, path: Path) -> None:
    """`study.json`: every trial by arm, failed and running ones too; of a search its front and its space."""
    trials = [trial for trial in optuna_study.get_trials(deepcopy=False) if not is_duplicate(trial)]
    replicated = any(arm_of(trial) != SEARCH_ARM for trial in trials)
    by_arm: dict[str, list[dict[str, Any]]] = {arm: [] for arm in study.ARMS if replicated}
    for trial in trials:
        by_arm.setdefault(arm_of(trial), []).append(_row(trial, study))
    drawn = [trial for trial in trials if trial.state == TrialState.COMPLETE and arm_of(trial) == SEARCH_ARM]
    content = {
        "name": name,
        "question": study.QUESTION,
        "reference": next(iter(study.ARMS)) if replicated and not study.FACTORS else None,
        "objectives": list(study.OBJECTIVES),
        "margin": study.MARGIN,
        "expects": dict(study.EXPECTS),
        "split": study.SPLIT,
        "factors": [
            {"name": name, "low": level_text(low), "high": level_text(high)}
            for name, (low, high) in study.FACTORS.items()
        ],
        "storage": storage,
        "budget": optuna_study.user_attrs.get("budget", {}),
        "command": optuna_study.user_attrs.get("command", []),
        "arms": [{"name": arm, "trials": rows} for arm, rows in by_arm.items()],
        "front": [trial.number for trial in front(drawn)],
        "space": {name: distribution_to_json(of) for trial in drawn for name, of in trial.distributions.items()},
    }
    write_bytes(path, json.dumps(content, indent=1).encode())


def _row(trial: FrozenTrial, study: Study) -> dict[str, Any]:
    """One trial of `study.json`. Times in seconds since 1970."""
    metrics, done = trial.user_attrs.get("metrics", {}), trial.state == TrialState.COMPLETE
    values = {name: metrics[name] for name in arms.REPORTED if name in metrics}
    if done:
        values |= dict(zip(study.OBJECTIVES, trial.values, strict=True))
    reported = {str(update): value for update, value in trial.intermediate_values.items() if math.isfinite(value)}
    return {
        "number": trial.number,
        "entry": "@".join(_entry(trial)),
        "run": trial.user_attrs.get("run"),
        "seed": trial.params.get("seed"),
        "state": trial.state.name.lower(),
        "values": values if done else {},
        "score": values.get("score") if done else None,
        "hparams": trial.user_attrs.get("hparams", {}),
        "params": {name: value for name, value in trial.params.items() if name not in ("arm", "seed")},
        "metrics": metrics,
        "milestones": trial.user_attrs.get("milestones", reported),
        "cost": trial.user_attrs.get("cost", {}),
        "started": trial.datetime_start.timestamp() if trial.datetime_start else None,
        "finished": trial.datetime_complete.timestamp() if trial.datetime_complete else None,
        "error": error_of(trial),
    }


def front(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that no other one beats or equals in every objective while beating it in one; all are maximised."""

    def dominates(a: FrozenTrial, b: FrozenTrial) -> bool:
        pairs = list(zip(a.values, b.values, strict=True))
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return [trial for trial in trials if not any(dominates(other, trial) for other in trials)]


def print_table(folder: Path, console: Console) -> None:
    """Arms of the study in `folder` with their means and intervals, what the differences are worth, and the best of
    what was drawn."""
    study = arms.read_study(folder)
    found, objective = arms.read_arms(folder, study), study["objectives"][0]
    if replicated := arms.asked_for(arms.replicated(found), study):
        _print_arms(folder, study, replicated, objective, console)
    for arm in found:
        if arm.name == SEARCH_ARM and arm.finished:
            _print_draws(study, arm, objective, console)


def _print_arms(
    folder: Path, study: dict[str, Any], found: Sequence[arms.Arm], objective: str, console: Console
) -> None:
    measured = comparisons.measure(found, objective, study["reference"])
    table = _table(study["question"], ("arm", "n", "failed", objective, "95 % interval"))
    for arm in found:
        interval = None if measured is None else measured.interval(arm)
        mean = "-" if interval is None else f"{interval.mean:.3f}"
        table.add_row(Text(arm.name), str(len(arm.finished)), str(_num_failed(arm)), mean, _span(interval))
    console.print(table)
    console.print(
        f"Student on the {study['split']} split; n counts seeds, each a run of its own; intervals over seeds and cases."
    )
    for row in effects.effect_rows(measured, study["factors"], study["margin"]) if study["factors"] else []:
        takes = f" ({row['takes']} would decide)" if row["takes"] else ""
        console.print(
            f"{row['name']}: {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}): {row['kind']}{takes}",
            markup=False,
        )
    for row in comparisons.against_reference(measured, study["margin"]):
        span = "" if row["low"] is None else f" ({row['low']:+.3f} to {row['high']:+.3f})"
        takes = f" ({row['takes']} would decide)" if row["takes"] else ""
        console.print(
            f"{row['arm']} against {row['reference']}: {row['difference']:+.3f}{span}: {row['verdict']}{takes}",
            markup=False,
        )


def _print_draws(study: dict[str, Any], drawn: arms.Arm, objective: str, console: Console) -> None:
    """The best draws by the first objective, those of the front before any other."""
    best = sorted(drawn.finished, key=lambda t: (t["number"] not in study["front"], -t["values"][objective]))
    table = _table(study["question"], ("trial", *study["objectives"], "drawn"))
    for trial in best[:BEST_TRIALS]:
        values = [f"{trial['values'][name]:.3f}" for name in study["objectives"]]
        table.add_row(str(trial["number"]), *values, Text(said_params(trial["params"])))
    console.print(table)
    console.print(
        f"The best of {len(drawn.finished)} drawn recipes ({_num_failed(drawn)} failed), of one seed each: a best of "
        "many looks better than it is."
    )


def said_params(params: Mapping[str, Any]) -> str:
    """What was drawn, in one line."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in params.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _num_failed(arm: arms.Arm) -> int:
    return sum(trial["state"] == "fail" for trial in arm.trials)


def _table(question: str, columns: Sequence[str]) -> Table:
    """Empty. What a study's author wrote is no markup."""
    table = Table(title=Text(question), title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("arm", "drawn") else "right")
    return table


def _span(interval: Interval | None) -> str:
    if interval is None or interval.low is None:
        return "needs two seeds"
    return f"{interval.low:.3f} to {interval.high:.3f}"
