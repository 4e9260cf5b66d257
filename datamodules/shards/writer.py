"""Writing tars whole or not at all; free of torch, so that workers start fast."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from workbench.common import files


class _Digest:
    """Writes through to a file and hashes along."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self.file.write(content)

    def tell(self) -> int:
        return self.file.tell()


class ShardWriter:
    """Writes one tar that appears under its name when the `with` block ends well, and not at all otherwise.

    The bytes depend on the members alone (no times, no owners). After the block `num_bytes` and `sha256` describe it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self.sha256 = ""

    def __enter__(self) -> ShardWriter:
        self._whole = files.whole_file(self.path)
        self._digest = _Digest(self._whole.__enter__())
        self._tar = tarfile.open(fileobj=cast(Any, self._digest), mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8")
        return self

    def add(self, name: str, content: bytes) -> tuple[int, int, int]:
        """Append a member; returns the byte offset of its content in the tar, its size, and its CRC-32."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        header_bytes = len(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        offset = self._digest.tell() + header_bytes
        self._tar.addfile(info, io.BytesIO(content))
        return offset, len(content), zlib.crc32(content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._tar.close()
            self.num_bytes = self._digest.tell()
            self.sha256 = self._digest.sha256.hexdigest()
        self._whole.__exit__(kind, error, traceback)
