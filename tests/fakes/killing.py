"""Work that is killed before one of its file operations, in a fork of the test's process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR


def is_killed(work: Callable[[], object], at: int) -> bool:
    """Whether `work` was killed (SIGKILL) before its operation `at`, counted from 1 over files that it opens to write,
    renames and removals; False where it has ended well before."""
    child = os.fork()
    if child == 0:
        _work_until(work, at)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the work failed before its operation {at}"
    return code != 0


def _work_until(work: Callable[[], object], at: int) -> None:
    left = at

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if (opens and arguments[0] != os.devnull) or event in _CHANGES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(count)
        work()
        code = 0
    finally:
        # Nothing of the test's process may run twice.
        os._exit(code)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def die(*_: object, **__: object) -> None:
    """What a worker process does that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)
