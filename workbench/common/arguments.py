"""Options of a command from `key=value` items of its command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from workbench.common.errors import UserError, nearest

OmegaConf.clear_resolver("oc.env")  # see workbench/recipe/reading.py
Options = TypeVar("Options")


def read_options(kind: type[Options], items: Sequence[str], preset: Mapping[str, Any] | None = None) -> Options:
    """An instance of the dataclass `kind`: its defaults, then `preset`, then `items`. Values are YAML, but for
    options of type `str` or `Literal`: 5:5 is no number.

    Raises:
        UserError: an item without `=`, an unknown option, or a value that it cannot have.
    """
    # Annotations as text, which they are wherever annotations are postponed.
    types = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    literal: dict[str, str] = {}
    parsed = []
    for item in items:
        key, equals, value = item.partition("=")
        name = key.partition(".")[0]
        if not equals:
            raise UserError(f"{item!r} is no option of the form key=value")
        if name not in types:
            raise UserError(f"{item!r} is no option{nearest(name, types)}; there are {', '.join(types)}")
        if str(types[name]).startswith(("str", "Literal")):
            literal[name] = value
        else:
            parsed.append(item)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), preset or {}, OmegaConf.from_dotlist(parsed), literal)
        options = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(options, kind)
    return options
