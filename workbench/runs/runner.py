"""From a recipe to a run folder: the only file that sees data and modules both.

recipe -> encoded shards -> datamodule -> roles -> trainer -> run folder -> pipeline folder of the student.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from diffusers import QwenImage21Pipeline
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from torch import Tensor

from datamodules.distillation import DistillationData
from datamodules.openmoji import samples_of
from datamodules.pretraining import PretrainingData, ShardSource, Source
from datamodules.shards.encoded import EncodedDataset
from studies.tiny_model.world_source import WorldSource
from workbench.backbones import roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.placement import frozen_dtype
from workbench.backbones.qwen_image_21 import export, pipeline
from workbench.backbones.qwen_image_21.load import load_for_training, load_roles
from workbench.backbones.qwen_image_21.prompts import PromptTokenizer
from workbench.backbones.qwen_image_21.transformer import single_role
from workbench.common.console import say
from workbench.common.errors import UserError
from workbench.common.jsonl import read_lines
from workbench.modules.distiller import Distiller, student_times
from workbench.modules.pretrainer import Pretrainer
from workbench.modules.root import RootModule
from workbench.recipe.config import Data, Recipe
from workbench.recipe.reading import recipe_hash
from workbench.runs import checkpoint, machine, milestones, plan, preflight
from workbench.runs.callbacks import Averaging, Checkpointing, Grid, Milestones, SampleGrid
from workbench.runs.collapse import Watch
from workbench.runs.run_folder import RunFolder
from workbench.runs.scalars import DataWait, Metrics


def distill(recipe: Recipe, *, dry_run: bool = False) -> Path:
    """Distil into `recipe.trainer.folder`, from its newest checkpoint if it has one; returns the folder.

    dry_run: print the plan, its memory and its time, and write nothing.

    Raises:
        UserError: anything in the recipe, the data or the folder that the user can mend.
    """
    machine.check(recipe)
    folder = RunFolder(Path(recipe.trainer.folder))
    dataset = EncodedDataset(recipe.data.encoded)
    data = DistillationData(
        dataset,
        recipe.mixture,
        fake_updates=recipe.dmd.fake_groups,
        num_steps=recipe.trainer.updates,
        seed=recipe.seed,
        guided=recipe.teachers.cfg_scale != 1,
    )
    teacher = load_for_training(recipe, recipe.model.folder)
    preflight.check_data(dataset, teacher, recipe)
    denoiser = load_roles(recipe, teacher, frozen_dtype(recipe))
    if machine.compiles(recipe, denoiser):
        denoiser.compile_blocks()
    module = Distiller(denoiser, recipe, data.categories)
    if dry_run:
        plan.show(recipe, module, denoiser, data, partial(_seconds_per_update, recipe, module, data), Console())
        return folder.path
    _begin(folder, recipe, "trainer.updates", recipe.trainer.updates)
    averaging = Averaging(recipe.optim.ema_decay)
    grid = milestones.distillation_grid(recipe, teacher, data)
    scores = milestones.distillation_scores(recipe, teacher) if recipe.evaluation.milestone_cases else None
    samples_per_update = recipe.mixture.batch_size * (1 + recipe.dmd.fake_updates)
    best = folder.checkpoints if recipe.trainer.keep == "best" else None
    distance = milestones.distillation_distance(recipe, data)
    told = Milestones(folder.milestones, best, recipe.trainer.sample_every, averaging, distance, scores)
    _fit(recipe, folder, module, data, averaging, grid, samples_per_update, told)
    if best is not None:
        _return_to_best(best, told.watch, averaging.average.average)
    _export_student(recipe, folder, denoiser, averaging, module.trainer.is_global_zero)
    return folder.path


def pretrain(recipe: Recipe) -> Path:
    """Train `recipe.model.folder` by flow matching; returns the pipeline folder that it became, or the LoRA file of
    the specialist over it (`pretrain.lora_rank`).

    Raises:
        UserError: anything in the recipe, the data or the folder that the user can mend.
    """
    machine.check(recipe)
    if recipe.trainer.strategy == "fsdp":
        raise UserError("pretraining runs on one device: set trainer.strategy=auto")
    folder = RunFolder(Path(recipe.trainer.folder))
    base = pipeline.load(recipe.model.folder)
    tokenizer = PromptTokenizer(base)
    data, pictured = _pretraining_data(recipe, base, tokenizer)
    denoiser, rank = single_role(base.transformer), recipe.pretrain.lora_rank
    if rank:
        base.transformer.requires_grad_(False)
        roles.add_adapter(denoiser.network(roles.TEACHER), roles.TEACHER, rank, alpha=rank, seed=recipe.seed)
    module = Pretrainer(denoiser, base.text_encoder, recipe, tokenizer.num_system_tokens)
    _begin(folder, recipe, "pretrain.steps", recipe.pretrain.steps)
    averaging = Averaging(recipe.pretrain.ema_decay)
    grid = milestones.pretraining_grid(recipe, base, pictured)
    _fit(recipe, folder, module, data, averaging, grid, recipe.mixture.batch_size)
    averaging.average.swap()
    if rank:
        export.write_lora(export.role_adapters(base.transformer, roles.TEACHER), folder.specialist, header={})
        return folder.specialist
    trained = {"transformer": base.transformer, "text_encoder": base.text_encoder}
    export.export_components(recipe.model.folder, trained, folder.teacher)
    return folder.teacher


def _pretraining_data(
    recipe: Recipe, base: QwenImage21Pipeline, tokenizer: PromptTokenizer
) -> tuple[PretrainingData, PretrainingData]:
    """What the run trains on, and what its pictures are of: the same shards, or two samples a category of the world."""
    options = recipe.pretrain

    def over(source: Source) -> PretrainingData:
        return PretrainingData(
            source,
            recipe.mixture,
            num_system_tokens=tokenizer.num_system_tokens,
            prompt_drop=options.prompt_drop,
            num_steps=options.steps,
            seed=recipe.seed,
        )

    if not options.fresh_every:
        data = over(ShardSource(EncodedDataset(recipe.data.encoded), tokenizer))
        return data, data
    device = torch.device("cuda" if machine.accelerator(recipe) == "gpu" else "cpu")
    base.vae.to(device)
    fast = pipeline.fast_vae(base)

    def encode(images: Tensor) -> Tensor:
        """In half precision on a GPU, since training waits for it: latents differ by 0.1 %."""
        with torch.autocast(device.type, torch.float16, enabled=fast is not None and device.type == "cuda"):
            return pipeline.encode_images(base, images, fast)

    def world(drawn: Data) -> Source:
        return WorldSource(
            drawn,
            tokenizer,
            encode=encode,
            every=options.fresh_every,
            num_steps=options.steps,
            device=device,
        )

    few = {task: {name: min(count, 2) for name, count in of.items()} for task, of in samples_of(recipe.data).items()}
    return over(world(recipe.data)), over(world(replace(recipe.data, samples=few, num_workers=0)))


def export_run(run: Path, out: Path, lora: bool) -> list[float]:
    """Write the averaged student of `run`'s newest checkpoint, or with `trainer.keep=best` of its best milestone, to
    `out`: a pipeline folder, or a LoRA file. Returns the times that it is sampled at, from 1 down, without the 0.

    Raises:
        UserError: no run, no checkpoint, or `--lora` for a student with full weights.
    """
    folder = RunFolder(run)
    recipe = folder.read_recipe()
    found = checkpoint.newest(folder.checkpoints)
    if found is None:
        raise UserError(f"{run} has no checkpoint yet: let it reach trainer.checkpoint_every updates")
    if lora and recipe.model.roles != "lora":
        raise UserError(f"{run} trained full weights (model.roles=full): export without --lora")
    denoiser = load_roles(recipe, pipeline.load(recipe.model.folder))
    average = {
        name: parameter.detach()
        for name, parameter in denoiser.named_parameters()
        if parameter.requires_grad and roles.STUDENT in name.split(".")
    }
    checkpoint.load(found[0], {"average": average})
    if recipe.trainer.keep == "best":
        _return_to_best(folder.checkpoints, Watch.of(read_lines(folder.milestones)), average)
    times = student_times(recipe.dmd)
    if lora:
        adapters = export.role_adapters(denoiser.network(roles.STUDENT).transformer, roles.STUDENT)
        export.export_lora(adapters, times, out, metadata=_metadata(recipe))
    else:
        state = roles.merged_state(denoiser, roles.STUDENT)
        export.export(recipe.model.folder, state, times, out, metadata=_metadata(recipe))
    return export.sample_sigmas(times)


def _begin(folder: RunFolder, recipe: Recipe, key: str, total: int) -> None:
    """Claim the folder, unless its run has already gone further than the `total` updates of the recipe's `key`."""
    folder.check(recipe)
    found = checkpoint.newest(folder.checkpoints)
    if found is not None and found[1].num_updates > total:
        raise UserError(
            f"{folder.path} has done {found[1].num_updates} updates, and {key} is {total}: set it to as many or more, "
            "or choose another trainer.folder"
        )
    folder.begin(recipe)


