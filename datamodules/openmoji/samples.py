"""How many samples of each category are drawn from the world."""

from __future__ import annotations

from datamodules.openmoji.vocabulary import CATEGORIES
from workbench.recipe.config import Data

NAME = "openmoji"
"""`data.source` of the world."""
DEFAULT_COUNT = 200
"""Samples of each category of each task, where a recipe names no `data.samples`."""


def is_world(data: Data) -> bool:
    """Whether samples come from the world that ships."""
    return data.source == NAME


def samples_of(data: Data) -> dict[str, dict[str, int]]:
    """task -> category -> samples: `data.samples`, or DEFAULT_COUNT of every category where it is empty."""
    return data.samples or {task: dict.fromkeys(names, DEFAULT_COUNT) for task, names in CATEGORIES.items()}
