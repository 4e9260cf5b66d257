"""What a study found: a table with intervals, `study.json` for the report, HParams for TensorBoard."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table
from scipy import stats

from datamodules.files import write_bytes
from studies.cells import error_of
from studies.seam import BENCHES
from workbench.config import Recipe

FINISHED = optuna.trial.TrialState.COMPLETE
FAILED = optuna.trial.TrialState.FAIL
SEARCH_ARM = "search"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` seeds with its Student-t interval; unbounded where one seed says nothing about the spread."""

    n: int
    mean: float
    low: float
    high: float


def estimate(scores: Sequence[float]) -> Estimate:
    """Interval of the mean of independent replicates."""
    n, mean = len(scores), float(np.mean(scores)) if scores else math.nan
    if n < 2:
        return Estimate(n, mean, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(scores, ddof=1) / math.sqrt(n))
    return Estimate(n, mean, mean - half, mean + half)


def arm_of(trial: optuna.trial.FrozenTrial) -> str:
    """Name of the arm, or `search` for a drawn recipe."""
    return str(trial.params.get("arm", SEARCH_ARM))


def _seed(trial: optuna.trial.FrozenTrial) -> int:
    """Seed of a replicate; drawn recipes are all different, so their number stands in."""
    return int(trial.params.get("seed", trial.number))


def scores_by_arm(study: optuna.Study) -> dict[str, dict[int, float]]:
    """arm -> seed -> score, finished trials only."""
    table: dict[str, dict[int, float]] = {}
    for trial in study.get_trials(deepcopy=False, states=(FINISHED,)):
        assert trial.value is not None
        table.setdefault(arm_of(trial), {})[_seed(trial)] = trial.value
    return table


def print_table(study: optuna.Study, question: str, console: Console) -> None:
    """Arms, best first, each with its number of seeds, mean and interval; then what the differences are worth."""
    table = Table(title=question, title_justify="left")
    for column in ("arm", "n", "failed", "mean", "95 % interval"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    scores = scores_by_arm(study)
    failed = {(arm_of(trial), _seed(trial)) for trial in study.get_trials(deepcopy=False, states=(FAILED,))}
    failures = Counter(arm for arm, seed in failed if seed not in scores.get(arm, {}))
    estimates = {arm: estimate(list(scores.get(arm, {}).values())) for arm in {**scores, **failures}}
    ranked = sorted(estimates, key=lambda arm: -estimates[arm].mean if estimates[arm].n else math.inf)
    for arm in ranked:
        found = estimates[arm]
        mean = f"{found.mean:.3f}" if found.n else "-"
        interval = f"{found.low:.3f} to {found.high:.3f}" if found.n > 1 else "needs two seeds"
        table.add_row(arm, str(found.n), str(failures[arm]), mean, interval)
    console.print(table)
    console.print("Mean of the student's two benches on the search split; n counts seeds, each a run of its own.")
    for arm in ranked[1:]:
        console.print(verdict(ranked[0], arm, scores.get(ranked[0], {}), scores.get(arm, {})))


def verdict(first: str, second: str, a: dict[int, float], b: dict[int, float]) -> str:
    """One line: the difference over the seeds that both arms ran, and whether it is outside the noise."""
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        return f"{first} against {second}: no difference can be shown, {len(shared)} shared seed(s); two at least"
    found = estimate([a[seed] - b[seed] for seed in shared])
    shown = "a difference" if found.low > 0 or found.high < 0 else "no difference shown"
    return f"{first} against {second}: {found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}, n={found.n}): {shown}"


def write_json(study: optuna.Study, name: str, question: str, storage: str, path: Path) -> None:
    """`study.json`: every trial by arm, failed ones with their error."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for trial in study.get_trials(deepcopy=False):
        arms.setdefault(arm_of(trial), []).append(
            {
                "number": trial.number,
                "run": trial.user_attrs.get("run"),
                "seed": trial.params.get("seed"),
                "state": trial.state.name.lower(),
                "score": trial.value if trial.state == FINISHED else None,
                "params": trial.params,
                "metrics": trial.user_attrs.get("metrics", {}),
                "error": error_of(trial),
            }
        )
    content = {
        "name": name,
        "question": question,
        "storage": storage,
        "arms": [{"name": arm, "trials": trials} for arm, trials in arms.items()],
    }
    write_bytes(path, json.dumps(content, indent=2).encode())


def headline(metrics: dict[str, Any]) -> dict[str, float]:
    """The student's scalars of `metrics.json`: NFE, n, seconds per image, Frechet distance and bench means."""
    student = metrics["models"]["student"]
    found = {name: float(student[name]) for name in ("nfe", "n", "seconds_per_image") if name in student}
    found |= {bench: float(student[bench]["mean"]["mean"]) for bench in BENCHES.values() if student.get(bench)}
    if student.get("frechet"):
        found["frechet"] = float(student["frechet"]["value"])
    return found


def differences(recipe: Recipe, base: Recipe) -> dict[str, str | float]:
    """What a trial's recipe sets otherwise than the base, dotted: its hyper-parameters. Where it is run is none."""
    elsewhere = replace(recipe, trainer=replace(recipe.trainer, folder=base.trainer.folder))
    ours, theirs = _flat(elsewhere), _flat(base)
    return {key: ours.get(key, 0.0) for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)}


def _flat(value: Any, prefix: str = "") -> dict[str, str | float]:
    if is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, dict):
        return {name: leaf for key, inner in value.items() for name, leaf in _flat(inner, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value if isinstance(value, int | float | str) else str(value)}


def log_hparams(folder: Path, run_name: str, hparams: dict[str, str | float], metrics: dict[str, float]) -> None:
    """One row of TensorBoard's HParams table."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=str(folder)) as writer:
        writer.add_hparams(hparams, {f"search/{name}": value for name, value in metrics.items()}, run_name=run_name)