def _fit(
    recipe: Recipe,
    folder: RunFolder,
    module: RootModule,
    data: DistillationData | PretrainingData,
    averaging: Averaging,
    grid: Grid,
    samples_per_update: int,
    *more: L.Callback,
) -> None:
    """Train from the newest checkpoint to the end."""
    found = checkpoint.newest(folder.checkpoints)
    done = found[1].num_updates if found is not None else 0
    if done:
        say(f"continuing {folder.path} at update {done} of {module.total_updates}")
    data.start_step = done
    options = recipe.trainer
    wait = DataWait()
    callbacks: list[L.Callback] = [
        averaging,
        Checkpointing(folder.checkpoints, options.checkpoint_every, averaging),
        Metrics(folder.scalars, options.log_every, data, samples_per_update, wait),
        SampleGrid(folder.samples, options.sample_every, averaging, grid),
        *more,
        RichProgressBar(),
        wait,
    ]
    logger = TensorBoardLogger(folder.path, name="tensorboard", version="", purge_step=done + 1 if done else None)
    trainer = machine.make_trainer(recipe, callbacks=callbacks, logger=logger)
    trainer.fit(module, datamodule=data)
    if done == module.total_updates:
        # Killed after the last update and before its export: a trainer without batches starts no callback, so none has
        # the weights yet.
        for callback in callbacks[:2] + list(more):
            callback.on_train_start(trainer, module)


