"""The `key=value` arguments of `workbench study`: the study's own options, and overrides of the base recipe."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from workbench.common.errors import UserError
from workbench.recipe.config import Recipe
from workbench.recipe.reading import meant

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Options:
    """How a study is run.

    recipe: base recipe of all trials. folder: the study folder. storage: any Optuna URL, or journal:FILE on a disk that
    hosts share.
    seeds: replicates of every arm. arms: those that this call runs, all when empty.
    search: draw recipes from the study's space rather than replicate its arms.
    trials: of a search, so many altogether; of a replication, at most so many in this call, all when absent.
    workers: processes that run trials side by side. devices: GPUs to spread them over, by the numbers that
    CUDA_VISIBLE_DEVICES takes; all workers on the first one when empty.
    budget_s: no trial is begun that would end later than this after the start.
    noise_floor: standard deviation over seeds inside which a search prunes nothing.
    overrides: of the base recipe.
    """

    recipe: Path
    folder: Path
    storage: str
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    trials: int | None
    search: bool
    workers: int
    devices: tuple[str, ...]
    budget_s: float | None
    noise_floor: float | None
    overrides: tuple[str, ...]


STUDY_OPTIONS = (
    "recipe", "folder", "storage", "seeds", "arms", "trials", "search", "workers", "devices", "budget", "noise_floor",
    "smoke",
)  # fmt: skip
SEARCH_TRIALS = 20


def base_words(words: Iterable[str]) -> list[str]:
    """Those of a study's arguments that give its base recipe."""
    return [word for word in words if word.partition("=")[0] in ("recipe", "smoke") or "." in word.partition("=")[0]]


def parse(
    name: str,
    words: Iterable[str],
    *,
    default_seeds: Sequence[int] = (0, 1, 2),
    must_search: bool = False,
    known_arms: Collection[str] = (),
) -> Options:
    """Options of study `name`; what carries a section of the recipe is kept as an override.

    default_seeds: where the arguments name none. must_search: a study without arms can do nothing else.
    known_arms: whose names may hold commas.

    Raises: UserError naming the word that is neither, or the value that cannot be read.
    """
    own: dict[str, str] = {}
    overrides: list[str] = []
    sections = {item.name for item in fields(Recipe)} - {"seed"}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is not of the form key=value")
        if key in STUDY_OPTIONS:
            own[key] = value
        elif key == "trainer.folder":
            raise UserError("every trial has its own run folder: name the study's with folder=, not trainer.folder")
        elif key.split(".")[0] in sections:
            overrides.append(word)
        elif key == "seed":
            raise UserError("a study's trials take their seeds from seeds=0,1,2, not from seed=")
        else:
            hint = meant(key, [*STUDY_OPTIONS, *sections])
            raise UserError(
                f"unknown option {key!r}{hint}; a study takes {', '.join(STUDY_OPTIONS)} and section.key=value"
            )
    smoke, search = _flag(own, "smoke"), _flag(own, "search") or must_search
    seeds = own.get("seeds", ",".join(map(str, default_seeds)))
    if search and "seeds" in own and "," in seeds:
        raise UserError(f"seeds={seeds}: a search draws and runs under one seed; give one, or leave seeds= out")
    folder = Path(own.get("folder", f"runs/studies/{name}"))
    if "storage" not in own and set(str(folder)) & set("?#%"):
        raise UserError(f"folder={folder} holds ?, # or %, which an address of a data base cannot: give another name")
    trials = _whole("trials", own["trials"], least=1) if "trials" in own else None
    return Options(
        recipe=Path(own.get("recipe", RECIPES / ("smoke.yaml" if smoke else "demo.yaml"))),
        folder=folder,
        storage=own.get("storage", f"sqlite:///{folder / 'study.db'}"),
        seeds=tuple(_whole("seeds", seed, least=0) for seed in seeds.strip("[]").split(",")),
        arms=_arms(own.get("arms", ""), known_arms),
        trials=SEARCH_TRIALS if search and trials is None else trials,
        search=search,
        workers=_whole("workers", own.get("workers", "1"), least=1),
        devices=_names(own.get("devices", "")),
        budget_s=60 * positive_number("budget", own["budget"]) if "budget" in own else None,
        noise_floor=positive_number("noise_floor", own["noise_floor"]) if "noise_floor" in own else None,
        overrides=tuple(overrides),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.strip("[]").split(",") if item.strip())


def _arms(text: str, known: Collection[str]) -> tuple[str, ...]:
    """Names between commas and, if need be, in brackets; of names that hold commas or brackets themselves those that
    are known."""
    found = _whole_names(text, known)
    return found if all(name in known for name in found) else _whole_names(text.strip("[]"), known)


def _whole_names(text: str, known: Collection[str]) -> tuple[str, ...]:
    """The longest known name first, at every place."""
    by_words = {_words(name): name for name in known}
    words, found = _words(text), []
    while words:
        size = next((size for size in range(len(words), 0, -1) if words[:size] in by_words), 1)
        found.append(by_words.get(words[:size], words[0]))
        words = words[size:]
    return tuple(name for name in found if name)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _flag(own: dict[str, str], key: str) -> bool:
    match own.get(key, "false").lower():
        case "true":
            return True
        case "false":
            return False
        case other:
            raise UserError(f"{key}={other} must be true or false")


def positive_number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{key}: {text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise UserError(f"{key} must be above 0, got {value}")
    return value


def _whole(key: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{key}: {text!r} is not a whole number") from None
    if value < least:
        raise UserError(f"{key} must be at least {least}, got {value}")
    return value
