"""Files that are either whole or absent: atomic writes, checksums, free space, and the claim on an output folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import lock_descriptor

from workbench.common.errors import UserError
from workbench.common.outside import Outside, read_json

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK_BYTES = 1 << 20
WHOLE_BYTES, SAMPLED_BLOCKS, BLOCK_BYTES = 1 << 28, 4096, 4096
"""What `sampled_sha256_of_file` reads."""
LOCK = ".lock"
_DYING_S = 10.0
UNFINISHED = "unfinished.json"
"""Name of the marker next to shards that are still being written."""
_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EFBIG,
    errno.EIO,
)  # fmt: skip


def progress(download: bool = False, pace: bool = False) -> Progress:
    """Progress bar with the count done and the time left, and with `pace` how many are done a second."""
    # Rich takes a tenth of a second to import, and most commands show no bar.
    from rich import progress as bars

    count = (
        bars.TextColumn("{task.completed:,.0f} of {task.total:,.0f} bytes") if download else bars.MofNCompleteColumn()
    )

    class Pace(bars.ProgressColumn):
        def render(self, task: bars.Task) -> str:
            return f"{task.speed:,.1f}/s" if task.speed else ""

    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        count,
        *([Pace()] if pace else []),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        speed_estimate_period=300 if pace else 30,
    )


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its final name only when the block ends well; otherwise nothing is left. What a killed process
    left of it goes.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{_host()}.{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise UserError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _remove_leftovers(path: Path) -> None:
    """Remove what processes of this machine left of `path` when they were killed."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.(?P<pid>\d+)-{_host()}\.[0-9a-f]+\.part")
    for name in os.listdir(path.parent):
        if (found := ours.fullmatch(name)) and is_gone(found["pid"]):
            with suppress(OSError):
                (path.parent / name).unlink()


@cache
def _host() -> str:
    """This machine, as short as the name of a file asks for."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with whole_file(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path` atomically."""
    write_bytes(path, json.dumps(value, separators=(",", ":")).encode())


def sampled_sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's size and of `SAMPLED_BLOCKS` blocks spaced evenly from its first byte to its last; of all
    of its content where it has at most `WHOLE_BYTES`. It tells two trained networks apart, and no damage."""
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return sha256_of_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb", buffering=0) as file:
        for i in range(SAMPLED_BLOCKS):
            file.seek((size - BLOCK_BYTES) * i // (SAMPLED_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_hash(settings: Any) -> str:
    """Hex sha256 of JSON-able settings, independent of the order of keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def free_bytes(folder: Path) -> int:
    """Free space of the disk that `folder` lies on, or would."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """UserError unless the disk that holds `folder` has `num_bytes` free."""
    free = free_bytes(folder)
    if free < num_bytes:
        raise UserError(
            f"{what} needs about {num_bytes / 1e6:,.0f} MB in {folder}, {free / 1e6:,.0f} MB are free; "
            "free space or choose another folder"
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if absent, against other processes of this machine: who comes second waits."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    try:
        if not lock_descriptor(descriptor, blocking=False):
            print(f"another process writes {folder}: waiting for it")
            lock_descriptor(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder`, made if absent, against other processes: who comes second is told who holds it.

    Raises:
        UserError: naming the other process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    with open(descriptor, "r+") as file:
        gives_up = time.monotonic() + _DYING_S
        while not lock_descriptor(descriptor, blocking=False):
            file.seek(0)
            pid, _, host = file.read(200).strip().partition(" ")
            # Workers of a process that was killed may hold its lock a little longer.
            if not (host == socket.gethostname() and is_gone(pid)) or time.monotonic() > gives_up:
                raise UserError(
                    f"{folder} is in use by process {pid} on {host}: wait for it to end, or choose another {what}"
                )
            time.sleep(0.1)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        yield


def is_gone(pid: str) -> bool:
    """Whether this machine has no such process."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError):  # not written yet
        return True
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


class _MadeFrom(Outside):
    """What `claim` reads of the files that it is about."""

    settings: str | None = None


def claim(folder: Path, settings: str, finished: str, key: str, command: str) -> bool:
    """Take `folder` for an output made from `settings` (a hash). True if it is complete already.

    `finished` (pack.json, index.json) is written last by the caller and carries the hash, so its presence means
    completeness. Until then a file `unfinished.json` marks whose half-done shards these are.

    Raises:
        UserError: the folder holds something made from other settings, or shards of unknown origin.
    """
    complete = is_complete(folder, settings, finished, key, command)
    if complete:
        _tidy(folder)
    else:
        write_json(folder / UNFINISHED, {"settings": settings})
    return complete


def is_complete(folder: Path, settings: str, finished: str, key: str, command: str) -> bool:
    """What `claim` would say of `folder`, and as it raises; nothing is written."""
    mend = f"choose another {key} or delete the folder"
    marker, has_shards = folder / UNFINISHED, any(folder.glob("*.tar"))
    if (folder / finished).exists():
        if read_json(folder / finished, _MadeFrom, mend).settings != settings:
            raise UserError(f"{folder} was made by `workbench {command}` from other settings or inputs; {mend}")
        return True
    if marker.exists():
        # Without a whole shard the claim binds nobody: what failed before the first one may be mended and begun anew.
        if has_shards and read_json(marker, _MadeFrom, mend).settings != settings:
            raise UserError(f"{folder} holds an unfinished `workbench {command}` with other settings; {mend}")
    elif has_shards:
        raise UserError(f"{folder} holds shards that `workbench {command}` did not write; {mend}")
    return False


@contextmanager
def given_up_if_empty(folder: Path) -> Iterator[None]:
    """When the block fails before the first whole shard, the claim on `folder` goes with it: inputs may be mended."""
    try:
        yield
    except BaseException:
        if not any(folder.glob("*.tar")):
            (folder / UNFINISHED).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise


def release(folder: Path, finished: str, value: dict[str, Any]) -> None:
    """Write the `finished` file, last of all, and drop the marker of `claim` and what killed runs left behind."""
    write_json(folder / finished, value)
    _tidy(folder)


def _tidy(folder: Path) -> None:
    remove_if_there(*folder.glob(".*.part"), *folder.glob(UNFINISHED))


def remove_if_there(*paths: Path) -> None:
    """Remove files that nothing reads any longer, as far as that can be: a finished folder may be read-only."""
    for path in paths:
        with suppress(OSError):
            path.unlink()
