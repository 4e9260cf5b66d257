"""Reads distributed checkpoints without trusting them: their metadata may name torch's own plain types alone."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

_ALLOWED = {
    "torch": {
        "Size",
        "device",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "int64",
        "int32",
        "uint8",
        "bool",
        "strided",
    },
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
}
_RENAMED = {"pathlib._local": "pathlib"}
"""Where Python 3.13 keeps what every other version has elsewhere."""


class _PlainTypesOnly(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Set the attributes of an instance; those of a class would change it for the whole process."""
        if isinstance(self.stack[-2], type):  # type: ignore[attr-defined]
            raise ValueError("the checkpoint's metadata changes a class, which no checkpoint of ours does")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Any:
        module = _RENAMED.get(module, module)
        if name not in _ALLOWED.get(module, set()):
            raise ValueError(f"the checkpoint's metadata names {module}.{name}, which no checkpoint of ours holds")
        return getattr(importlib.import_module(module), name)


class SafeReader(FileSystemReader):
    """torch's reader with an allow-list in front of its metadata; tensors are loaded with `weights_only` as ever. One
    that reads a checkpoint several times, in parts, reads the metadata once."""

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = self._read(kwargs.get("rank"))
        assert self._metadata.storage_meta is not None
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata

    def _read(self, rank: int | None) -> Metadata:
        with self.fs.create_stream(self._get_metadata_path(rank), "rb") as file:
            metadata = _PlainTypesOnly(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        assert isinstance(metadata, Metadata)
        return metadata
