"""The models under test: how each answers cases, at which cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from diffusers import QwenImage21Pipeline
from PIL import Image
from torch import Tensor

from workbench.common.clock import Clock
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.cases.case import Case
from workbench.method.rollout import time_grid
from workbench.recipe.config import Recipe
from workbench.sampling.sampler import EncodedRequest, Request, Sampler, encode, fit

Draw = Callable[[Sequence[Case], Sequence[int]], tuple[list[np.ndarray], float]]
"""Images (H, W, 3) uint8 for cases of one task with a noise seed each, and the seconds it took."""

FEW_STEP_SHIFTS = (1.0, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class Sampling:
    """How a denoiser is sampled: Euler over `steps` times, shifted, guided by `cfg_scale` (1 is no guidance)."""

    steps: int
    shift: float = 1.0
    cfg_scale: float = 1.0
    times: tuple[float, ...] = ()

    @property
    def nfe(self) -> int:
        """Network evaluations of one image, guidance counted twice."""
        return self.steps * (2 if self.cfg_scale > 1 else 1)

    def grid(self) -> Tensor:
        """(steps + 1,) times from 1 to 0."""
        return time_grid(self.steps, self.shift, self.times)

    def as_dict(self) -> dict[str, Any]:
        grid = {"times": list(self.times)} if self.times else {"shift": self.shift}
        return {"steps": self.steps, "cfg_scale": self.cfg_scale, **grid}


@dataclass(frozen=True)
class ModelUnderTest:
    """Anything that answers cases. sampling: for the record.

    fingerprint: tells the weights from all others, so that answers may be kept under it; empty where nothing does.
    store: where they are kept, when not beside what else an evaluation keeps while it runs.
    """

    draw: Draw
    nfe: int
    sampling: dict[str, Any]
    fingerprint: str = ""
    store: Store | None = None


def teacher_sampling(recipe: Recipe) -> Sampling:
    """The full teacher's."""
    chosen = recipe.evaluation
    return Sampling(chosen.teacher_steps, chosen.teacher_shift, chosen.teacher_cfg_scale)


def few_step_candidates(cfg_scale: float) -> list[Sampling]:
    """All the ways a teacher may spend 4 evaluations: 4 unguided steps, or 2 guided ones, at shift 1, 2, 3 or 5."""
    unguided = [Sampling(4, shift) for shift in FEW_STEP_SHIFTS]
    if cfg_scale <= 1:
        return unguided
    return unguided + [Sampling(2, shift, cfg_scale) for shift in FEW_STEP_SHIFTS]


def student_sampling(recipe: Recipe) -> Sampling:
    """The student's own time grid, unguided."""
    return Sampling(recipe.dmd.student_steps, recipe.dmd.student_shift, times=tuple(recipe.dmd.student_times))


class Encodings:
    """Cases as one pipeline's encoders see them, each encoded once for all models and samplings of that pipeline."""

    def __init__(
        self, pipeline: QwenImage21Pipeline, resolution: int, batch_size: int, clock: Clock | None = None
    ) -> None:
        """clock: gets the time of the phase `encoding`."""
        self.pipeline, self.resolution, self.batch_size = pipeline, resolution, batch_size
        self.clock = clock or Clock()
        self._encoded: dict[str, EncodedRequest] = {}

    def __call__(self, cases: Sequence[Case], seeds: Sequence[int]) -> list[EncodedRequest]:
        """Encoded cases, the noise of each from its seed."""
        missing = [case for case in cases if case.id not in self._encoded]
        if missing:
            with self.clock.phase("encoding"):
                found = encode(self.pipeline, [self._request(case) for case in missing], self.batch_size)
            self._encoded |= {case.id: encoded for case, encoded in zip(missing, found, strict=True)}
        encoded = [self._encoded[case.id] for case in cases]
        return [replace(e, request=replace(e.request, seed=s)) for e, s in zip(encoded, seeds, strict=True)]

    def _request(self, case: Case) -> Request:
        source = fit(Image.fromarray(case.source), self.resolution) if case.source is not None else None
        return Request(case.prompt, source=source, height=self.resolution, width=self.resolution)


def from_sampler(sampler: Sampler, encodings: Encodings, how: Sampling) -> ModelUnderTest:
    """A denoiser of a pipeline, sampled as `how` says."""

    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        drawn = sampler.sample(encodings(cases, seeds), how.grid(), how.cfg_scale)
        return drawn.images, drawn.wall_s

    return ModelUnderTest(draw, how.nfe, how.as_dict())
