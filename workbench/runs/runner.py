"""From a recipe to a run folder: the only file that sees data and modules both.

recipe -> encoded shards -> datamodule -> roles -> trainer -> run folder -> pipeline folder of the student.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import torch

from datamodules.distillation import DistillationData
from datamodules.pretraining import PretrainingData, ShardSource, Source
from datamodules.shards.encoded import EncodedDataset
from workbench.backbones import families, lora_files, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.load import load_for_training, load_roles, single_role, stored_base, trained_specialist
from workbench.backbones.lora import role_adapters
from workbench.backbones.placement import frozen_dtype
from workbench.common.console import say
from workbench.common.errors import UserError
from workbench.common.parent import end_with_parent
from workbench.common.tables import stdout_console
from workbench.modules.distiller import Distiller
from workbench.modules.pretrainer import Pretrainer
from workbench.modules.root import RootModule
from workbench.recipe.config import Recipe
from workbench.runs import continuing, loggers, machine, milestones, plan, preflight
from workbench.runs.callbacks import Averaging, Checkpointing, Grid, Milestones, Resuming, SampleGrid
from workbench.runs.exporting import export_student, record_data, return_to_best
from workbench.runs.inputs import hashes_of
from workbench.runs.loggers import loggers_of
from workbench.runs.preparation import Preparation, keep_compiled
from workbench.runs.run_folder import Beginning, RunFolder, is_first_rank
from workbench.runs.scalars import DataWait, Metrics
from workbench.runs.updates_bar import UpdatesBar

TIMED_UPDATES = 2
"""Of a dry run: two, so that tasks that take turns are both there."""


def distill(recipe: Recipe, *, dry_run: bool = False) -> Path:
    """Distil into `recipe.trainer.folder`, from its newest checkpoint if it has one; returns the folder.

    dry_run: print the plan, its memory, disk and time, and what the command would do in the folder; write nothing.

    Raises:
        UserError: anything in the recipe, the data or the folder that the user can fix.
    """
    if not is_first_rank():
        end_with_parent()
    machine.check(recipe)
    loggers.check(recipe.trainer)
    recipe, reason = machine.resolved(recipe)
    if reason:
        say(reason)
    folder = RunFolder(Path(recipe.trainer.folder))
    dataset = EncodedDataset(recipe.data.encoded)
    beginning, start = continuing.distillation(folder, recipe, dataset.content)
    data = DistillationData(
        dataset,
        recipe.mixture,
        fake_updates=recipe.dmd.fake_groups,
        num_steps=recipe.trainer.updates,
        seed=recipe.seed,
        guided=recipe.teachers.cfg_scale != 1,
        fake_targets=recipe.dmd.adversarial_weight > 0,
    )
    teacher = load_for_training(recipe, recipe.model.folder)
    preflight.check_data(dataset, teacher, recipe)
    denoiser = load_roles(recipe, teacher, frozen_dtype(recipe))
    if machine.compiles(recipe.trainer, denoiser):
        if not dry_run:
            keep_compiled(folder.path)
        denoiser.compile_blocks()
    module = Distiller(denoiser, recipe, data.categories)
    if dry_run:
        line = continuing.status(folder, beginning, start)
        measure = partial(_seconds_per_update, recipe, module, data)
        plan.show(recipe, module, denoiser, data, measure, line, stdout_console())
        return folder.path
    plan.require_memory(recipe, module, denoiser)
    with continuing.held(folder, beginning):
        record_data(folder, dataset)
        averaging = Averaging(recipe.optim.ema_decay)
        grid = milestones.distillation_grid(recipe, teacher, data)
        scores = milestones.distillation_scores(recipe, teacher) if recipe.evaluation.milestone_cases else None
        samples_per_update = recipe.mixture.batch_size * (1 + recipe.dmd.fake_updates)
        best = folder.checkpoints if recipe.trainer.keep == "best" else None
        distance = milestones.distillation_distance(recipe, data)
        milestone_log = Milestones(folder.milestones, best, recipe.trainer.sample_every, averaging, distance, scores)
        ended = _fit(recipe, folder, module, data, averaging, grid, samples_per_update, milestone_log, start=start)
        delivered = module.num_updates
        if best is not None:
            delivered = return_to_best(best, milestone_log.monitor, averaging.average.average) or delivered
        _export_student(recipe, folder, denoiser, averaging, delivered, ended)
    return folder.path


def pretrain(recipe: Recipe, source: Source | None = None, pictured: Source | None = None) -> Path:
    """Train `recipe.model.folder` by flow matching; returns the pipeline folder that it became, or the LoRA file of
    the specialist over it (`pretrain.lora_rank`).

    source: what the run trains on, the shards of `data.encoded` when None. pictured: what its sample pictures are of,
    when not `source`.

    Raises:
        UserError: anything in the recipe, the data or the folder that the user can correct.
    """
    machine.check(recipe)
    loggers.check(recipe.trainer)
    if recipe.trainer.strategy != "auto" or recipe.trainer.devices * recipe.trainer.num_nodes > 1:
        raise UserError("pretraining runs on one device: set trainer.strategy=auto and trainer.devices=1")
    if recipe.trainer.start:
        raise UserError("trainer.start is for distillation: pretraining starts from model.folder")
    folder = RunFolder(Path(recipe.trainer.folder))
    dataset = EncodedDataset(recipe.data.encoded) if source is None else None
    content = dataset.content if dataset is not None else None
    beginning = Beginning(recipe, "pretrain", hashes_of(recipe, content, "pretrain"))
    continuing.num_done(folder, beginning)
    base = families.load(recipe.model.folder)
    text = base.trainable_text()
    if source is None:
        assert dataset is not None
        preflight.check_resolution(dataset, base.pixels_per_token, recipe)
        source = ShardSource(dataset, text.tokenize)
    data, drawn = (
        PretrainingData(
            samples,
            recipe.mixture,
            num_system_tokens=text.num_system_tokens,
            prompt_drop=recipe.pretrain.prompt_drop,
            num_steps=recipe.pretrain.steps,
            seed=recipe.seed,
        )
        for samples in (source, pictured or source)
    )
    specialist = recipe.pretrain.lora_rank > 0
    denoiser = trained_specialist(base, recipe) if specialist else single_role(base)
    module = Pretrainer(denoiser, text, recipe)
    with continuing.held(folder, beginning):
        averaging = Averaging(recipe.pretrain.ema_decay)
        grid = milestones.pretraining_grid(recipe, base, drawn)
        _fit(recipe, folder, module, data, averaging, grid, recipe.mixture.batch_size)
        averaging.average.swap()
        if specialist:
            lora_files.write(role_adapters(base.transformer, roles.TEACHER), folder.specialist, header={})
            return folder.specialist
        base.export_pretrained(families.resolve(recipe.model.folder), folder.teacher)
        return folder.teacher


def _fit(
    recipe: Recipe,
    folder: RunFolder,
    module: RootModule,
    data: DistillationData | PretrainingData,
    averaging: Averaging,
    grid: Grid,
    samples_per_update: int,
    *more: L.Callback,
    start: continuing.Start | None = None,
) -> float | None:
    """Train from the newest checkpoint, or from `start`, to the end; when the last update ended, on the clock of
    `time.perf_counter`, None where an earlier process did it."""
    options = recipe.trainer
    wait = DataWait()
    metrics = Metrics(folder.scalars, options.log_every, data, samples_per_update, wait)

    resuming = Resuming(folder.checkpoints, averaging, data, loggers_of(recipe, folder.path), start)
    callbacks: list[L.Callback] = [
        averaging,
        resuming,
        *([Preparation(data)] if isinstance(data, DistillationData) else []),
        metrics,
        SampleGrid(folder.samples, options.sample_every, averaging, grid),
        Checkpointing(folder.checkpoints, options.checkpoint_every, averaging),
        *more,
        UpdatesBar(),
        wait,
    ]
    # Lightning's own bar counts epochs.
    trainer = machine.make_trainer(recipe, callbacks=callbacks, logger=False, enable_progress_bar=False)
    trainer.fit(module, datamodule=data)
    if resuming.num_done == module.total_updates:
        # Killed after the last update and before its export: a trainer without batches starts no callback, so none has
        # the weights yet.
        for callback in (averaging, resuming, *more):
            callback.on_train_start(trainer, module)
        for logger in trainer.loggers:
            logger.finalize("success")
    if module.num_skipped >= module.total_updates:
        raise UserError(
            f"{module.num_skipped} steps were skipped in {module.total_updates} updates, so what was trained is worth "
            "nothing: lower the learning rate and start again in a new trainer.folder"
        )
    return metrics.ended


def _export_student(
    recipe: Recipe,
    folder: RunFolder,
    denoiser: RoleNetworks,
    averaging: Averaging,
    update: int,
    ended: float | None,
) -> None:
    """Export the averaged weights, as of `update` (collective). ended: as `_fit` returns it."""
    started = time.perf_counter()
    quantised = recipe.model.frozen == "fp8" and recipe.model.roles == "lora"
    base = stored_base(recipe, frozen_dtype(recipe)) if quantised else None
    averaging.average.swap()
    export_student(folder, recipe, roles.MergedState(denoiser, roles.STUDENT, base), folder.student, update)
    averaging.average.swap()
    now = time.perf_counter()
    after = f", {now - ended:.0f} s after the last update" if ended is not None else ""
    say(f"the student of update {update} is in {folder.student}, written in {now - started:.0f} s{after}")


def _seconds_per_update(recipe: Recipe, module: Distiller, data: DistillationData) -> float:
    """Measured on updates that change nothing that is kept; the first one also sets up what all others find there."""
    brief = replace(recipe, trainer=replace(recipe.trainer, updates=1 + TIMED_UPDATES))
    data.num_steps = module.total_updates = brief.trainer.updates
    clock = _Clock()
    callbacks = [Preparation(data), clock]
    trainer = machine.make_trainer(brief, logger=False, enable_progress_bar=False, callbacks=callbacks)
    trainer.fit(module, datamodule=data)
    return (clock.ended - clock.started) / TIMED_UPDATES


class _Clock(L.Callback):
    """started, ended: the updates after the first one, in seconds of `time.perf_counter`."""

    started = ended = 0.0

    def on_train_batch_end(self, *_: object) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.ended = time.perf_counter()
        self.started = self.started or self.ended