def _export_student(
    recipe: Recipe, folder: RunFolder, denoiser: RoleNetworks, averaging: Averaging, writes: bool
) -> None:
    """Every rank gathers the weights; the one that `writes` exports them."""
    averaging.average.swap()
    state = roles.merged_state(denoiser, roles.STUDENT)
    averaging.average.swap()
    if writes:
        export.export(recipe.model.folder, state, student_times(recipe.dmd), folder.student, metadata=_metadata(recipe))


def _return_to_best(folder: Path, watch: Watch, average: Mapping[str, Tensor]) -> None:
    """Read the weights of the best milestone into `average`, where the last one is clearly worse."""
    best = watch.best_to_keep()
    if best is None:
        return
    if not checkpoint.has_best(folder, best):
        say(f"the student of update {best} was better than the last, but its weights are gone: the last one is kept")
        return
    checkpoint.load_best(folder, average, best)
    say(f"the student of update {best} is delivered: at the end of the run it was clearly worse")


def _metadata(recipe: Recipe) -> export.Metadata:
    dataset = EncodedDataset(recipe.data.encoded)
    return export.Metadata(
        title=f"Distilled from {recipe.model.folder}",
        recipe_hash=recipe_hash(recipe),
        data=f"{len(dataset)} samples of {', '.join(dataset.categories)}",
        licence=dataset.attribution,
    )


def _seconds_per_update(recipe: Recipe, module: Distiller, data: DistillationData) -> float:
    """Measured on two updates that change nothing that is kept."""
    brief = replace(recipe, trainer=replace(recipe.trainer, updates=2))
    data.num_steps = 2
    module.total_updates = 2
    trainer = machine.make_trainer(brief, logger=False, enable_progress_bar=False)
    started = time.perf_counter()
    trainer.fit(module, datamodule=data)
    return (time.perf_counter() - started) / 2
