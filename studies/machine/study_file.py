"""What a worker keeps of a trial; apart from the summary, whose libraries a worker does without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from studies.study import Study, objective_values, vary
from workbench.recipe.config import Recipe
from workbench.recipe.reading import flat_values


def headline(metrics: dict[str, Any]) -> dict[str, float]:
    """The student's scalars of `metrics.json`: what may be maximised, NFE, n, seconds per image, Frechet distance."""
    student = metrics["models"]["student"]
    found = objective_values(metrics, metrics["split"])
    found |= {name: float(student[name]) for name in ("nfe", "n", "seconds_per_image") if name in student}
    if student.get("frechet"):
        found["frechet"] = float(student["frechet"]["value"])
    return found


def differences(recipe: Recipe, base: Recipe) -> dict[str, str | float]:
    """What a trial's recipe sets otherwise than the base, dotted: its hyper-parameters. Where it is run is none."""
    elsewhere = replace(recipe, trainer=replace(recipe.trainer, folder=base.trainer.folder))
    ours, theirs = flat_values(elsewhere), flat_values(base)
    return {key: ours.get(key, 0.0) for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)}


def columns(study: Study, base: Recipe) -> dict[str, str | float]:
    """All that any arm sets, with what stands for a key that a recipe lacks. TensorBoard takes its columns from one
    trial alone, so every trial of a study must name them all."""
    recipes = [vary(base, arm) for arm in study.ARMS.values()]
    keys = sorted({key for recipe in recipes for key in differences(recipe, base)})
    known = [flat_values(recipe) for recipe in (base, *recipes)]
    return {key: "" if any(isinstance(flat.get(key), str) for flat in known) else 0.0 for key in keys}


def values_of(recipe: Recipe, columns: Mapping[str, str | float]) -> dict[str, str | float]:
    """The recipe's value in every column, of one type a column."""
    flat = flat_values(recipe)
    given = {key: flat.get(key, lacking) for key, lacking in columns.items()}
    return {key: str(value) if columns[key] == "" else value for key, value in given.items()}
