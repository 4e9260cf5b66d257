"""A trained network in a pipeline folder that the stock pipeline loads and samples.

A student is sampled on its own grid: `sample_sigmas` holds the times, the scheduler leaves them as they are, and noises
the clean prediction again between them where the student was trained so (`stochastic_sampling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from workbench.backbones import stock_folder, weight_files
from workbench.backbones.folders import Finish, copy_parts, replaced_folder


def export(
    teacher: Path,
    student_state: Mapping[str, Tensor],
    sigmas: Sequence[float],
    out: Path,
    finish: Finish,
    *,
    stochastic: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the pipeline folder `out` (collective); see `stock_folder.write_student`.

    sigmas: as `folders.sample_sigmas` gives them. stochastic: the student is noised again between its steps.
    """
    # The stock pipeline divides timesteps by 1000, whatever the scheduler's configuration is.
    scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False, stochastic_sampling=stochastic
    )
    index = {"sample_sigmas": list(sigmas)}
    stock_folder.write_student(
        teacher, out, QwenImage21Transformer2DModel, student_state, scheduler, index, finish, dtype
    )


def export_pretrained(
    source: Path,
    transformer: QwenImage21Transformer2DModel,
    text_encoder: Qwen3VLForConditionalGeneration,
    out: Path,
) -> None:
    """Write the pipeline folder `out`: the source's, with a trained transformer and text encoder.

    The transformer is stored in bfloat16, the text encoder in float32: when no dtype is given, diffusers loads its
    components in float32 and transformers in the dtype of `config.json`, and the stock pipeline needs both alike.

    Raises:
        UserError: as `replaced_folder`.
    """
    with replaced_folder(out) as folder:
        copy_parts(source, folder, ("transformer", "text_encoder"))
        trained = transformer.to("cpu", torch.bfloat16)
        trained.save_pretrained(folder / "transformer", max_shard_size=weight_files.LARGEST_FILE)
        text_encoder.to("cpu", torch.float32).save_pretrained(folder / "text_encoder")
