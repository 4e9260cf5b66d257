"""What makes a study the same study: its base recipe, its arms, its objectives and its margin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studies.machine.study_file import differences
from studies.study import Study
from workbench.recipe.config import Recipe
from workbench.recipe.reading import flat_values

_OWN = ("seed", "trainer.folder")
"""Keys of the base recipe that the study sets for every trial."""


def definition_of(study: Study, base: Recipe, arms: Mapping[str, Recipe]) -> dict[str, Any]:
    """As the storage keeps it."""
    return {
        "recipe": {key: value for key, value in flat_values(base).items() if key not in _OWN},
        "arms": {arm: differences(recipe, base) for arm, recipe in arms.items()},
        "objectives": list(study.OBJECTIVES),
        "margin": study.MARGIN,
        **({"expects": dict(study.EXPECTS)} if study.EXPECTS else {}),
    }


def definition_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words, empty where nothing does. A key that recipes had not yet stands for its default."""
    defaults = flat_values(Recipe())
    old, new = before.get("recipe", {}), now["recipe"]
    found = [
        f"{key} was {old.get(key, defaults.get(key))}, is {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key, defaults.get(key)) != new.get(key)
    ]
    arms, others = before.get("arms", {}), now["arms"]
    changed = [arm for arm in {**arms, **others} if arms.get(arm) != others.get(arm)]
    found += [f"arm {arm!r} is {_state(arm, arms, others)}" for arm in changed]
    for name in ("objectives", "margin", "expects"):
        if before.get(name) != now.get(name):
            found.append(f"{name} was {before.get(name)}, is {now.get(name)}")
    return "; ".join(found)


def _state(arm: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if arm not in before:
        return "new"
    return "gone" if arm not in now else "another recipe"
