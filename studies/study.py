"""What a study is: a question, its arms and its space over a base recipe, and the values it maximises."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal, Protocol

import optuna

from workbench.common.errors import UserError
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping

BENCHES = {"t2i": "t2i_bench", "editing": "editing_bench"}
Sampler = Literal["tpe", "nsga2"]


class TrialFailed(Exception):
    """A trial that ended without a score; its message is what the study records."""


class Study(Protocol):
    """A module with these names.

    QUESTION: what the study answers, one sentence.
    ARMS: for replication over seeds, name -> overrides on the base recipe; the first is what the others are compared
        with. Empty: the study always searches.
    SEEDS: what every arm runs under unless told otherwise.
    OBJECTIVES: names of `objective_values`, all maximised: ("score",), or several for a Pareto front.
    SAMPLER: of the search; `tpe` is multi-objective where there are several objectives.
    suggest: for search, the base recipe with the trial's draws in it; what it draws from is the study's space.
    """

    QUESTION: str
    ARMS: dict[str, list[str]]
    SEEDS: tuple[int, ...]
    OBJECTIVES: tuple[str, ...]
    SAMPLER: Sampler

    def suggest(self, trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe: ...


def vary(base: Recipe, overrides: Iterable[str]) -> Recipe:
    """`base` with `section.key=value` overrides; `section.key*=factor` multiplies the base's own number.

    Raises: UserError if the outcome is not a valid recipe.
    """
    values = asdict(base)
    return from_mapping(values, [_absolute(values, item) for item in overrides], origin="study")


def _absolute(values: dict[str, Any], override: str) -> str:
    """`section.key*=factor` as `section.key=value`, whole numbers rounded; anything else as it is."""
    key, times, factor = override.partition("*=")
    if not times or "=" in key:
        return override
    section, _, name = key.partition(".")
    before = values.get(section, {}).get(name)
    try:
        after = float(before) * float(factor)
    except (TypeError, ValueError):
        raise UserError(f"{override}: {key} holds {before!r}, which is no number to multiply") from None
    return f"{key}={round(after) if isinstance(before, int) else after}"


def objective_values(metrics: dict[str, Any]) -> dict[str, float]:
    """What of `metrics.json` a study may maximise, those there are and finite: `t2i`, `editing` (means of the student's
    benches), `score` (the mean of them), `diversity` (the student's as a share of the teacher's).

    Raises: TrialFailed where it is not of the search split: no other may be searched on.
    """
    if metrics["split"] != "search":
        raise TrialFailed(f"the objective needs the search split, metrics.json holds {metrics['split']!r}")
    student = metrics["models"]["student"]
    found = {name: float(student[bench]["mean"]["mean"]) for name, bench in BENCHES.items() if student.get(bench)}
    if found:
        found["score"] = sum(found.values()) / len(found)
    if relative := (student.get("diversity") or {}).get("to_teacher"):
        found["diversity"] = float(relative["value"])
    return {name: value for name, value in found.items() if math.isfinite(value)}


def objectives(metrics: dict[str, Any], names: Iterable[str]) -> list[float]:
    """The values of `names`, in their order. Raises: TrialFailed naming the one that the student has none of."""
    found = objective_values(metrics)
    for name in names:
        if name not in found:
            raise TrialFailed(f"no finite {name} of the student; metrics.json gives {found or 'none'}")
    return [found[name] for name in names]
