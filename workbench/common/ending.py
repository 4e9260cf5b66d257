"""How a command ends: its exit code, and one line of what is wrong.

Exit codes: 0 done, 1 unexpected error, 2 something the user can mend, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable

from workbench.common.errors import UserError, shortened
from workbench.common.quiet import quiet

LONGEST_UNEXPECTED = 600
"""Characters of an unexpected error's message: a compiler's is a hundred thousand."""
MENDABLE_ERRNOS = (
    errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR,
    errno.ENOTDIR, errno.EFBIG, errno.EIO,
)  # fmt: skip
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def exit_code(command: Callable[[], None], debug: bool) -> int:
    """Run a command to its end. One of several processes that fails does not return (see `ranks.leave`).

    debug: print tracebacks and the libraries' own messages.
    """
    code, said = _run(command, debug)
    if code != 0 and "torch.distributed" in sys.modules:
        from workbench.common import ranks

        ranks.leave(code, said)
    return code


def _run(command: Callable[[], None], debug: bool) -> tuple[int, bool]:
    """The exit code, and whether this process has said why it is not 0."""
    try:
        with quiet(debug):
            command()
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        # Lightning's trainer turns an interrupt and a SIGTERM into SystemExits of its own.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _interrupted()
        if _is_termination(stop):
            return _fail(143, "terminated: the same command continues")
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)
    return 0, False


def _is_termination(stop: SystemExit) -> bool:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    return isinstance(stop, SIGTERMException)


def _interrupted() -> tuple[int, bool]:
    return _fail(130, "interrupted: the same command continues")


def _report(error: Exception) -> tuple[int, bool]:
    """One line on stderr, unless another rank says it; as `_run`."""
    match error:
        case UserError():
            return (2, False) if error.is_repeated else _fail(2, f"error: {error}")
        case OSError() if error.errno in MENDABLE_ERRNOS:
            hint = "; free some space and give the same command again" if error.errno in FULL_ERRNOS else ""
            return _fail(2, f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}{hint}")
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":  # torch's
            return _fail(2, f"error: {str(error).partition('. GPU ')[0]}: see `When memory runs out` in docs/scale.md")
        case _:
            hint = "(run again with --debug for the traceback)"
            told = shortened(" ".join(str(error).split()), LONGEST_UNEXPECTED)
            return _fail(1, f"error: unexpected {type(error).__name__}: {told} {hint}")


def _fail(code: int, message: str) -> tuple[int, bool]:
    sys.stderr.write(f"{' '.join(message.split())}\n")  # in one piece: several ranks may fail at once
    return code, True
