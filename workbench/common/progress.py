"""One bar for a long job of many parts, with the time left; a part has a bar of its own only where no job has one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_BARS: ContextVar[Progress | None] = ContextVar("bars of the job", default=None)


@contextmanager
def job(what: str, total: float) -> Iterator[None]:
    """Show the bar of a job of `total` units on a terminal, unless this is a part of a job that has one."""
    if _BARS.get() is not None:
        yield
        return
    from rich import progress as bars

    pace = (bars.TaskProgressColumn(), bars.TimeElapsedColumn(), bars.TextColumn("left"), bars.TimeRemainingColumn())
    columns = (bars.TextColumn("{task.description}", markup=False), bars.BarColumn(), *pace)
    # The pace of the last minutes: parts of a job differ in theirs.
    shown = bars.Progress(*columns, transient=True, disable=not sys.stdout.isatty(), speed_estimate_period=120)
    token = _BARS.set(shown)
    try:
        with shown:
            shown.add_task(what, total=total)
            yield
    finally:
        _BARS.reset(token)


def advance(units: float) -> None:
    """Say that `units` of the job are done; nothing where there is no job."""
    shown = _BARS.get()
    if shown is not None:
        shown.advance(shown.task_ids[0], units)


def doing(what: str) -> None:
    """Name the part of the job that begins."""
    shown = _BARS.get()
    if shown is not None:
        shown.update(shown.task_ids[0], description=what)


def has_own_bar() -> bool:
    """Whether a part may show a bar: there is a terminal, and no job that has one."""
    return _BARS.get() is None and sys.stdout.isatty()
