"""Files of gigabytes: on the disk when they are closed, and out of the page cache by then.

A cache that grows is slow where a machine gets its memory as it is first touched, as virtual ones do: a file of 10 GB
went to the same disk at 0.3 GB/s through the cache and at 0.9 GB/s so.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

WINDOW_BYTES = 1 << 28
"""Twice as much waits in the page cache at most."""
COPIED_BYTES = 1 << 24
"""Read at once while copying."""


class LargeFile:
    """A new file, written from its beginning to its end, while the disk takes what was written before. hashed: whether
    `sha256` is asked for, which otherwise means to read it all again. fault: what `write` raised first, if anything.

    Raises:
        OSError: as `open` and `write`; `write` and `close` also for what an earlier write left to the disk.
    """

    def __init__(self, path: Path, *, hashed: bool = False) -> None:
        self._file = path.open("wb")
        self.fault: OSError | None = None
        self._digest = hashlib.sha256() if hashed else None
        self._disk = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None
        self._written = self._handed_over = 0

    def write(self, content: bytes | bytearray | memoryview) -> int:
        """Write bytes after those before; their number."""
        try:
            return self._write(memoryview(content).cast("B"))
        except OSError as error:
            self.fault = self.fault or error
            raise

    def _write(self, view: memoryview) -> int:
        for start in range(0, len(view), WINDOW_BYTES):
            part = view[start : start + WINDOW_BYTES]
            self._written += self._file.write(part)
            if self._digest is not None:
                self._digest.update(part)
            if self.tell() - self._handed_over >= WINDOW_BYTES:
                self._hand_over()
        return len(view)

    @property
    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        assert self._digest is not None, "the file is not hashed"
        return self._digest.hexdigest()

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Wait until the disk has all of it; closed again, nothing happens."""
        if self._file.closed:
            return
        try:
            self._hand_over()
            self._wait()
        finally:
            self._disk.shutdown()
            self._file.close()

    def _hand_over(self) -> None:
        """Let the disk begin with what was written since the last time, once it is done with what it has."""
        self._wait()
        self._file.flush()
        self._syncing = self._disk.submit(_to_disk, self._file.fileno(), self._handed_over)
        self._handed_over = self.tell()

    def _wait(self) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()


def _to_disk(descriptor: int, start: int) -> None:
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, 0, os.POSIX_FADV_DONTNEED)


def copy_large(source: str | Path, target: str | Path) -> None:
    """Copy a file's content. Raises: OSError, as `shutil.copyfile`."""
    buffer = memoryview(bytearray(COPIED_BYTES))
    with open(source, "rb", buffering=0) as content, closing(LargeFile(Path(target))) as file:
        while count := content.readinto(buffer):
            file.write(buffer[:count])


def sync_tree(folder: Path) -> None:
    """Wait until the disk has every file below `folder`, with their names."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():
            sync(path)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
