"""A pipeline folder made ready to answer cases: loaded once, for any number of samplings and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from workbench import adapters, pipeline, roles, sampling
from workbench.backbone import RoleDenoiser, single_role
from workbench.clock import Clock
from workbench.config import Recipe
from workbench.evaluation.models import Encodings, ModelUnderTest, Sampling, from_sampler
from workbench.fingerprint import fingerprint

DEFAULT_STEPS = 40


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def mark_of(folder: str, *adapters: Path) -> str:
    """What tells the answers of a pipeline folder's base network, with LoRA files over it, from all others."""
    # Files of the folder's own specialists are part of its hash: the base is told by its parts alone.
    parts = [pipeline.resolve(folder) / name for name in ("transformer", "text_encoder", "vae", "processor")]
    return "/".join(fingerprint(path) for path in [*parts, *adapters])


class Subject:
    """`folder`'s base network, and each of `specialists` (name -> LoRA file) as an adapter over it.

    Raises:
        UserError: no such folder, or an adapter that does not fit it.
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
        self.loaded = pipeline.load(folder, device=device or default_device())
        self._folder, self._specialists = folder, dict(specialists or {})
        resolution = recipe.data.resolution
        self.batch_size = recipe.evaluation.batch_size or sampling.default_batch_size(self.loaded, resolution)
        self._denoiser = single_role(self.loaded.transformer, roles.TEACHER)
        for name, path in self._specialists.items():
            roles.adapt(self._denoiser.network(roles.TEACHER), name, adapters.read(path))
            self._denoiser.network_of_role[name] = roles.TEACHER
        self._encodings = Encodings(self.loaded, resolution, self.batch_size, self.clock)
        self._samplers: dict[str, sampling.Sampler] = {}

    def sampler(self, specialist: str | None = None) -> sampling.Sampler:
        """Of the base network, or of one of the specialists."""
        role = specialist or roles.TEACHER
        if role not in self._samplers:
            denoiser = RoleDenoiser(self._denoiser, role)
            self._samplers[role] = sampling.Sampler(self.loaded, denoiser, self.batch_size, self.clock)
        return self._samplers[role]

    def model(self, how: Sampling | None = None, specialist: str | None = None) -> ModelUnderTest:
        """The base network or a specialist, sampled as `how` says, or as the folder says itself."""
        mark = mark_of(self._folder, *([self._specialists[specialist]] if specialist else []))
        return from_sampler(self.sampler(specialist), self._encodings, how or self.own_sampling(), mark)

    def own_sampling(self) -> Sampling:
        """The grid that the folder ships, or the default number of steps through its own scheduler's shift."""
        sigmas = self.loaded.config.sample_sigmas
        if sigmas:
            return Sampling(len(sigmas), times=tuple(float(sigma) for sigma in sigmas))
        return Sampling(DEFAULT_STEPS, shift=float(self.loaded.scheduler.config.shift))
