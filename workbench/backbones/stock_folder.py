"""A pipeline folder of diffusers, loaded as its own pipeline, and written anew with a student's network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from workbench.backbones.finite import require_finite
from workbench.backbones.folders import INDEX_FILE, check_weights, copy_parts, read_index, replaced_folder
from workbench.common.errors import UserError

LARGEST_FILE = "5GB"
"""Larger weights are split: what model hubs advise, and what a host reads at once."""
WEIGHTED = ("transformer", "vae", "text_encoder")


def check_parts(folder: Path) -> None:
    """Whether the components of a pipeline folder are there.

    Raises:
        UserError: weights or a configuration are missing.
    """
    for name in WEIGHTED:
        check_weights(folder / name)
    for name in ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in WEIGHTED)):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}: copy the pipeline folder again")


def load_pipeline(
    kind: type[DiffusionPipeline],
    folder: Path,
    dtype: torch.dtype,
    transformer_dtype: torch.dtype | None,
    left_out: Sequence[str],
    made: Callable[[], Mapping[str, Any]],
) -> Any:
    """The pipeline of a folder, of class `kind`, in evaluation mode on the CPU.

    left_out: components that stay on the disk. made: gives those that are not loaded by diffusers.

    Raises:
        UserError: the files cannot be read, do not fit the classes, or hold values that are not finite.
    """
    try:
        given = {**made(), **dict.fromkeys(left_out)}
        with _no_progress_bars():
            pipeline = kind.from_pretrained(
                folder,
                dtype={"default": dtype, "transformer": transformer_dtype or dtype},
                use_safetensors=True,
                local_files_only=True,
                **given,
            )
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the libraries raise almost any kind over a folder that they cannot use
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot load the pipeline folder {folder}: {reason}; copy it again") from error
    require_finite(folder, pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_student(
    teacher: Path,
    out: Path,
    network: type[ModelMixin],
    state: Mapping[str, Tensor],
    scheduler: FlowMatchEulerDiscreteScheduler,
    index: Mapping[str, Any],
    card: str,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the pipeline folder `out`: the teacher's, with the student's transformer, scheduler and model card.

    network: class of the transformer. state: unsharded, with the names of the stock transformer; stored in `dtype`.
    index: what its index holds besides. `out` appears complete or not at all; a pipeline folder in its place is
    replaced, anything else is left alone.

    Raises:
        UserError: as `replaced_folder`. ValueError: a state that does not fit.
    """
    transformer = _transformer(teacher, network, state, dtype)
    with replaced_folder(out) as folder:
        copy_parts(teacher, folder, ("transformer", "scheduler"))
        transformer.save_pretrained(folder / "transformer", max_shard_size=LARGEST_FILE)
        scheduler.save_pretrained(folder / "scheduler")
        held = {**read_index(teacher), **index, "scheduler": ["diffusers", type(scheduler).__name__]}
        (folder / INDEX_FILE).write_text(json.dumps(held, indent=2) + "\n")
        (folder / "README.md").write_text(card)


def _transformer(teacher: Path, network: type[ModelMixin], state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """The student's network without a second copy of its weights."""
    with torch.device("meta"):
        transformer = network.from_config(network.load_config(teacher / "transformer"))
    expected = transformer.state_dict()
    wrong = sorted(set(expected) ^ set(state)) or sorted(n for n in expected if expected[n].shape != state[n].shape)
    if wrong:
        raise ValueError(f"the student's weights do not fit the teacher's transformer: {', '.join(wrong[:5])}")
    cast = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
    transformer.load_state_dict(cast, assign=True)
    return transformer


def architecture(transformer: Any) -> dict[str, Any]:
    """What decides names and shapes of a transformer's weights, from its configuration."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in transformer.config.items()
        if not name.startswith("_")
    }


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Both libraries draw bars for every component; a folder loads within seconds."""
    libraries = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
