"""What is drawn at every milestone of a run, and against what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from datamodules.distillation import DistillationData
from datamodules.pretraining import PretrainingData
from workbench.backbones import families, roles
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.family import PipelineModel
from workbench.batch import Batch, CaptionBatch, Condition, Layout, Task
from workbench.common import ranks
from workbench.evaluation.answers import answer
from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.cases.choose import benchmark_cases
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.models import Encodings, from_sampler, teacher_sampling
from workbench.method.rollout import Sampling
from workbench.modules.distiller import Distiller
from workbench.modules.pretrainer import Pretrainer
from workbench.modules.root import RootModule
from workbench.recipe.config import Recipe
from workbench.recipe.student_times import student_sampling
from workbench.runs.callbacks import Grid, Scored, Scores
from workbench.runs.collapse import energy_distance
from workbench.sampling import fixed_prompts
from workbench.sampling.contact_sheet import Picture, contact_sheet
from workbench.sampling.sampler import Sampler, default_batch_size

MILESTONE_SAMPLES = 48
Kind = tuple[Task, Layout]
PRETRAINING_STEPS = 20
"""Sampling steps of a pretraining grid: enough to judge a teacher by."""


def _labels(data: DistillationData, chosen: Sequence[int]) -> tuple[str, ...]:
    """Category and prompt of each row."""
    dataset = data.dataset
    return tuple(f"{dataset.categories[dataset.samples.category[i]]}:\n{dataset.read_text(i)}" for i in chosen)


def _first_of_each_category(categories: np.ndarray) -> list[int]:
    """Index of the first sample of each category, in the order of the categories."""
    return [int(np.flatnonzero(categories == value)[0]) for value in np.unique(categories)]


def distillation_grid(recipe: Recipe, teacher: PipelineModel, data: DistillationData) -> Grid:
    """Columns of sources, teacher, teacher at 4 NFE (drawn once) and student (drawn at every milestone)."""
    chosen = _first_of_each_category(data.dataset.samples.category)
    labels, student = _labels(data, chosen), student_sampling(recipe.dmd)
    fixed: dict[str, Sequence[Picture | None]] = {}

    def draw(module: RootModule) -> np.ndarray:
        assert isinstance(module, Distiller)
        teacher.move_autoencoder(module.device)
        batches = tuple(batch.to(module.device) for batch in data.batches_for(chosen))
        prompts = fixed_prompts.FixedPrompts(batches, labels, recipe.seed)

        def column(role: str, how: Sampling) -> list[Picture]:
            return fixed_prompts.draw_column(prompts, teacher, RoleDenoiser(module.denoiser, role), how)

        if not fixed:
            fixed.update(fixed_prompts.source_columns(prompts, teacher))
            teachers = teacher_sampling(recipe.evaluation, recipe.model.folder)
            fixed[f"teacher, {teachers.nfe} NFE"] = column(roles.TEACHER, teachers)
            fixed[f"teacher, {recipe.dmd.student_steps} NFE"] = column(
                roles.TEACHER, replace(student, stochastic=False)
            )
        return np.asarray(contact_sheet({**fixed, "student": column(roles.STUDENT, student)}, labels))

    return draw


def distillation_distance(recipe: Recipe, data: DistillationData) -> Callable[[RootModule], float]:
    """Energy distance of the student's samples to the data's targets on fixed prompts of every category, or to the
    teacher's own samples (drawn once) where the data have no targets; the mean over layouts."""
    chosen = _evenly_of_each_category(data.dataset.samples.category, MILESTONE_SAMPLES)
    wanted: dict[Kind, Tensor] = {}

    def of_teacher(module: Distiller, prompts: fixed_prompts.FixedPrompts, batch: Batch) -> Tensor:
        teacher = RoleDenoiser(module.denoiser, roles.TEACHER)
        how = teacher_sampling(recipe.evaluation, recipe.model.folder)
        # Different noise: the student must not be asked for the same pictures.
        apart = fixed_prompts.FixedPrompts(prompts.batches, prompts.labels, recipe.seed + 1)
        noise, times = apart.noise(batch, teacher.num_channels), how.grid(batch.condition.layout.num_target_tokens)
        condition, uncond = batch.condition, batch.uncond
        drawn = teacher.sample(condition, uncond, noise, times, how.cfg_scale, cfg_rescale=how.cfg_rescale)
        return drawn.float().cpu()

    def distance(module: RootModule) -> float:
        assert isinstance(module, Distiller)
        batches = [batch.to(module.device) for batch in data.batches_for(chosen)]
        prompts = fixed_prompts.FixedPrompts(tuple(batches), ("",) * len(chosen), recipe.seed)

        def of_student(batch: Batch) -> Tensor:
            channels = module.student.network.num_channels
            noise, fresh = prompts.noise(batch, channels), prompts.fresh(batch, channels)
            return module.student.sample(batch.condition, noise, fresh).float().cpu()

        drawn = _by_kind(batches, ranks.in_equal_shares(batches, of_student))
        if not wanted:
            lacking = {_kind(batch) for batch in batches if batch.target is None}
            of_data = [batch for batch in batches if _kind(batch) not in lacking]
            of_none = [batch for batch in batches if _kind(batch) in lacking]
            targets = [batch.target.float().cpu() for batch in of_data if batch.target is not None]
            wanted.update(_by_kind(of_data, targets))
            wanted.update(_by_kind(of_none, ranks.in_equal_shares(of_none, partial(of_teacher, module, prompts))))
        found = [energy_distance(samples, wanted[kind]) for kind, samples in drawn.items() if len(samples) > 1]
        return float(torch.stack(found).mean()) if found else float("nan")

    return distance


