"""A trained network in a pipeline folder that the stock pipelines load and sample.

The pipelines have no place for a student's times, but their scheduler has one for a shift: a student on a uniform grid,
shifted, is sampled on it by a call that names the number of steps alone. Other times have to be named in every call.
The folder's index holds what such a call gives the scheduler, under a key that diffusers passes over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from torch import Tensor

from workbench.backbones.folders import STORED_SIGMAS, Finish, sample_sigmas
from workbench.backbones.stock_folder import write_student
from workbench.method.rollout import Sampling, time_grid


def export(
    teacher: Path,
    student_state: Mapping[str, Tensor],
    how: Sampling,
    out: Path,
    finish: Finish,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the pipeline folder `out`; see `write_student`. how: the student's own sampling."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0 if how.times else how.shift,
        use_dynamic_shifting=False,
        stochastic_sampling=how.stochastic,
    )
    index = {STORED_SIGMAS: sample_sigmas(how.grid() if how.times else time_grid(how.steps, 1.0))}
    write_student(teacher, out, QwenImageTransformer2DModel, student_state, scheduler, index, finish, dtype)
