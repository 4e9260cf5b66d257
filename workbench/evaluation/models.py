"""The models under test: how each answers cases, at which cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from workbench.backbones import families, lora_files, roles
from workbench.backbones.base import RoleDenoiser, RoleNetworks
from workbench.backbones.family import PipelineModel
from workbench.backbones.load import single_role
from workbench.common.clock import Clock
from workbench.common.errors import UserError
from workbench.common.fingerprint import fingerprint
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.cases.case import Case
from workbench.method import flow
from workbench.method.rollout import Sampling
from workbench.recipe.config import Evaluation
from workbench.sampling.sampler import EncodedRequest, Request, Sampler, default_batch_size, encode, fit

Draw = Callable[[Sequence[Case], Sequence[int]], tuple[list[np.ndarray], float]]
"""Images (H, W, 3) uint8 for cases of one task with a noise seed each, and the seconds it took."""

FEW_STEP_SHIFTS = (1.0, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class ModelUnderTest:
    """Anything that answers cases. sampling: for the record.

    fingerprint: identifies the weights, so that answers may be stored under it; empty: answers are not stored.
    store: where answers are stored; None for the folder in which an evaluation keeps its unfinished results.
    """

    draw: Draw
    nfe: int
    sampling: dict[str, Any]
    fingerprint: str = ""
    store: Store | None = None


def given(which: Literal["target", "source"]) -> ModelUnderTest:
    """Answers every case with its own target or source, which it must have."""

    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        return [getattr(case, which) for case in cases], 0.0

    return ModelUnderTest(draw, nfe=0, sampling={}, fingerprint=which)


def teacher_sampling(chosen: Evaluation, folder: str) -> Sampling:
    """The full teacher's: as the pipeline of `folder` samples, but for what the recipe gives.

    Raises: UserError if it is no pipeline folder, or one whose scheduler cannot be followed.
    """
    steps, shift, scale = chosen.teacher_steps, chosen.teacher_shift, chosen.teacher_cfg_scale
    sigmas = tuple(chosen.teacher_sigmas)
    if sigmas and shift is not None:
        bent = tuple(flow.shift(torch.tensor(sigmas, dtype=torch.float64), shift).float().tolist())
        how = Sampling(len(sigmas), times=bent)
    elif sigmas:
        how = families.sampling_of(folder, sigmas=sigmas)
    elif families.resolve(folder) in families.SHIPPED.values():
        how = families.SHIPPED_EVALUATION
        how = replace(how, steps=steps or how.steps)
    elif steps is not None and shift is not None:
        how = Sampling(steps)
    else:
        how = families.sampling_of(folder, steps)
    if shift is not None and not sigmas:
        how = Sampling(how.steps, shift, how.cfg_scale, cfg_rescale=how.cfg_rescale)
    return how if scale is None else replace(how, cfg_scale=scale)


def overridden(chosen: Evaluation, folder: str) -> str:
    """A line that says which recipe keys stand in place of how the folder's own pipeline samples; empty without any."""
    keys = ("teacher_steps", "teacher_shift", "teacher_cfg_scale", "teacher_sigmas")
    values = {key: value for key in keys if (value := vars(chosen)[key])}
    words = {key: f"{value:g}" if isinstance(value, int | float) else str(value) for key, value in values.items()}
    given = [f"evaluation.{key}={word}" for key, word in words.items()]
    return f"{folder}: {', '.join(given)}, in place of its own pipeline's sampling" if given else ""


def few_step_candidates(cfg_scale: float, cfg_rescale: float = 0.0) -> list[Sampling]:
    """All the ways a teacher may spend 4 evaluations: 4 unguided steps, or 2 guided ones, at shift 1, 2, 3 or 5."""
    unguided = [Sampling(4, shift) for shift in FEW_STEP_SHIFTS]
    if cfg_scale <= 1:
        return unguided
    return unguided + [Sampling(2, shift, cfg_scale, cfg_rescale=cfg_rescale) for shift in FEW_STEP_SHIFTS]


LoraFile = tuple[Path, float]
"""A LoRA file and its strength."""


def lora_file(text: str) -> LoraFile:
    """FILE or FILE:strength. Raises: UserError if it is no file, or the strength no number."""
    if Path(text).is_file() or text.endswith(".safetensors"):
        name, strength = text, "1"
    else:
        name, _, strength = text.rpartition(":")
    try:
        found = float(strength)
        if not math.isfinite(found):
            raise ValueError
    except ValueError:
        raise UserError(f"--lora {text}: {strength!r} is no strength; write FILE.safetensors:0.8") from None
    folder, _, file = name.partition("/")
    path = families.SHIPPED[folder] / file if folder in families.SHIPPED else Path(name)
    if not path.is_file():
        raise UserError(f"no LoRA file at {path}")
    return path, found


