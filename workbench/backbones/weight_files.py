"""Weights written as the libraries write them, in safetensors files of a bounded size with their index, from tensors
that are made or gathered one at a time: no process holds more than two files' worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from workbench.common import progress, ranks

LARGEST_FILE = "5GB"
"""Larger weights are split: what model hubs advise, and what a host reads at once."""
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""How the two libraries name their files."""


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
    The ranks take turns at the files. Within `progress.job`, a tensor advances the bar by its number of elements.

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
    faults, all_ask = [], not isinstance(state, RankTensors) or state.is_gathered
    with ThreadPoolExecutor(1) as writer:
        pending: Future[str] | None = None
        for i, (name, names) in enumerate(plan.filename_to_tensors.items()):
            mine = i % ranks.world_size() == ranks.rank()
            tensors = {}
            for tensor in names:
                if mine or all_ask:
                    values = _taken(tensor, state, like[tensor])
                    if mine:
                        tensors[tensor] = values.to(like[tensor].dtype).to("cpu").contiguous()
                progress.advance(like[tensor].numel())
            if mine:
                faults.append(pending.result() if pending else "")
                pending = writer.submit(_save, tensors, folder / name)
        faults.append(pending.result() if pending else "")
    if fault := next(filter(None, ranks.gathered(next(filter(None, faults), ""))), ""):
        raise OSError(fault)


def _taken(name: str, state: Mapping[str, Tensor], like: Tensor) -> Tensor:
    values = state[name].detach()
    if values.shape != like.shape:
        raise ValueError(f"the weights do not fit the network: {name} is of shape {[*values.shape]}")
    return values


def _save(tensors: dict[str, Tensor], path: Path) -> str:
    """Write one file; what prevented it, empty where nothing did."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        return str(error)
    return ""
