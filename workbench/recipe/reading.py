"""Recipe files: YAML holds differences from the defaults, `key=value` words go on top, errors name key and remedy."""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from workbench.common.errors import UserError, nearest
from workbench.recipe.checks import require
from workbench.recipe.config import Guidance, Recipe, Schedule

# A recipe is shared and its values go into addresses and files: it must not read secrets out of the environment.
OmegaConf.clear_resolver("oc.env")
BRACES = "; inside braces a space follows each colon: {key: value}"
# omegaconf raises these built-in exceptions besides its own: a scalar as the whole document (OSError, AssertionError),
# a list where a mapping belongs, a number out of range, an alias of itself.
UNREADABLE = (
    OmegaConfBaseException,
    YAMLError,
    AssertionError,
    AttributeError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Recipe of a YAML file with `section.key=value` overrides on top.

    A mapping (task ratios, lambda tables, samples) given as a unit, in the file or as `key={...}`, replaces the default
    mapping; a dotted override of one of its keys changes that key alone.

    Raises:
        UserError: missing file, broken YAML, unknown key (with the nearest known one), impossible value.
    """
    path = Path(path)
    require(path.is_file(), f"no recipe at {path}")
    try:
        from_file = OmegaConf.load(path)
    except UNREADABLE as error:
        raise UserError(f"{path} is not valid YAML: {_first_line(error)}") from error
    require(
        isinstance(from_file, DictConfig), f"{path} must hold a mapping of sections, not {type(from_file).__name__}"
    )
    return from_mapping(OmegaConf.to_container(from_file), overrides, origin=str(path))


def from_mapping(values: Any, overrides: Iterable[str] = (), origin: str = "recipe") -> Recipe:
    """As `load`, from nested plain values."""
    overrides = list(overrides)
    for item in overrides:
        require("=" in item, f"{item!r} is not of the form section.key=value")
    layers = [_from_dots(item) for item in overrides]
    _check_keys(Recipe, values, origin)
    for layer in layers:
        _check_keys(Recipe, layer, "override")
    values, layers = _switches(Recipe, values), [_switches(Recipe, layer) for layer in layers]
    part, hint = origin, ""
    try:
        merged: Any = copy.deepcopy(_defaults())
        _clear_mappings(merged, Recipe, values)
        merged = OmegaConf.unsafe_merge(merged, values)
        for item, layer in zip(overrides, layers, strict=True):
            part, hint = f"override {item!r}", BRACES if "{" in item else ""
            if item.partition("=")[2].lstrip().startswith("{"):
                _clear_mappings(merged, Recipe, layer)
            merged = OmegaConf.unsafe_merge(merged, layer)
        part, hint = origin, ""
        recipe = OmegaConf.to_object(merged)
    except UNREADABLE as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{part}: {f'{key}: ' if key else ''}{_first_line(error)}{hint}") from error
    assert isinstance(recipe, Recipe)
    return recipe


@cache
def _defaults() -> DictConfig:
    """The typed recipe of defaults. Walking its dataclasses takes longer than all the rest of reading a recipe."""
    return OmegaConf.structured(Recipe)


def _from_dots(item: str) -> Any:
    """Nested values of one `section.key=value`."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([item]))
    except UNREADABLE as error:
        hint = BRACES if "{" in item else ""
        raise UserError(f"cannot read the override {item!r}: {_first_line(error)}{hint}") from error


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every field spelled out."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(recipe)))


def flat_values(value: Any, prefix: str = "") -> dict[str, str | float]:
    """Every value of a recipe under its dotted key."""
    if is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, dict):
        return {
            name: leaf for key, inner in value.items() for name, leaf in flat_values(inner, f"{prefix}{key}.").items()
        }
    return {prefix.rstrip("."): value if isinstance(value, int | float | str) else str(value)}


def recipe_hash(recipe: Recipe) -> str:
    """Twelve hex digits that name the resolved recipe, the run folder not counted."""
    nameless = replace(recipe, trainer=replace(recipe.trainer, folder=""))
    return hashlib.sha256(to_yaml(nameless).encode()).hexdigest()[:12]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _check_keys(schema: type, values: Any, origin: str, prefix: str = "") -> None:
    """Unknown keys, before omegaconf sees them, so that the message names the full key and the nearest one."""
    require(isinstance(values, dict), f"{origin}: {prefix.rstrip('.') or 'a recipe'} must be a mapping of keys")
    known = {item.name: item for item in fields(schema)}
    for key, value in values.items():
        if key not in known:
            hint = meant(str(key), known) if schema is Recipe else _elsewhere(str(key)) or nearest(str(key), known)
            raise UserError(f"{origin}: unknown key {prefix}{key}{hint}; known here: {', '.join(known)}")
        section = _section(schema, key)
        if section is not None:
            _check_keys(section, value, origin, f"{prefix}{key}.")
        elif schema is Guidance and key == "schedules" and isinstance(value, dict):
            for name, schedule in value.items():
                _check_keys(Schedule, schedule, origin, f"{prefix}{key}.{name}.")


def meant(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of `known` and of all keys without their sections, or nothing."""
    known = list(known)
    close = difflib.get_close_matches(name[:200], [*known, *_dotted()], n=1, cutoff=0.5)
    if close and close[0] in known:
        return f" (did you mean {close[0]!r}?)"
    return _elsewhere(close[0]) if close else ""


def _elsewhere(name: str) -> str:
    found = _dotted().get(name, [])
    return f" (did you mean {' or '.join(repr(key) for key in found)}?)" if found else ""


@cache
def _dotted() -> dict[str, list[str]]:
    """Key of a section -> the full keys that it may stand for."""
    found: dict[str, list[str]] = {}
    for section in fields(Recipe):
        schema = _section(Recipe, section.name)
        for item in fields(schema) if schema is not None else ():
            found.setdefault(item.name, []).append(f"{section.name}.{item.name}")
    return found


def _switches(schema: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with words that YAML 1.1 reads as booleans (`on`, `off`, `yes`, `no`) as words again where a choice
    offers them."""
    hints = get_type_hints(schema)
    found: dict[str, Any] = {}
    for key, value in values.items():
        section = _section(schema, key)
        if section is not None:
            found[key] = _switches(section, value)
        elif isinstance(value, bool):
            words = ("on", "yes") if value else ("off", "no")
            found[key] = next((word for word in words if word in get_args(hints[key])), value)
        else:
            found[key] = value
    return found


def _section(schema: type, key: str) -> type | None:
    """The dataclass behind a field of the recipe, or None for a plain value."""
    factory: Any = next(item.default_factory for item in fields(schema) if item.name == key)
    return factory if isinstance(factory, type) and is_dataclass(factory) else None


def _clear_mappings(config: Any, schema: type, values: Any) -> None:
    """Empty every mapping field of `config` that `values` sets, so that merging replaces it."""
    for key, value in values.items():
        section = _section(schema, key)
        if section is not None:
            _clear_mappings(config[key], section, value)
        elif isinstance(config[key], DictConfig):
            with read_write(config):
                config[key] = {}
