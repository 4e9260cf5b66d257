"""A pipeline folder of diffusers, loaded as its own pipeline, and written anew with a student's network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from workbench.backbones import weight_files
from workbench.backbones.family import PipelineModel
from workbench.backbones.finite import require_finite
from workbench.backbones.folders import INDEX_FILE, Finish, check_weights, copied_parts, read_index, replaced_by_all
from workbench.backbones.placement import cast_parameters
from workbench.backbones.stored_weights import require_fit
from workbench.common import progress, ranks
from workbench.common.errors import UserError

WEIGHTED = ("transformer", "vae", "text_encoder")


class StockModel(PipelineModel):
    """A family whose folders are loaded as `pipeline`, diffusers' own, with a transformer, a VAE and a text encoder."""

    pipeline: Any

    @classmethod
    def check(cls, folder: Path) -> None:
        for name in WEIGHTED:
            check_weights(folder / name)
        for name in ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in WEIGHTED)):
            if not (folder / name).is_file():
                raise UserError(f"{folder} lacks {name}: copy the pipeline folder again")

    @property
    def transformer(self) -> Any:
        return self.pipeline.transformer

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.transformer.config.items()
            if not name.startswith("_")
        }

    @property
    def device(self) -> torch.device:
        return self.pipeline.vae.device


def load_pipeline(
    kind: type[DiffusionPipeline],
    network: type[ModelMixin],
    folder: Path,
    device: str | torch.device,
    dtype: torch.dtype,
    made: Callable[[], Mapping[str, Any]],
    *,
    transformer_dtype: torch.dtype | None,
    transformer: bool,
    text_encoder: bool,
    empty: bool,
) -> Any:
    """The pipeline of a folder, of class `kind` with a transformer of class `network`, in evaluation mode.

    made: gives the components that are not loaded by diffusers. The others: see `PipelineModel.load`.

    Raises:
        UserError: the files cannot be read, do not fit the classes, or hold values that are not finite.
    """
    wanted = {"transformer": transformer and not empty, "text_encoder": text_encoder}
    left_out = [name for name, loaded in wanted.items() if not loaded]
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
    pipeline.to(device)
    if empty:
        pipeline.register_modules(transformer=_empty_transformer(folder, network, transformer_dtype or dtype))
    return pipeline


def write_student(
    teacher: Path,
    out: Path,
    network: type[ModelMixin],
    state: Mapping[str, Tensor],
    scheduler: FlowMatchEulerDiscreteScheduler,
    index: Mapping[str, Any],
    finish: Finish,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the pipeline folder `out`: the teacher's, with the student's transformer and scheduler (collective).

    network: class of the transformer. state: unsharded, with the names of the stock transformer; see
    `weight_files.write`. dtype: that it is stored in. index: what its index holds besides. finish: see
    `PipelineModel.export`. `out` appears complete or not at all; a pipeline folder in its place is replaced, anything
    else is left alone.

    Raises:
        UserError: as `replaced_folder`. ValueError: a state that does not fit.
    """
    transformer = _empty(teacher, network, dtype)
    like = transformer.state_dict()
    # Copying may take longer than the weights, and must not write over what is written after them.
    left_out = ("transformer", "scheduler", INDEX_FILE)
    with replaced_by_all(out) as folder, copied_parts(teacher, folder, left_out):
        total = sum(values.numel() for values in like.values())
        with progress.job(f"writing {out}", total) if ranks.rank() == 0 else nullcontext():
            weight_files.write(folder / "transformer", state, like)
        if ranks.rank() == 0:
            transformer.save_config(folder / "transformer")
            scheduler.save_pretrained(folder / "scheduler")
            held = {**read_index(teacher), **index, "scheduler": ["diffusers", type(scheduler).__name__]}
            (folder / INDEX_FILE).write_text(json.dumps(held, indent=2) + "\n")
            finish(folder)


def _empty_transformer(folder: Path, network: type[ModelMixin], dtype: torch.dtype) -> Any:
    """The transformer of a pipeline folder, of class `network`, in evaluation mode and without values; what the files
    hold is compared with it.

    Raises:
        UserError: as `stored_weights.require_fit`.
    """
    transformer = _empty(folder, network, dtype).eval()
    require_fit(transformer, folder / "transformer")
    return transformer


def _empty(folder: Path, network: type[ModelMixin], dtype: torch.dtype) -> Any:
    """Its buffers are tables, and computed."""
    with init_empty_weights(include_buffers=False):
        transformer = network.from_config(network.load_config(folder / "transformer"))
    cast_parameters(transformer, dtype)
    return transformer


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
