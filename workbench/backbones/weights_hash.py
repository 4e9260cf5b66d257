"""Weights by content, whatever the files that they lie in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WHOLE_BYTES = 1 << 28
"""Weights of more bytes are hashed by parts of every tensor: reading 14 GB would take longer than beginning the run."""
_PARTS, _PART_BYTES = 4, 4096
HEX_DIGITS = 16


def weights_hash(files: Iterable[tuple[str, Path]], extra: Any) -> str:
    """Hash of the tensors in safetensors files, each with the name of its component, and of `extra`; the same however
    they are split into files. Empty where a file cannot be read: whoever loads it says what is wrong.
    """
    files, rows = list(files), []
    try:
        whole = sum(path.stat().st_size for _, path in files) <= WHOLE_BYTES
        for part, path in files:
            with safe_open(path, framework="pt") as opened:
                rows += [
                    (part, name, *_content(opened.get_tensor(name), whole))
                    for name in opened.keys()  # noqa: SIM118 (no mapping)
                ]
    except (OSError, SafetensorError):
        return ""
    content = json.dumps([sorted(rows), extra], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:HEX_DIGITS]


def _content(tensor: Tensor, whole: bool) -> tuple[str, str, str]:
    digest = hashlib.sha256()
    for part in _parts(tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.zeros(0), whole):
        digest.update(part.numpy().data)
    return str(tensor.dtype), str(tuple(tensor.shape)), digest.hexdigest()


def _parts(content: Tensor, whole: bool) -> Iterator[Tensor]:
    """All bytes, or evenly spaced stretches of them; the file is mapped, so what is not taken is not read."""
    if whole or len(content) <= _PARTS * _PART_BYTES:
        yield content
        return
    last = len(content) - _PART_BYTES
    for i in range(_PARTS):
        start = last * i // (_PARTS - 1)
        yield content[start : start + _PART_BYTES]
