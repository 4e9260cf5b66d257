"""Write a pipeline folder of any size with random weights: `python -m workbench.bench.mkfolder OUT [key=value ...]`.

Time and memory of a run depend on sizes alone, so that this stands for a model of billions of parameters where none is
at hand. Keys as in `Options`; `size=full` takes the sizes of the public model of the family of `pipeline`. One tensor
is held at a time.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.backbones import families, weight_files
from workbench.backbones.folders import replaced_folder
from workbench.backbones.measured import FolderSizes, Measured
from workbench.backbones.placement import cast_parameters
from workbench.backbones.stored_weights import stored_shapes
from workbench.bench.data import FIRST
from workbench.common import progress
from workbench.common.arguments import read_options
from workbench.common.errors import UserError

FULL_FILE = "5GB"


@dataclass(frozen=True)
class Options(FolderSizes):
    """The defaults are those of `size=tiny`; with `size=full` sizes are those of the public model.

    pipeline: class of the folder in diffusers; of the first family that is known, if empty.
    file: size of the largest file of weights. device: that draws the weights.
    links: another folder that this has made, of whose weights those of the same shapes are linked, not drawn: two
    checkpoints then take the disk of one.
    """

    size: Literal["tiny", "full"] = "tiny"
    pipeline: str = ""
    file: str = "500KB"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    links: str = ""

    @property
    def torch_device(self) -> torch.device:
        """Where the weights are drawn."""
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    @property
    def class_name(self) -> str:
        return self.pipeline or FIRST

    @property
    def measured(self) -> Measured:
        """What the family brings. Raises: UserError where it brings nothing, or none has such a pipeline."""
        return families.measured(self.class_name)


def read(arguments: Sequence[str]) -> Options:
    """Options from `key=value` items.

    Raises:
        UserError: an unknown key, an impossible value, or a pipeline that no family knows.
    """
    options = read_options(Options, arguments)
    if options.size == "tiny":
        return options
    return read_options(Options, arguments, {**asdict(options.measured.public), "file": FULL_FILE})


def make(out: Path, options: Options) -> None:
    """Write the pipeline folder `out`, in bfloat16; an earlier one in its place is replaced.

    Tokenizer and configurations are those of the tiny model that ships, with other sizes.

    Raises:
        UserError: as `folders.replaced_folder`; a pipeline that no family knows; links to a folder of other sizes.
    """
    measured, like = options.measured, families.SHIPPED["tiny"]
    with replaced_folder(out) as folder:
        networks = measured.write_folder(folder, like, options.class_name, options)
        total = sum(values.numel() for network in networks.values() for values in network.state_dict().values())
        with progress.job(f"writing {out}", total):
            for part, network in networks.items():
                _write(folder / part, network, options)


def _write(folder: Path, network: Any, options: Options) -> None:
    """Write configuration and random weights of a network without values."""
    cast_parameters(network, torch.bfloat16)
    state, stem = network.state_dict(), weight_files.DIFFUSERS
    match network:
        case PreTrainedModel():
            stem = weight_files.TRANSFORMERS
            if network.config.tie_word_embeddings:
                del state["lm_head.weight"]
            network.config.dtype = torch.bfloat16
            network.config.save_pretrained(folder)
        case _:
            network.save_config(folder)
    if options.links:
        _link(Path(options.links) / folder.name, folder, state)
        return
    drawn = _RandomTensors(state, options.seed, options.torch_device)
    weight_files.write(folder, drawn, state, stem, largest=options.file)


def _link(source: Path, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Link the weights of the component `source`, which must be those of `state`."""
    if stored_shapes(source) != {name: values.shape for name, values in state.items()}:
        raise UserError(f"links={source.parent}: its {folder.name} is of other sizes: give those of this folder")
    for file in source.glob("*.safetensors*"):
        os.link(file, folder / file.name)


class _RandomTensors(Mapping[str, Tensor]):
    """Random weights in the shapes of `like`, each drawn when it is asked for, by its name alone: matrices keep the
    size of what they multiply, scales are 1 and biases 0."""

    def __init__(self, like: Mapping[str, Tensor], seed: int, device: torch.device) -> None:
        self.like, self.seed, self.device = like, seed, device

    def __getitem__(self, name: str) -> Tensor:
        like = self.like[name]
        if like.numel() == len(like):
            value = float(name.endswith(("weight", "gamma")))
            return torch.full(like.shape, value, dtype=like.dtype, device=self.device)
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:7]))
        values = torch.empty(like.shape, dtype=like.dtype, device=self.device)
        return values.normal_(0.0, (like.numel() / len(like)) ** -0.5, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 2 an error that the user can correct."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words or "=" in words[0]:
            raise UserError("name the folder to write: python -m workbench.bench.mkfolder OUT [key=value ...]")
        make(Path(words[0]), read(words[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {words[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
