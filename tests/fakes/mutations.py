"""Seeded damage: to bytes, to JSON, to tars."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

WEIRD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "5", "x" * 70_000, "../../../escaped", "/escaped",
    "nul\0", "\ud800", "javascript:alert(1)", "<script>", [], {}, [None], {"a": None}, [[[]]], {"": {}}, [1, 2],
    "\u202e", "${oc.env:HOME}", "🦊", ["x"] * 1000,
)  # fmt: skip
"""Values that nobody asked for."""


def bytes_of(random_: random.Random, content: bytes) -> bytes:
    """One to three of: a flipped bit, a cut, a hole of zeros, a doubled or inserted part."""
    found = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 3))):
        at, size = random_.randrange(max(1, len(found))), random_.choice((1, 8, 512, 4096))
        match random_.choice(("flip", "flip", "flip", "cut", "zero", "double", "insert", "empty")):
            case "flip" if found:
                found[at] ^= 1 << random_.randrange(8)
            case "cut":
                del found[at:]
            case "zero":
                found[at : at + size] = bytes(len(found[at : at + size]))
            case "double":
                found[at:at] = found[at : at + size]
            case "insert":
                found[at:at] = random_.randbytes(size)
            case "empty" if random_.random() < 0.2:
                found.clear()
    return bytes(found)


def value_of(random_: random.Random, value: Any) -> Any:
    """`value` with one of its parts replaced, dropped, doubled or renamed."""
    root: list[Any] = [copy.deepcopy(value)]
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and random_.random() < 0.85:
        holder = holder[key]
        key = random_.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match random_.choice(("replace", "replace", "replace", "replace", "drop", "double", "rename")):
        case "drop" if holder is not root:
            del holder[key]
        case "double" if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case "rename" if isinstance(holder, dict):
            holder[str(random_.choice(WEIRD))] = holder.pop(key)
        case _:
            holder[key] = random_.choice(WEIRD)
    return root[0]


def json_of(random_: random.Random, value: Any) -> bytes:
    """JSON of a damaged value, or damaged JSON."""
    if random_.random() < 0.7:
        return json.dumps(value_of(random_, value)).encode()
    content = json.dumps(value).encode()
    match random_.choice(("bytes", "bytes", "deep", "deep part", "latin", "nan")):
        case "deep":
            return b"[" * 100_000
        case "deep part":
            at = random_.randrange(len(content))
            return content[:at] + b'{"a":' * 5_000 + content[at:]
        case "latin":
            at = random_.randrange(len(content))
            return content[:at] + b"\xff" + content[at:]
        case "nan":
            return content.replace(b"1", b"NaN", 1)
        case _:
            return bytes_of(random_, content)


def lines_of(random_: random.Random, rows: list[Any]) -> bytes:
    """JSON lines of which one is damaged."""
    at = random_.randrange(len(rows))
    lines = (json_of(random_, row) if i == at else json.dumps(row).encode() for i, row in enumerate(rows))
    return b"".join(line + b"\n" for line in lines)
