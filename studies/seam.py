"""What a study is: a question, its arms and its space, over a base recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Protocol

import optuna

from workbench.config import Recipe
from workbench.recipes import from_mapping


class Study(Protocol):
    """A module with these three names.

    QUESTION: what the study answers, one sentence.
    ARMS: for replication over seeds, name -> overrides on the base recipe.
    suggest: for search, the base recipe with the trial's draws in it; what it draws from is the study's space.
    """

    QUESTION: str
    ARMS: dict[str, list[str]]

    def suggest(self, trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe: ...


def vary(base: Recipe, overrides: Iterable[str]) -> Recipe:
    """`base` with `section.key=value` overrides; `UserError` if the outcome is not a valid recipe."""
    return from_mapping(asdict(base), overrides, origin="study")
