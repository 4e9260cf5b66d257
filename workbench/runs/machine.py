"""What a recipe asks of the machine: the trainer that runs it, and whether it can be had here."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from workbench.backbones import roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.placement import trainer_precision
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe

COMPILED_FROM = 10**9
"""Parameters of a network whose blocks `trainer.compile=auto` compiles: its products outlast a kernel's launch."""


def make_trainer(recipe: Recipe, **options: Any) -> L.Trainer:
    """Lightning's trainer for `recipe.trainer`; `options` go to it as they are."""
    chosen = recipe.trainer
    world = chosen.devices * chosen.num_nodes
    strategy: Any = "auto"
    if chosen.strategy == "fsdp":
        strategy = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    return L.Trainer(
        accelerator=accelerator(recipe),
        devices=chosen.devices,
        num_nodes=chosen.num_nodes,
        strategy=strategy,
        precision=trainer_precision(recipe),
        deterministic=True if chosen.deterministic else None,
        max_epochs=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def accelerator(recipe: Recipe) -> str:
    """`gpu` or `cpu`."""
    if recipe.trainer.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return recipe.trainer.accelerator


def check(recipe: Recipe) -> None:
    """UserError if the recipe asks for what torch does not see here."""
    options = recipe.trainer
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu, but torch sees no GPU here: use cpu or auto, or install torch for CUDA"
        )
    if options.cuda_graphs == "on" and accelerator(recipe) != "gpu":
        raise UserError("trainer.cuda_graphs=on, but torch sees no GPU here: leave it at auto")
    if options.devices * options.num_nodes > 1 and options.strategy != "fsdp":
        raise UserError(f"trainer.devices={options.devices} needs trainer.strategy=fsdp")
    if accelerator(recipe) == "gpu" and options.devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={options.devices}, but torch sees {torch.cuda.device_count()} GPUs here")


def compiles(recipe: Recipe, denoiser: RoleNetworks) -> bool:
    """Whether the blocks of the network are to be compiled."""
    match recipe.trainer.compile:
        case "blocks":
            return True
        case "none":
            return False
        case "auto":
            size = sum(parameter.numel() for parameter in denoiser.network(roles.TEACHER).parameters())
            return accelerator(recipe) == "gpu" and size >= COMPILED_FROM
