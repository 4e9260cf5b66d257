"""The one exception that a user is meant to read, and help with a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can correct: one line that names the thing and what to do. The command exits with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the name in `known` that is closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
