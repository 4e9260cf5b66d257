"""The dataclasses of `metrics.json` to and from what JSON holds."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.measures.interval import Interval

INLINE: Mapping[str, Any] = {"inline": True}
"""Metadata of a field whose items stand in the object that holds it."""
LEFT_OUT: Mapping[str, Any] = {"left_out": True}
"""Metadata of a field that is not written where it is empty."""
RENAMED: Mapping[str, Any] = {"older_key": "beside"}
"""Metadata of a field that older files hold under another key."""


def to_plain(value: Any) -> Any:
    """What JSON holds of a value; NaN is null."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if not is_dataclass(value):
        return value
    found: dict[str, Any] = {}
    for item in fields(value):
        inner = getattr(value, item.name)
        if item.metadata.get("inline"):
            found |= to_plain(inner)
        elif not item.metadata.get("left_out") or (inner is not None and inner != {}):
            found[item.name] = to_plain(inner)
    return found


def from_plain(kind: Any, value: Any) -> Any:
    """`value` of a JSON file as `kind`: a dataclass, a dict, list or optional of such, or a plain value."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else from_plain(arguments[0], value)
    if origin is dict:
        return {key: from_plain(arguments[1], item) for key, item in dict(value).items()}
    if origin is list:
        return [from_plain(arguments[0], item) for item in value]
    if kind is Interval:
        low, high = (from_plain(float | None, value.get(name)) for name in ("low", "high"))
        return Interval(from_plain(float, value["mean"]), low, high, from_plain(int, value.get("n", 0)))
    if kind is float and value is None:
        return math.nan
    if kind in (int, float, str):
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return value
    if not isinstance(kind, type) or not is_dataclass(kind):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{kind} needs an object, not {value!r}")
    given: dict[str, Any] = {}
    hints = _hints(kind)
    for item in fields(kind):
        older = item.metadata.get("older_key")
        if item.metadata.get("inline"):
            benchmarks = {bench: value[bench] for bench in BENCHES.values() if bench in value}
            given[item.name] = from_plain(hints[item.name], benchmarks)
        elif item.name in value or older in value:
            given[item.name] = from_plain(hints[item.name], value[item.name if item.name in value else older])
    return kind(**given)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """Field of a dataclass -> its type."""
    return get_type_hints(kind)
