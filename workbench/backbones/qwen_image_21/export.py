"""A trained network in a pipeline folder that the stock pipeline loads and samples.

A student is sampled on its own grid: `sample_sigmas` holds the times, the scheduler leaves them as they are, and noises
the clean prediction again between them where the student was trained so (`stochastic_sampling`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from workbench.backbones.folders import INDEX_FILE, copy_parts, read_index, replaced_folder

_REPLACED = ("transformer", "scheduler")
LARGEST_FILE = "5GB"
"""Larger weights are split: what model hubs advise, and what a host reads at once."""


def export(
    teacher: Path,
    student_state: Mapping[str, Tensor],
    sigmas: Sequence[float],
    out: Path,
    *,
    card: str,
    stochastic: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the pipeline folder `out`: the teacher's, with the student's transformer, its grid and its model card.

    student_state: unsharded, with the names of the stock transformer. sigmas: as `folders.sample_sigmas` gives them.
    stochastic: the student is noised again between its steps.
    `out` appears complete or not at all; a pipeline folder in its place is replaced, anything else is left alone.

    Raises:
        UserError: as `replaced_folder`. ValueError: a state that does not fit.
    """
    transformer = _transformer(teacher, student_state, dtype)
    with replaced_folder(out) as folder:
        copy_parts(teacher, folder, _REPLACED)
        transformer.save_pretrained(folder / "transformer", max_shard_size=LARGEST_FILE)
        # The stock pipeline divides timesteps by 1000, whatever the scheduler's configuration is.
        FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False, stochastic_sampling=stochastic
        ).save_pretrained(folder / "scheduler")
        index = read_index(teacher)
        index |= {"sample_sigmas": list(sigmas), "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
        (folder / "README.md").write_text(card)


def export_pretrained(
    source: Path,
    transformer: QwenImage21Transformer2DModel,
    text_encoder: Qwen3VLForConditionalGeneration,
    out: Path,
) -> None:
    """Write the pipeline folder `out`: the source's, with a trained transformer and text encoder.

    The transformer is stored in bfloat16, the text encoder in float32: when no dtype is given, diffusers loads its
    components in float32 and transformers in the stored dtype, and the stock pipeline needs both alike.

    Raises:
        UserError: as `replaced_folder`.
    """
    with replaced_folder(out) as folder:
        copy_parts(source, folder, ("transformer", "text_encoder"))
        transformer.to("cpu", torch.bfloat16).save_pretrained(folder / "transformer", max_shard_size=LARGEST_FILE)
        text_encoder.to("cpu", torch.float32).save_pretrained(folder / "text_encoder")


def _transformer(teacher: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> QwenImage21Transformer2DModel:
    """The student's network without a second copy of its weights."""
    with torch.device("meta"):
        network = QwenImage21Transformer2DModel.from_config(
            QwenImage21Transformer2DModel.load_config(teacher / "transformer")
        )
    expected = network.state_dict()
    wrong = sorted(set(expected) ^ set(state)) or sorted(n for n in expected if expected[n].shape != state[n].shape)
    if wrong:
        raise ValueError(f"the student's weights do not fit the teacher's transformer: {', '.join(wrong[:5])}")
    cast = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
    network.load_state_dict(cast, assign=True)
    return network
