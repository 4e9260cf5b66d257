"""A tar checked on its way to its reader.

Python's reader takes a damaged header for the end of the tar, leaves out links, and webdataset leaves out names between
double underscores: a shard would lose samples without a word. This walks the same bytes by itself.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO

from webdataset.gopen import Pipe

from datamodules.shards.packed import PackedShard
from datamodules.shards.remote import Steady
from workbench.common.files import CHUNK_BYTES

LARGEST_MEMBER_BYTES = 1 << 28
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class TarStream:
    """What a tar's reader reads from. num_files: plain files in it, once it has been read."""

    def __init__(self, stream: BinaryIO | Pipe | Steady) -> None:
        self.stream = stream
        self.num_files = 0
        self._sha256 = hashlib.sha256()
        self._header = bytearray()
        self._content_left = 0
        self._zero_blocks = 0

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes or fewer. Raises: tarfile.ReadError for what is no whole tar of plain files."""
        chunk = self.stream.read(size)
        if not chunk and isinstance(self.stream, Pipe):
            self.stream.wait_for_child()  # so that a failed command is not taken for an empty shard
        self._sha256.update(chunk)
        rest = memoryview(chunk)
        while rest:
            if self._content_left:
                taken = min(self._content_left, len(rest))
                self._content_left -= taken
            else:
                taken = min(tarfile.BLOCKSIZE - len(self._header), len(rest))
                self._header += rest[:taken]
                if len(self._header) == tarfile.BLOCKSIZE:
                    self._content_left = self._padded_size(bytes(self._header))
                    self._header.clear()
            rest = rest[taken:]
        return chunk

    def finish(self, num_read: int, packed: PackedShard | None) -> None:
        """Read to the end. num_read: files that the reader has seen. packed: what `pack.json` says of this tar.

        Raises: tarfile.ReadError if it was cut, if the reader missed files, or if it is not the tar of `packed`.
        """
        while self.read(CHUNK_BYTES):
            pass
        if self._content_left or self._header or self._zero_blocks < 2:
            raise tarfile.ReadError("the end-of-archive mark is missing")
        if num_read != self.num_files:
            raise tarfile.ReadError(
                f"{self.num_files - num_read} of its {self.num_files} files have names that are left out (__NAME__)"
            )
        if packed is not None and self._sha256.hexdigest() != packed.sha256:
            raise tarfile.ReadError("its sha256 is not the one in pack.json")

    def _padded_size(self, header: bytes) -> int:
        """Bytes of content, and of what fills its last block, that follow a header."""
        if not any(header):
            self._zero_blocks += 1
            return 0
        if self._zero_blocks:
            raise tarfile.ReadError("something follows its end-of-archive mark: give tars that were joined one by one")
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a damaged header after {self.num_files} files ({error})") from error
        if member.isreg() and not member.issparse():
            self.num_files += 1
        elif member.isdir():
            return 0
        elif member.type not in _EXTENSIONS:
            raise tarfile.ReadError(f"{member.name!r} is no plain file: write what links lead to (tar -h)")
        if member.size > LARGEST_MEMBER_BYTES:
            raise tarfile.ReadError(f"{member.name!r} has {member.size:,} bytes, {LARGEST_MEMBER_BYTES:,} at most")
        return -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
