"""Files of a checkpoint with their size and hash, which are found while torch writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem

from workbench.common import ranks
from workbench.common.files import sha256_of_file
from workbench.common.large_files import LargeFile
from workbench.common.outside import Count, Outside, Sha256


class CountedFile(Outside):
    """A file as it was written."""

    bytes: Count
    sha256: Sha256

    @classmethod
    def of(cls, path: Path) -> CountedFile:
        """What it is now."""
        return cls(bytes=path.stat().st_size, sha256=sha256_of_file(path))


def save(folder: Path, state: dict[str, Any]) -> dict[str, CountedFile]:
    """Write `state` (collective); its files by name."""
    writer, disk = FileSystemWriter(folder), _CountingFileSystem()
    writer.fs = disk
    dcp.save(state, storage_writer=writer, no_dist=not ranks.is_distributed())
    return {name: of for counted in ranks.gathered(disk.counted) for name, of in counted.items()}


class _CountingFileSystem(FileSystem):
    """Counts the files as they are written, so that they need not be read again."""

    def __init__(self) -> None:
        self.counted: dict[str, CountedFile] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with closing(LargeFile(Path(path), hashed=True)) as file:
            try:
                yield file
            except Exception as error:
                # torch has words of its own for what a write raised.
                raise (file.fault or error) from error
            found = CountedFile(bytes=file.tell(), sha256=file.sha256)
        self.counted[Path(path).name] = found

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.counted[Path(new_path).name] = self.counted.pop(Path(path).name)
