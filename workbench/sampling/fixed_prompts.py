"""Fixed prompts of a run, drawn again at every milestone: one row a sample, one column a source of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from workbench.backbones.base import RoleDenoiser
from workbench.backbones.family import PipelineModel
from workbench.backbones.finite import require_finite_latents
from workbench.batch import Batch, Layout, Reference
from workbench.common import ranks
from workbench.method import rng
from workbench.method.rollout import Fresh, Sampling
from workbench.sampling.contact_sheet import Picture


@dataclass(frozen=True)
class FixedPrompts:
    """Batches of chosen samples, each of which always gets the same noise.

    batches: their `rows` are positions in the grid. labels: one a row.
    """

    batches: tuple[Batch, ...]
    labels: tuple[str, ...]
    seed: int

    def noise(self, batch: Batch, num_channels: int, step: int = 0) -> Tensor:
        """(B, N, C), the same for every model and milestone: of the start at 0, of the re-noised steps from 1 on."""
        layout = batch.condition.layout
        shape = (layout.num_target_tokens, num_channels)
        noise = rng.normal(
            shape, batch.rows.cpu(), seed=self.seed, stream=f"grid/{layout}", step=step, num_rows=len(self.labels)
        )
        return noise.to(batch.condition.prompt.device)

    def fresh(self, batch: Batch, num_channels: int) -> Fresh:
        """Noise between the steps of a re-noised rollout."""
        return lambda step: self.noise(batch, num_channels, step + 1)


def draw_column(
    prompts: FixedPrompts,
    model: PipelineModel,
    network: RoleDenoiser,
    how: Sampling,
) -> list[Picture]:
    """One picture a row, by `network`; the ranks draw the batches between them (collective)."""

    def drawn(batch: Batch) -> dict[int, Picture]:
        noise, fresh = prompts.noise(batch, network.num_channels), prompts.fresh(batch, network.num_channels)
        times = how.grid(batch.condition.layout.num_target_tokens)
        renoised = fresh if how.stochastic else None
        latents = network.sample(batch.condition, batch.uncond, noise, times, how.cfg_scale, renoised, how.cfg_rescale)
        return _decoded(model, batch, latents, batch.condition.layout)

    pictures: dict[int, Picture] = {}
    for of_batch in ranks.in_equal_shares(list(prompts.batches), drawn):
        pictures |= of_batch
    return [pictures[row] for row in range(len(prompts.labels))]


def source_columns(prompts: FixedPrompts, model: PipelineModel) -> dict[str, list[Picture | None]]:
    """Decoded sources of each batch: `source`, then `source 2` and so on where edits have several."""
    most = max(len(batch.condition.layout.references) for batch in prompts.batches)
    found: list[dict[int, Picture]] = [{} for _ in range(max(most, 1))]
    for batch in prompts.batches:
        references, latents = batch.condition.layout.references, batch.condition.references
        if latents is not None:
            parts = latents.split([reference.num_tokens for reference in references], dim=1)
            for pictures, reference, part in zip(found, references, parts, strict=False):
                pictures |= _decoded(model, batch, part, reference)
    names = ["source", *(f"source {number}" for number in range(2, len(found) + 1))]
    rows = range(len(prompts.labels))
    return {name: [pictures.get(row) for row in rows] for name, pictures in zip(names, found, strict=True)}


def latents_column(
    prompts: FixedPrompts, model: PipelineModel, latents: Mapping[int, Tensor | None]
) -> list[Picture | None]:
    """Decoded latents of each batch, keyed by its position; None where there are none."""
    pictures: dict[int, Picture] = {}
    for position, batch in enumerate(prompts.batches):
        given = latents[position]
        if given is not None:
            pictures |= _decoded(model, batch, given, batch.condition.layout)
    return [pictures.get(row) for row in range(len(prompts.labels))]


def _decoded(model: PipelineModel, batch: Batch, latents: Tensor, of: Layout | Reference) -> dict[int, Picture]:
    """The picture of each row, of the size of `of`."""
    require_finite_latents(latents)
    pictures = model.decode_latents(latents.float(), of.height, of.width).cpu().numpy()
    return dict(zip(batch.rows.tolist(), pictures, strict=True))
