"""A pipeline folder made ready to answer cases: loaded once at most, for any number of samplings and adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImage21Pipeline

from workbench.backbones import lora_files, roles
from workbench.backbones.base import RoleDenoiser, RoleNetworks
from workbench.backbones.qwen_image_21 import pipeline
from workbench.backbones.qwen_image_21.transformer import single_role
from workbench.common.clock import Clock
from workbench.common.fingerprint import fingerprint
from workbench.evaluation.cases.case import Case
from workbench.evaluation.models import Encodings, ModelUnderTest, Sampling, from_sampler
from workbench.recipe.config import Recipe
from workbench.sampling.sampler import Sampler, default_batch_size

DEFAULT_STEPS = 40


class Subject:
    """`folder`'s base network, and each of `specialists` (name -> LoRA file) as an adapter over it.

    Nothing is loaded before it is asked to draw: where all its answers are kept, never.

    Raises:
        UserError: no such folder; as it is loaded, an adapter that does not fit it.
    """

    def __init__(
        self,
        folder: str,
        recipe: Recipe,
        clock: Clock | None = None,
        specialists: Mapping[str, Path] | None = None,
        device: str | None = None,
    ) -> None:
        """device: a GPU if there is one, when absent."""
        self.clock = clock or Clock()
        self._folder, self._recipe, self._specialists = folder, recipe, dict(specialists or {})
        self._path = pipeline.resolve(folder)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._samplers: dict[str, Sampler] = {}

    @cached_property
    def loaded(self) -> QwenImage21Pipeline:
        """The folder's pipeline."""
        with self.clock.phase("loading"):
            return pipeline.load(self._folder, device=self._device)

    @cached_property
    def batch_size(self) -> int:
        """The recipe's, or what suits the device and the model."""
        chosen = self._recipe.evaluation.batch_size
        return chosen or default_batch_size(self.loaded, self._recipe.data.resolution)

    @cached_property
    def _denoiser(self) -> RoleNetworks:
        denoiser = single_role(self.loaded.transformer, roles.TEACHER)
        for name, path in self._specialists.items():
            roles.adapt(denoiser.network(roles.TEACHER), name, lora_files.read(path))
            denoiser.network_of_role[name] = roles.TEACHER
        return denoiser

    @cached_property
    def _encodings(self) -> Encodings:
        return Encodings(self.loaded, self._recipe.data.resolution, self.batch_size, self.clock)

    def sampler(self, specialist: str | None = None) -> Sampler:
        """Of the base network, or of one of the specialists."""
        role = specialist or roles.TEACHER
        if role not in self._samplers:
            denoiser = RoleDenoiser(self._denoiser, role)
            self._samplers[role] = Sampler(self.loaded, denoiser, self.batch_size, self.clock)
        return self._samplers[role]

    def model(self, how: Sampling | None = None, specialist: str | None = None) -> ModelUnderTest:
        """The base network or a specialist, sampled as `how` says, or as the folder says itself."""
        # Files of the folder's own specialists are part of its hash: the base is told by its parts alone.
        parts = [self._path / name for name in ("transformer", "text_encoder", "vae", "processor")]
        files = [*parts, *([self._specialists[specialist]] if specialist else [])]
        where = f"{self._recipe.data.resolution} on {self._device}"
        mark = "/".join([*(fingerprint(path) for path in files), where])
        chosen = how or self.own_sampling()

        def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
            return from_sampler(self.sampler(specialist), self._encodings, chosen).draw(cases, seeds)

        return ModelUnderTest(draw, chosen.nfe, chosen.as_dict(), mark)

    def shipped_sampling(self) -> Sampling | None:
        """The grid that the folder ships, as a student's does."""
        sigmas = self.loaded.config.sample_sigmas
        return Sampling(len(sigmas), times=tuple(float(sigma) for sigma in sigmas)) if sigmas else None

    def own_sampling(self) -> Sampling:
        """The grid that the folder ships, or the default number of steps through its own scheduler's shift."""
        return self.shipped_sampling() or Sampling(DEFAULT_STEPS, shift=float(self.loaded.scheduler.config.shift))
