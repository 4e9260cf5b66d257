"""What a study is: a question, its arms and its search space over a base recipe, and the values it maximises."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from workbench.common.errors import UserError
from workbench.evaluation.measures.catalogue import MEASURES
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping

if TYPE_CHECKING:
    # Each trial's process reads this file, and needs no Optuna.
    import optuna

BENCHES = {"t2i": "t2i_bench", "editing": "editing_bench"}
Sampler = Literal["tpe", "nsga2"]
Split = Literal["search", "report"]
Differences = Mapping[str, Any]
"""What a recipe sets otherwise than the base, nested by section: `{"optim": {"ema_decay": 0.9}}`. A mapping inside a
section (task ratios, schedules) replaces the base's as a whole; `Times(2)` stands for twice the base's number."""
Factors = Mapping[str, tuple[Differences, Differences]]
"""Name -> its two levels."""


class TrialFailed(Exception):
    """A trial that ended without a score; its message is what the study records."""


@dataclass(frozen=True)
class Times:
    """The base recipe's number times `factor`, rounded where it is a whole number."""

    factor: float


class Study(Protocol):
    """What the names in a study file mean; `studies/reading.py` reads one, and has the defaults.

    QUESTION: what the study answers, one sentence.
    ARMS: for replication over seeds, name -> differences from the base recipe; the first is what the others are
        compared with. Empty: the study always searches.
    FACTORS: instead of arms, name -> its low and its high level, for a screening of up to 16 of them: the arms are then
        the 16 or 32 runs of a two-level design, and the report has every factor's main effect.
    SEEDS: the seeds of every arm, unless the command names others.
    OBJECTIVES: names of `objective_values`, all maximised: ("score",), or several for a Pareto front.
    SAMPLER: of the search; `tpe` is multi-objective where there are several objectives.
    MARGIN: points of an objective below which a difference does not matter, fixed before the study is run.
    PRUNES: whether a search may give up a trial early; False where stability is the question.
    EXPECTS: arm -> what is predicted of it against the first arm, before it is run: "noisier", or an objective and a
        direction, "score worse".
    SPLIT: the cases that trials are scored on: `search`, or `report` for recipes that are chosen already.
    WORDS: arguments of the command that stand before those that are given.
    suggest: for search, the base recipe with the trial's draws in it; what it draws from is the study's space.
    """

    QUESTION: str
    ARMS: dict[str, Differences]
    FACTORS: Factors
    SEEDS: tuple[int, ...]
    OBJECTIVES: tuple[str, ...]
    SAMPLER: Sampler
    MARGIN: float
    PRUNES: bool
    EXPECTS: Mapping[str, str]
    SPLIT: Split
    WORDS: tuple[str, ...]

    def suggest(self, trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe: ...


def vary(base: Recipe, differences: Differences) -> Recipe:
    """`base` with `differences` in it. Raises: UserError if the outcome is not a valid recipe."""
    values = _merged(base, differences)
    # An arm is varied for every one of its trials, by every process that asks.
    key = repr(values)
    if key not in _VARIED:
        _VARIED[key] = from_mapping(values, origin="study")
    return copy.deepcopy(_VARIED[key])


_VARIED: dict[str, Recipe] = {}


def _merged(part: Any, differences: Differences, prefix: str = "") -> dict[str, Any]:
    """Plain values of a recipe, or of one of its sections, with `differences` in them."""
    values = asdict(part)
    sections = {item.name for item in fields(part) if is_dataclass(getattr(part, item.name))}
    for key, new in differences.items():
        if key in sections and isinstance(new, Mapping):
            values[key] = _merged(getattr(part, key), new, f"{prefix}{key}.")
        elif key in values and isinstance(new, Times):
            values[key] = _multiplied(f"{prefix}{key}", values[key], new)
        else:
            values[key] = new
    return values


def _multiplied(key: str, before: Any, times: Times) -> float:
    if isinstance(before, bool) or not isinstance(before, int | float):
        raise UserError(f"{key} holds {before!r}, which is not a number to multiply by {times.factor}")
    after = before * times.factor
    return round(after) if isinstance(before, int) else after


def objective_values(metrics: dict[str, Any], split: Split = "search") -> dict[str, float]:
    """The finite values of `metrics.json` that a study may maximise: `t2i` and `editing` (means of the student's
    benches), `score` (the mean of them), `worst` (the lowest category of either bench), `variety` (how freely the
    student chooses what prompts leave open), and those in MEASURES, negated where lower is better. Not the spread of
    answers to one prompt, `diversity` in the file: it is largest for blurred models.

    Raises: TrialFailed if the scores are not of this split: a search on any other than its own would spoil the report.
    """
    if metrics["split"] != split:
        raise TrialFailed(f"the objective needs the {split} split, metrics.json holds {metrics['split']!r}")
    student = metrics["models"]["student"]
    found = {name: float(student[bench]["mean"]["mean"]) for name, bench in BENCHES.items() if student.get(bench)}
    if found:
        found["score"] = sum(found.values()) / len(found)
    of_categories = [
        float(of["mean"]) for b in BENCHES.values() for key, of in (student.get(b) or {}).items() if key != "mean"
    ]
    if of_categories and all(map(math.isfinite, of_categories)):
        found["worst"] = min(of_categories)
    secondary = student.get("secondary") or {}
    for name, of in (secondary.get("measures") or {}).items():
        found[name] = MEASURES[name].sign * float(of["mean"])
    if secondary.get("variety"):
        found["variety"] = float(secondary["variety"]["value"])
    return {name: value for name, value in found.items() if math.isfinite(value)}


def objectives(metrics: dict[str, Any], names: Iterable[str], split: Split = "search") -> list[float]:
    """The values of `names`, in their order. Raises: TrialFailed naming the one that the student lacks."""
    found = objective_values(metrics, split)
    for name in names:
        if name not in found:
            raise TrialFailed(f"no finite {name} of the student; metrics.json gives {found or 'none'}")
    return [found[name] for name in names]
