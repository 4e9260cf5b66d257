"""The one exception that a user is meant to read, and help with a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST_MESSAGE = 1500


class UserError(Exception):
    """An error that the user can correct: one line that names the thing and what to do. The command exits with 2.

    A value that it quotes may be of any length: the middle of a long message is left out. is_repeated: another process
    of this run prints the same line.
    """

    is_repeated = False

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message, _LONGEST_MESSAGE))


def shortened(text: str, longest: int) -> str:
    """`text`, without its middle where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]} [... {len(text) - longest:,} characters ...] {text[-longest // 3 :]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the name in `known` that is closest to `name`, or nothing."""
    close = difflib.get_close_matches(name[:200], list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