class Encodings:
    """Cases as one pipeline's encoders see them, each encoded once for all networks and samplings of that pipeline."""

    def __init__(self, model: PipelineModel, resolution: int, batch_size: int, clock: Clock | None = None) -> None:
        """clock: gets the time of the phase `encoding`."""
        self.model: PipelineModel | None = model
        self.resolution, self.batch_size, self._multiple = resolution, batch_size, model.side_multiple
        self.clock = clock or Clock()
        self._encoded: dict[str, EncodedRequest] = {}

    def __call__(self, cases: Sequence[Case], seeds: Sequence[int]) -> list[EncodedRequest]:
        """Encoded cases, the noise of each from its seed."""
        missing = [case for case in cases if case.id not in self._encoded]
        if missing:
            assert self.model is not None, "the encoders were released"
            with self.clock.phase("encoding"):
                found = encode(self.model, [self._request(case) for case in missing], self.batch_size)
            self._encoded |= {case.id: encoded for case, encoded in zip(missing, found, strict=True)}
        encoded = [self._encoded[case.id] for case in cases]
        return [replace(e, request=replace(e.request, seed=s)) for e, s in zip(encoded, seeds, strict=True)]

    def release(self) -> None:
        """Let the encoders go: from then on only cases that were encoded before can be asked for."""
        self.model = None

    def _request(self, case: Case) -> Request:
        sources = tuple(fit(Image.fromarray(source), self.resolution, self._multiple) for source in case.sources)
        return Request(case.prompt, sources=sources, height=self.resolution, width=self.resolution)


def from_sampler(sampler: Sampler, encodings: Encodings, how: Sampling) -> ModelUnderTest:
    """A denoiser of a pipeline, sampled as `how` says."""

    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        drawn = sampler.sample(encodings(cases, seeds), how)
        return drawn.images, drawn.wall_s

    return ModelUnderTest(draw, how.nfe, how.as_dict())


class FolderUnderTest:
    """`folder`'s base network, and each of `specialists` (name -> LoRA file) as an adapter over it.

    Loaded once for any number of samplings and adapters, when it is first asked to draw: never where all its answers
    are stored.

    Raises:
        UserError: no such folder; as it is loaded, an adapter that does not fit it.
    """

    def __init__(
        self,
        folder: str,
        resolution: int,
        batch_size: int = 0,
        clock: Clock | None = None,
        specialists: Mapping[str, Path] | None = None,
        device: str | None = None,
        loras: Sequence[LoraFile] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """batch_size: 0 chooses by device and model. device: a GPU if there is one, when None. loras: added to the base
        network, each times its strength. dtype: of all weights."""
        self.clock = clock or Clock()
        self._folder, self._resolution, self._batch_size = folder, resolution, batch_size
        self._specialists = dict(specialists or {})
        self._path = families.resolve(folder)
        self._loras, self._dtype = tuple(loras), dtype
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._samplers: dict[str, Sampler] = {}

    @cached_property
    def loaded(self) -> PipelineModel:
        """The folder's model."""
        with self.clock.phase("loading"):
            return families.load(self._folder, device=self._device, dtype=self._dtype)

    @cached_property
    def batch_size(self) -> int:
        """As given, or what suits the device and the model."""
        return self._batch_size or default_batch_size(self.loaded, self._resolution)

    @cached_property
    def _denoiser(self) -> RoleNetworks:
        denoiser = single_role(self.loaded)
        if self._loras:
            roles.merge_loras(denoiser.network(roles.TEACHER), self._loras)
        for name, path in self._specialists.items():
            roles.adapt(denoiser.network(roles.TEACHER), name, lora_files.read(path))
            denoiser.network_of_role[name] = roles.TEACHER
        return denoiser

    @cached_property
    def _encodings(self) -> Encodings:
        return Encodings(self.loaded, self._resolution, self.batch_size, self.clock)

    def sampler(self, specialist: str | None = None) -> Sampler:
        """Sampler of the base network or of a specialist."""
        role = specialist or roles.TEACHER
        if role not in self._samplers:
            denoiser = RoleDenoiser(self._denoiser, role)
            self._samplers[role] = Sampler(self.loaded, denoiser, self.batch_size, self.clock)
        return self._samplers[role]

    def model(self, how: Sampling | None = None, specialist: str | None = None) -> ModelUnderTest:
        """The base network or a specialist, sampled as `how` says, or as the folder is by default."""
        # Not every file of the folder: LoRA files of specialists may lie in it, which the base does not depend on.
        names = ("transformer", *families.family_of(self._path).encoder_parts)
        parts = [self._path / name for name in names if (self._path / name).exists()]
        files = [*parts, *([self._specialists[specialist]] if specialist else [])]
        where = f"{self._resolution} on {self._device}"
        added = [f"{strength:g} x {fingerprint(path)}" for path, strength in self._loras]
        exact = [] if self._dtype == torch.float32 else [str(self._dtype)]
        mark = "/".join([*(fingerprint(path) for path in files), *added, *exact, where])
        chosen = how or families.sampling_of(self._folder)

        def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
            return from_sampler(self.sampler(specialist), self._encodings, chosen).draw(cases, seeds)

        return ModelUnderTest(draw, chosen.nfe, chosen.as_dict(), mark)
