"""Two parts of a recorded step beside each other: the kernels of a small network leave most of a GPU idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
_SIDE: ContextVar[Any] = ContextVar("side", default=None)


@contextmanager
def opened(side: Any) -> Iterator[None]:
    """Within this, `beside` has the stream `side` for a second part. None: it has none."""
    token = _SIDE.set(side)
    try:
        yield
    finally:
        _SIDE.reset(token)


def fit(parts: Sequence[Callable[[], Any]]) -> bool:
    """Whether `beside` would run these beside each other: lanes are open, and there are two."""
    return _SIDE.get() is not None and len(parts) == 2


def beside(parts: Sequence[Callable[[], Result]]) -> list[Result]:
    """What each part returns. Two parts have a stream each where lanes are open, else one follows the other: neither
    may read what the other writes."""
    if not fit(parts):
        return [part() for part in parts]
    first, second = parts
    current, side = torch.cuda.current_stream(), _SIDE.get()
    side.wait_stream(current)
    found = [first()]
    with torch.cuda.stream(side):
        found.append(second())
    current.wait_stream(side)
    return found


def have_room() -> bool:
    """Whether the GPU has free what this process has needed so far: parts beside each other share no memory."""
    free, _ = torch.cuda.mem_get_info()
    return free > torch.cuda.max_memory_allocated()
