"""The times at which the stock pipeline samples a folder: its sigmas through its scheduler, by diffusers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from workbench.backbones.folders import read_index
from workbench.common.errors import UserError
from workbench.common.outside import read_json
from workbench.method.rollout import Sampling

TRAIN_STEPS = 1000
"""Stock pipelines divide timesteps by it, whatever the scheduler counts in."""
_SCHEDULER = FlowMatchEulerDiscreteScheduler.__name__
_PLAIN = {
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
"""Settings under which a scheduler leaves sigmas as they are."""


@dataclass(frozen=True)
class SizedTimes:
    """Times that depend on the size of the picture: `sigmas` through a scheduler with dynamic shifting.

    settings: of the scheduler, as (name, value) pairs.
    """

    sigmas: tuple[float, ...]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, num_tokens: int) -> tuple[float, ...]:
        """t_0 to t_{K-1} for so many target tokens."""
        return _through_scheduler(self.sigmas, self.settings, num_tokens)

    def as_dict(self) -> dict[str, Any]:
        return {"sigmas": list(self.sigmas), **dict(self.settings)}


def folder_sampling(
    folder: Path, default: Sampling, steps: int | None, sigmas: Sequence[float], stored_as: str = "sample_sigmas"
) -> Sampling:
    """See `sampling`; read from the files of a pipeline folder alone. stored_as: key of the stored sigmas in its index.

    Raises: UserError if a file cannot be read, or the folder's scheduler is not one that can be followed here.
    """
    index = read_index(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, dict, "copy the pipeline folder again")
    kind = (index.get("scheduler") or [None, config.get("_class_name")])[-1]
    return sampling(kind, config, index.get(stored_as), default, steps, sigmas, str(path))


def sampling(
    kind: str | None,
    config: Mapping[str, Any],
    stored: Sequence[float] | None,
    default: Sampling,
    steps: int | None = None,
    sigmas: Sequence[float] = (),
    where: str = "the scheduler",
) -> Sampling:
    """How the stock pipeline samples: `sigmas` or else `steps` uniform ones where either is asked for, otherwise the
    `stored` ones or as many uniform ones as the family's `default` has, through the scheduler of class `kind` and
    configuration `config`; guided as by default, but for a student, which stored its sigmas.

    Raises: UserError for a scheduler that the family's sampler is no equal of.
    """
    if kind != _SCHEDULER:
        raise UserError(f"{where}: pictures are drawn here as by {_SCHEDULER}, not by {kind}: give steps and shift")
    if config.get("num_train_timesteps", TRAIN_STEPS) != TRAIN_STEPS or config.get("invert_sigmas"):
        raise UserError(f"{where}: num_train_timesteps must be {TRAIN_STEPS}, and invert_sigmas false")
    asked = sigmas or (() if steps else stored or ())
    like = replace(default, cfg_scale=1.0, cfg_rescale=0.0) if stored else default
    like = replace(like, stochastic=bool(config.get("stochastic_sampling", False)))
    if all(config.get(name, value) == value for name, value in _PLAIN.items()):
        times = tuple(map(float, asked))
        return replace(like, steps=len(times) or steps or default.steps, times=times)
    count = steps or default.steps
    given = tuple(map(float, asked)) or tuple(np.linspace(1.0, 1 / count, count).tolist())
    settings = tuple(sorted((name, _plain(value)) for name, value in config.items() if not name.startswith("_")))
    sized = SizedTimes(given, settings)
    try:
        with np.errstate(invalid="ignore", divide="ignore"):
            times = sized(1)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{where}: {error}; copy the pipeline folder again") from error
    if not all(map(math.isfinite, times)):
        raise UserError(f"{where}: gives no finite times for {len(given)} step(s), as shift_terminal for one alone")
    if config.get("use_dynamic_shifting"):
        return replace(like, steps=len(given), sized_times=sized)
    return replace(like, steps=len(given), times=times)


@cache
def _through_scheduler(
    sigmas: tuple[float, ...], settings: tuple[tuple[str, Any], ...], num_tokens: int
) -> tuple[float, ...]:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(settings))
    config = scheduler.config
    # mu is a straight line through (fewest tokens, base_shift) and (most tokens, max_shift): `calculate_shift`.
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = num_tokens * slope + config.base_shift - slope * config.base_image_seq_len
    scheduler.set_timesteps(sigmas=list(sigmas), mu=mu)
    return tuple(scheduler.sigmas[:-1].tolist())


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
