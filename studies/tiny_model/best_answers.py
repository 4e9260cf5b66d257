"""What a specialist goes on with: the best of several of its own answers to each caption.

Rejection sampling as fine-tuning data (RAFT, Dong et al. 2023, arXiv 2304.06767). The second judge chooses, the first
one, which measures, has no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from datamodules.openmoji import drawn
from datamodules.pretraining import Held
from studies.tiny_model.curation import Curation
from studies.tiny_model.stages import key_of
from studies.tiny_model.world_source import WorldSource, device_of, world_sources
from workbench.backbones import families
from workbench.common import files
from workbench.common.fingerprint import fingerprint
from workbench.common.progress import job
from workbench.evaluation.answers import chunks
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.world import case_of
from workbench.evaluation.judges.judge import LOCAL
from workbench.evaluation.judges.local import Judgement, LocalJudge
from workbench.evaluation.models import Encodings, FolderUnderTest, teacher_sampling
from workbench.method.rollout import Sampling
from workbench.recipe.config import Recipe
from workbench.sampling.sampler import Sampler

CASES_AT_ONCE = 1024
LATENTS, BEST, MEAN = "latents.{}", "score/best", "score/mean"


@dataclass(frozen=True)
class Choice:
    """answers: to each caption. judge: its folder. adapter: LoRA file of the specialist. kept_in: file of what was
    chosen, which another start takes up."""

    answers: int
    judge: Path
    adapter: Path
    curation: Curation
    kept_in: Path


class BestAnswers:
    """A `Source`: the samples of `world` at update 0, with the chosen latents (n, N, C) of each geometry as targets."""

    def __init__(self, world: WorldSource, latents: Sequence[Tensor]) -> None:
        self._world, self._latents = world, latents
        self.categories, self.geometries = world.categories, world.geometries
        self.category, self.geometry = world.category, world.geometry

    def held(self, geometry: int, step: int) -> Held:
        """See `Source`."""
        return replace(self._world.held(geometry, 0), latents=self._latents[geometry])

    def key(self, index: int, step: int) -> str:
        """See `Source`."""
        return self._world.key(index, 0)

    def text(self, index: int) -> str:
        """See `Source`."""
        return self._world.text(index)


def best_answers(recipe: Recipe, choice: Choice) -> tuple[BestAnswers, WorldSource, dict[str, float]]:
    """The specialist's best answers to the captions of `data.samples`, sampled as `evaluation.teacher_*` say; what
    sample pictures are of; the judge's mean score of all answers and of the chosen ones."""
    world, pictured = world_sources(recipe, recipe.pretrain.steps, choice.curation)
    found = _kept(recipe, choice) or _chosen(recipe, choice, world)
    latents = [found[LATENTS.format(geometry)].to(device_of(recipe)) for geometry in range(len(world.geometries))]
    return BestAnswers(world, latents), pictured, {name: float(found[name]) for name in (MEAN, BEST)}


def _settings(recipe: Recipe, choice: Choice) -> str:
    """Changes with all that the chosen answers depend on."""
    weights = [fingerprint(path) for path in (families.resolve(recipe.model.folder), choice.adapter, choice.judge)]
    asked = [recipe.data.samples, recipe.data.resolution, choice.curation]
    return key_of({"asked": asked, "answers": choice.answers, "how": recipe.evaluation, "weights": weights})


def _kept(recipe: Recipe, choice: Choice) -> dict[str, Tensor] | None:
    if not choice.kept_in.is_file():
        return None
    with safe_open(choice.kept_in, framework="pt") as file:
        if (file.metadata() or {}).get("settings") != _settings(recipe, choice):
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping


def _chosen(recipe: Recipe, choice: Choice, world: WorldSource) -> dict[str, Tensor]:
    """Draws and judges all answers; what was chosen is in `choice.kept_in` then."""
    device = device_of(recipe).type
    resolution, folder = recipe.data.resolution, recipe.model.folder
    subject = FolderUnderTest(folder, resolution, loras=[(choice.adapter, 1.0)], device=device)
    artist = _Artist(
        subject.sampler(),
        Encodings(subject.loaded, resolution, subject.batch_size),
        LocalJudge(choice.judge, device),
        teacher_sampling(recipe.evaluation, folder),
    )
    found: dict[str, Tensor] = {}
    scores = []
    with job("drawing answers to choose from", artist.how.nfe * choice.answers * len(world.category)):
        for geometry in range(len(world.geometries)):
            cases = [_case(world, int(at), resolution) for at in np.flatnonzero(world.geometry == geometry)]
            best = []
            for part in chunks(cases, CASES_AT_ONCE):
                latents, of_part = artist.answers(part, choice.answers)
                winners = torch.from_numpy(of_part.argmax(axis=0))
                best.append(latents[winners, torch.arange(len(part))])
                scores.append(of_part)
            found[LATENTS.format(geometry)] = torch.cat(best).half()
    judged = np.concatenate(scores, axis=1)
    found |= {MEAN: torch.tensor(judged.mean()), BEST: torch.tensor(judged.max(axis=0).mean())}
    files.write_bytes(choice.kept_in, save(found, {"settings": _settings(recipe, choice)}))
    return found


@dataclass(frozen=True)
class _Artist:
    """A specialist with its judge."""

    sampler: Sampler
    encodings: Encodings
    judge: LocalJudge
    how: Sampling

    def answers(self, cases: Sequence[Case], count: int) -> tuple[Tensor, np.ndarray]:
        """`count` answers to each of n cases: latents (count, n, N, C) and scores (count, n)."""
        latents, scores = [], []
        for seed in range(count):
            answers = self.sampler.sample(self.encodings(cases, [case.noise_seed(seed) for case in cases]), self.how)
            judged = self.judge.judge(cases, answers.images).scores[LOCAL]
            latents.append(torch.stack(answers.latents))
            scores.append([one.score for one in judged if isinstance(one, Judgement)])
        return torch.stack(latents), np.array(scores)


def _case(world: WorldSource, index: int, resolution: int) -> Case:
    task, category, planned = world.planned(index)
    return case_of(drawn(planned, world.key(index, 0), task, category, resolution))
