"""Samples a list of requests with any role of a denoiser: the command line, the sample grids, the evaluation.

Requests are batched by layout. The noise of a request depends on its seed and row alone and padding is masked, so an
image does not depend on what it was batched with. On a GPU products of float32 are taken in TensorFloat-32, and a small
network, which kernel launches would bound, has one velocity evaluation recorded and replayed (`graphs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from workbench.backbones.base import Prefix, RoleDenoiser
from workbench.backbones.family import PipelineModel
from workbench.backbones.finite import require_finite_latents
from workbench.batch import Condition, EncodedPrompt, Reference, conditions
from workbench.common.clock import Clock
from workbench.common.images import check_sources
from workbench.common.progress import advance, has_own_bar
from workbench.engine.graphs import GraphedStep
from workbench.method import rng
from workbench.method.rollout import Sampling, Velocity, guided, sample

NOISE_STREAM = "sampling"
GRAPHED_PARAMETERS = 100_000_000
"""Networks up to this size are bound by kernel launches on a GPU."""
ROW_STEP, TEXT_STEP = 64, 16
"""Recorded batches have multiples of so many rows and text tokens: few shapes, so few recordings."""
GPU_WORK, MOST_ROWS = 2**37, 256
"""Parameters times target tokens times rows that keep a GPU busy; more rows would only take memory."""
CPU_ROWS, CPU_DECODED = 32, 8
"""Rows of a batch, and images decoded at once, that suit the caches of a CPU."""


@dataclass(frozen=True)
class Request:
    """One image to make. Noise is a function of (seed, row): equal ones in two models' requests pair their samples.

    sources: RGB or RGBA, of sizes that the family takes (`fit`); the last one's size is then the output's, as in stock
    editing pipelines. height, width: pixels, for T2I.
    """

    prompt: str
    seed: int = 0
    row: int = 0
    sources: tuple[Image.Image, ...] = ()
    height: int = 128
    width: int = 128


@dataclass(frozen=True)
class EncodedRequest:
    """A request, encoded once for any number of models. uncond: under the empty prompt, sources kept.

    references: (R, C) latents of all sources in order, or None.
    """

    request: Request
    prompt: EncodedPrompt
    uncond: EncodedPrompt
    references: Tensor | None
    height: int
    width: int

    @property
    def layout(self) -> tuple[tuple[Reference, ...], int, int]:
        """What the cases of one batch share; sizes in latent tokens."""
        return self.prompt.references, self.height, self.width


@dataclass(frozen=True)
class Samples:
    """images: (H, W, 3) uint8 of each case, in order. nfe: network evaluations an image, guidance counted twice.

    wall_s: prefix, sampling and decoding of all of them; encoding of prompts and sources is not in it.
    """

    images: list[np.ndarray]
    latents: list[Tensor]
    nfe: int
    wall_s: float


def fit(image: Image.Image, resolution: int, side_multiple: int) -> Image.Image:
    """`image` at about resolution^2 pixels, aspect kept, sides multiples of `side_multiple`: what the pipelines of
    diffusers do to sources."""
    aspect = image.width / image.height
    exact = math.sqrt(resolution * resolution * aspect)
    width, height = (max(1, round(side / side_multiple)) * side_multiple for side in (exact, exact / aspect))
    mode = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    return mode if mode.size == (width, height) else mode.resize((width, height), Image.Resampling.LANCZOS)


def default_batch_size(model: PipelineModel, resolution: int) -> int:
    """Rows of a batch on the model's device."""
    if model.device.type != "cuda":
        return CPU_ROWS
    work = _num_parameters(model) * (resolution // model.pixels_per_token) ** 2
    return max(1, min(MOST_ROWS, GPU_WORK // work))


def _num_parameters(model: PipelineModel) -> int:
    return sum(parameter.numel() for parameter in model.transformer.parameters())


class Sampler:
    """Samples requests through the encoders and the autoencoder of `model` and one role of a denoiser."""

    def __init__(
        self,
        model: PipelineModel,
        denoiser: RoleDenoiser,
        batch_size: int = CPU_ROWS,
        clock: Clock | None = None,
    ) -> None:
        """clock: gets the time of the phases `sampling` and `decoding`."""
        self.model, self.denoiser, self.batch_size = model, denoiser, batch_size
        self.clock = clock or Clock()
        self._graphed = model.device.type == "cuda" and _num_parameters(model) <= GRAPHED_PARAMETERS
        self._recorded = GraphedStep(self._evaluate)
        self._recorded_prefix: Prefix | None = None

    def __call__(self, requests: Sequence[Request], how: Sampling) -> Samples:
        """Encode and sample; see `encode` and `sample`."""
        return self.sample(encode(self.model, requests, self.batch_size), how)

    @torch.no_grad()
    def sample(self, cases: Sequence[EncodedRequest], how: Sampling) -> Samples:
        """All cases, sampled as `how` says."""
        images: list[np.ndarray | None] = [None] * len(cases)
        latents: list[Tensor | None] = [None] * len(cases)
        began = time.perf_counter()
        with _tensor_float(), Progress(transient=True, disable=not has_own_bar()) as progress:
            bar = progress.add_task("sampling", total=len(cases))
            for rows in _batches(cases, self.batch_size):
                batch = [cases[row] for row in rows]
                with self.clock.phase("sampling"):
                    x0 = self._latents(batch, how)
                with self.clock.phase("decoding"):
                    decoded = self._decoded(x0, batch[0].height, batch[0].width)
                for row, image, latent in zip(rows, decoded, x0.cpu(), strict=True):
                    images[row], latents[row] = image, latent
                progress.advance(bar, len(rows))
                advance(how.nfe * len(rows))
        return Samples(
            [image for image in images if image is not None],
            [latent for latent in latents if latent is not None],
            how.nfe,
            time.perf_counter() - began,
        )

    def _decoded(self, x0: Tensor, height: int, width: int) -> np.ndarray:
        """(B, H, W, 3) uint8. Raises: UserError rather than to draw black pictures of NaN."""
        require_finite_latents(x0)
        parts = [x0] if x0.device.type == "cuda" else x0.split(CPU_DECODED)
        decoded = [self.model.decode_latents(part, height, width) for part in parts]
        return torch.cat(decoded).cpu().numpy()

    def _latents(self, cases: Sequence[EncodedRequest], how: Sampling) -> Tensor:
        """Final latents (B, N, C) of cases that share a layout."""
        count = len(cases)
        if self._graphed:
            # Rows that only fill the recorded shape repeat the last one, and are dropped.
            cases = [*cases, *[cases[-1]] * (-count % ROW_STEP)]
        device = self.model.device

        def noise(stream: str) -> Tensor:
            drawn = [_noise(case, self.denoiser.num_channels, stream) for case in cases[:count]]
            return torch.stack([*drawn, *drawn[-1:] * (len(cases) - count)]).to(device)

        fresh = (lambda step: noise(f"{NOISE_STREAM}/fresh{step}")) if how.stochastic else None
        cond = self._predictor([case.prompt for case in cases], cases)
        uncond = self._predictor([case.uncond for case in cases], cases) if how.cfg_scale != 1 else None
        velocity = guided(cond, uncond, how.cfg_scale, how.cfg_rescale)
        return sample(velocity, noise(NOISE_STREAM), how.grid(cases[0].height * cases[0].width).to(device), fresh)[
            :count
        ]

    def _predictor(self, encoded: Sequence[EncodedPrompt], cases: Sequence[EncodedRequest]) -> Velocity:
        """The velocity of `cases` under the prompts `encoded`."""
        return partial(self._velocity, self.denoiser.prefix(self._condition(encoded, cases)))

    def _condition(self, encoded: Sequence[EncodedPrompt], cases: Sequence[EncodedRequest]) -> Condition:
        references = [case.references for case in cases if case.references is not None]
        longest = max(len(item.embeddings) for item in encoded)
        condition = conditions(
            encoded,
            torch.stack(references) if references else None,
            cases[0].height,
            cases[0].width,
            longest + (-longest % TEXT_STEP if self._graphed else 0),
        )
        # A recorded evaluation always has a mask: prompts that happen to fill their rows are not worth another one.
        return replace(condition, layout=replace(condition.layout, padded=True)) if self._graphed else condition

    def _velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor) -> Tensor:
        if not self._graphed:
            return self.denoiser.velocity(prefix, x_t, t)
        self._recorded_prefix = prefix
        # The next replay overwrites these outputs.
        return self._recorded([x_t, t, *prefix.tensors()])[0].clone()

    def _evaluate(self, tensors: Sequence[Tensor]) -> tuple[Tensor]:
        x_t, t, *of_prefix = tensors
        assert self._recorded_prefix is not None
        return (self.denoiser.velocity(self._recorded_prefix.over(of_prefix), x_t, t),)


@contextmanager
def _tensor_float() -> Iterator[None]:
    """Compute float32 products on a GPU in TensorFloat-32; a CPU is not affected."""
    before = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def encode(model: PipelineModel, requests: Sequence[Request], batch_size: int = CPU_ROWS) -> list[EncodedRequest]:
    """Prompts, empty prompts and sources of `requests`, in order.

    Raises:
        ValueError: a side that is no multiple of the family's `side_multiple`.
        UserError: more sources than the family takes.
    """
    for request in requests:
        _check_sizes(request, model.side_multiple)
        check_sources(len(request.sources), model.max_sources, f"the edit {request.prompt[:40]!r}")
    plain = model.encode_prompts([""])[0]
    cases: list[EncodedRequest | None] = [None] * len(requests)
    keys = [(_size(request), *(source.size for source in request.sources)) for request in requests]
    for rows in _runs(sorted(range(len(requests)), key=lambda row: keys[row]), keys, batch_size):
        chosen = [requests[row] for row in rows]
        width, height = (pixels // model.pixels_per_token for pixels in _size(chosen[0]))
        images = [request.sources for request in chosen] if chosen[0].sources else None
        prompts = model.encode_prompts([request.prompt for request in chosen], images)
        unconds, references = [plain] * len(rows), None
        if images is not None:
            unconds = model.encode_prompts([""] * len(rows), images)
            references = torch.cat([_latents_of(model, of_one) for of_one in zip(*images, strict=True)], dim=1)
        for index, row in enumerate(rows):
            of_case = references[index] if references is not None else None
            cases[row] = EncodedRequest(chosen[index], prompts[index], unconds[index], of_case, height, width)
    return [case for case in cases if case is not None]


def _latents_of(model: PipelineModel, images: Sequence[Image.Image]) -> Tensor:
    """(B, tokens, C) of images of one size."""
    pixels = np.stack([np.asarray(image.convert("RGBA")) for image in images])
    return model.encode_images(torch.from_numpy(pixels), exactly=True)


def _size(request: Request) -> tuple[int, int]:
    return request.sources[-1].size if request.sources else (request.width, request.height)


def _check_sizes(request: Request, side_multiple: int) -> None:
    for width, height in (_size(request), *(source.size for source in request.sources)):
        if width % side_multiple or height % side_multiple or width <= 0 or height <= 0:
            raise ValueError(f"images are made in multiples of {side_multiple} pixels, not {width} x {height}")


def _batches(cases: Sequence[EncodedRequest], batch_size: int) -> list[list[int]]:
    """Rows of at most `batch_size` cases of one layout each, prompts of like length together."""
    keys = [case.layout for case in cases]
    order = sorted(range(len(cases)), key=lambda row: (*keys[row], len(cases[row].prompt.embeddings)))
    return _runs(order, keys, batch_size)


def _runs(order: Sequence[int], keys: Sequence[object], batch_size: int) -> list[list[int]]:
    """`order` cut where the key changes and after every `batch_size` rows."""
    runs: list[list[int]] = []
    for row in order:
        if not runs or len(runs[-1]) == batch_size or keys[runs[-1][0]] != keys[row]:
            runs.append([])
        runs[-1].append(row)
    return runs


def _noise(case: EncodedRequest, channels: int, stream: str) -> Tensor:
    """(N, C) of one case, whatever it is batched with."""
    shape = (case.height * case.width, channels)
    first = torch.zeros(1, dtype=torch.int64)
    return rng.normal(shape, first, seed=case.request.seed, stream=stream, step=case.request.row, num_rows=1)[0]