def _kind(batch: Batch) -> Kind:
    return batch.task, batch.condition.layout


def _by_kind(batches: Sequence[Batch], latents: Sequence[Tensor]) -> dict[Kind, Tensor]:
    """Latents of batches, (n, N C) for each kind."""
    found: dict[Kind, list[Tensor]] = {}
    for batch, of_batch in zip(batches, latents, strict=True):
        found.setdefault(_kind(batch), []).append(of_batch.flatten(1))
    return {kind: torch.cat(parts) for kind, parts in found.items()}


def _evenly_of_each_category(categories: np.ndarray, count: int) -> list[int]:
    """About `count` samples, the first ones of each category."""
    values = np.unique(categories)
    return [int(i) for value in values for i in np.flatnonzero(categories == value)[: max(2, count // len(values))]]


def distillation_scores(recipe: Recipe, teacher: PipelineModel) -> Scores:
    """The student's scores on a slice of the search split, as `evaluate` scores them: the means `t2i`, `editing` and
    `score`, the mean of both, and every case."""
    chosen, resolution = recipe.evaluation, recipe.data.resolution
    cases = benchmark_cases(
        recipe.data,
        chosen,
        split="search",
        t2i_cases=chosen.milestone_cases,
        editing_cases=chosen.milestone_cases,
    )
    judges = [LocalJudge()]

    @cache
    def encodings(device: torch.device, batch_size: int) -> Encodings:
        # The run holds no text encoder: one is loaded for this and released.
        found = Encodings(families.load(recipe.model.folder, device, transformer=False), resolution, batch_size)
        found(cases, [0] * len(cases))
        found.release()
        return found

    def score(module: RootModule) -> Scored:
        assert isinstance(module, Distiller)
        teacher.move_autoencoder(module.device)
        network = RoleDenoiser(module.denoiser, roles.STUDENT)
        batch_size = chosen.batch_size or default_batch_size(teacher, resolution)
        sampler, known = Sampler(teacher, network, batch_size), encodings(module.device, batch_size)
        found = answer(from_sampler(sampler, known, student_sampling(recipe.dmd)), cases, chosen.seeds[:1], judges)
        tables = {"t2i": found.by_category(BENCHES["t2i"]), "editing": found.by_category(BENCHES["edit"])}
        means = {name: float(np.mean([v.mean() for v in table.values()])) for name, table in tables.items() if table}
        of_cases: dict[str, dict[str, dict[str, float]]] = {}
        for row in found.rows:
            if row.judgement is not None:
                of_category = of_cases.setdefault(row.bench, {}).setdefault(row.category, {})
                of_category[row.case] = round(row.judgement.score, 5)
        return Scored({**means, "score": float(np.mean(list(means.values())))}, of_cases)

    return score


def pretraining_grid(recipe: Recipe, base: PipelineModel, data: PretrainingData) -> Grid:
    """Columns source, real and sample, guided as the evaluation's teacher is."""
    source = data.source
    chosen = [int(i) for value in np.unique(source.category) for i in np.flatnonzero(source.category == value)[:2]]
    labels = tuple(f"{source.categories[source.category[i]]}:\n{source.text(i)}" for i in chosen)

    def draw(module: RootModule) -> np.ndarray:
        assert isinstance(module, Pretrainer)
        base.move_autoencoder(module.device)
        batches = [batch.to(module.device) for batch in data.batches_for(chosen)]
        empty = [batch.to(module.device) for batch in data.batches_for(chosen, dropped=True)]
        with torch.no_grad():
            pairs = [
                (batch, module.condition(batch), module.condition(twin))
                for batch, twin in zip(batches, empty, strict=True)
            ]
        prompts = fixed_prompts.FixedPrompts(tuple(_as_batch(*pair) for pair in pairs), labels, recipe.seed)
        network = RoleDenoiser(module.denoiser, roles.TEACHER)
        how = teacher_sampling(recipe.evaluation, recipe.model.folder)
        few = replace(recipe.evaluation, teacher_steps=min(PRETRAINING_STEPS, how.steps))
        guided = teacher_sampling(few, recipe.model.folder)
        plain = replace(guided, cfg_scale=1.0)
        columns: dict[str, Sequence[Picture | None]] = {
            **fixed_prompts.source_columns(prompts, base),
            "real": fixed_prompts.latents_column(prompts, base, {i: b.target for i, b in enumerate(batches)}),
            f"{plain.steps} steps": fixed_prompts.draw_column(prompts, base, network, plain),
            "guided": fixed_prompts.draw_column(prompts, base, network, guided),
        }
        return np.asarray(contact_sheet(columns, labels))

    return draw


def _as_batch(batch: CaptionBatch, condition: Condition, uncond: Condition) -> Batch:
    return Batch(
        task=batch.task,
        condition=condition,
        uncond=uncond,
        target=batch.target,
        rows=batch.rows,
        weight=batch.weight,
        num_samples=batch.num_samples,
        category=torch.zeros_like(batch.rows),
        sample_ids=batch.sample_ids,
    )
