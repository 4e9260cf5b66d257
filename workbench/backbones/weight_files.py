"""Weights written as the libraries write them, in safetensors files of a bounded size with their index, from tensors
that are made or gathered one at a time: no process holds more than one of them.

The library's own `save_file` wants a file's tensors in host memory together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Self

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from workbench.common import progress, ranks
from workbench.common.large_files import LargeFile

LARGEST_FILE = "5GB"
"""Larger weights are split: what model hubs advise, and what a host reads at once."""
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""How the two libraries name their files."""
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of the types in the header of a safetensors file."""
_ALIGNMENT = 8


class RankTensors(Mapping[str, Tensor]):
    """Tensors of a rank. is_gathered: all ranks must ask for each of them together; otherwise every rank has them all,
    and asks for those that it writes."""

    is_gathered: bool


def write(
    folder: Path, state: Mapping[str, Tensor], like: Mapping[str, Tensor], stem: str = DIFFUSERS, *, largest: str = ""
) -> None:
    """Write the tensors of `state` to files in `folder`, each in the dtype that it has in `like` (collective).

    state: every rank asks it for the same tensors in the same order, once, so that it may gather or make them then;
    see also `RankTensors`.
    like: the same names; tensors of the meta device will do. stem: `DIFFUSERS` or `TRANSFORMERS`.
    largest: size of a file, `LARGEST_FILE` if empty.
    The ranks take turns at the files, which are on the disk when this returns. Within `progress.job`, a tensor advances
    the bar by its number of elements.

    Raises:
        OSError: on every rank, where one cannot write. ValueError: names or shapes that do not fit.
    """
    if wrong := sorted(set(like) ^ set(state)):
        raise ValueError(f"the weights do not fit the network: {', '.join(wrong[:5])}")
    plan = split_torch_state_dict_into_shards(
        dict(like), filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=largest or LARGEST_FILE
    )
    if ranks.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / f"{stem}.safetensors.index.json").write_text(text)
    ranks.barrier()
    faults, all_ask = [""], not isinstance(state, RankTensors) or state.is_gathered
    for i, (name, names) in enumerate(plan.filename_to_tensors.items()):
        mine = i % ranks.world_size() == ranks.rank()
        with _WeightFile(folder / name, {tensor: like[tensor] for tensor in names}) if mine else nullcontext() as file:
            for tensor in names:
                if mine or all_ask:
                    values = _taken(tensor, state, like[tensor])
                    if file is not None:
                        file.add(values)
                progress.advance(like[tensor].numel())
        if file is not None:
            faults.append(file.fault)
    if fault := next(filter(None, ranks.gathered(next(filter(None, faults), ""))), ""):
        raise OSError(fault)


def _taken(name: str, state: Mapping[str, Tensor], like: Tensor) -> Tensor:
    values = state[name].detach()
    if values.shape != like.shape:
        raise ValueError(f"the weights do not fit the network: {name} is of shape {[*values.shape]}")
    return values.to(like.dtype)


class _WeightFile:
    """A safetensors file that takes its tensors in the order of `like`. fault: what prevented it, empty where nothing
    did; what comes afterwards is passed over."""

    def __init__(self, path: Path, like: Mapping[str, Tensor]) -> None:
        self.fault = ""
        largest = max(values.numel() * values.element_size() for values in like.values())
        # Memory that is allocated anew for every tensor is touched for the first time each time.
        self._buffer = torch.empty(largest, dtype=torch.uint8)
        self._file: LargeFile | None = None
        with self._noting_faults():
            self._file = LargeFile(path)
        self._write(header(like))

    def __enter__(self) -> Self:
        return self

    def add(self, values: Tensor) -> None:
        """The next tensor, on any device."""
        content = values.reshape(-1).contiguous().view(torch.uint8)
        if not content.is_cpu:
            content = self._buffer[: len(content)].copy_(content)
        self._write(content.numpy().data)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with self._noting_faults():
                self._file.close()

    def _write(self, content: bytes | memoryview) -> None:
        if self._file is not None and not self.fault:
            with self._noting_faults():
                self._file.write(content)

    @contextmanager
    def _noting_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = self.fault or error.strerror or str(error)


def header(like: Mapping[str, Tensor]) -> bytes:
    """What a safetensors file begins with when its tensors follow in the order of `like`: the length of a JSON object
    in 8 bytes, and that object, padded so that the tensors are aligned (format of safetensors, Hugging Face).

    Raises:
        KeyError: a type that the format lacks.
    """
    sizes = [values.numel() * values.element_size() for values in like.values()]
    ends = list(accumulate(sizes, initial=0))
    described = {
        name: {"dtype": _TYPES[values.dtype], "shape": [*values.shape], "data_offsets": [start, end]}
        for (name, values), start, end in zip(like.items(), ends, ends[1:], strict=False)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **described}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
