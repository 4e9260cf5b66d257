"""Source pictures of an edit by their names: `source` is the first, `source_2` the second, and so on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from workbench.common.errors import UserError

Picture = TypeVar("Picture")
_SOURCE = re.compile(r"\.source(?:[._-]?([0-9]{1,3}))?\Z", re.IGNORECASE)
_NAME = re.compile(r"source(?:_([0-9]+))?")


def split_source(stem: str) -> tuple[str, int] | None:
    """Stem of the sample and number of the source, of a file without its suffix: `a.source` gives `a` and 1,
    `a.source_2`, `a.source-2`, `a.source.2` and `a.source2` give `a` and 2. None for no source."""
    found = _SOURCE.search(stem)
    return (stem[: found.start()], int(found[1] or 1)) if found else None


def source_name(number: int) -> str:
    """Name of the source of a number, from 1 on."""
    return "source" if number == 1 else f"source_{number}"


def source_number(name: str) -> int | None:
    """Inverse of `source_name`; None for another name."""
    found = _NAME.fullmatch(name)
    return int(found[1] or 1) if found else None


def in_order(found: Mapping[int, Picture], where: str) -> tuple[Picture, ...]:
    """Sources in the order of their numbers. Raises: UserError naming `where`, for numbers that are not 1, 2, 3, ..."""
    numbers = sorted(found)
    if numbers != list(range(1, len(numbers) + 1)):
        listed = ", ".join(source_name(number) for number in numbers)
        raise UserError(f"{where}: has {listed}: sources are numbered 1, 2, 3 and so on without a gap")
    return tuple(found[number] for number in numbers)
