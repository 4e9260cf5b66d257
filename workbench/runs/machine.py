"""Lightning's trainer for a recipe, and whether this machine has what the recipe asks for."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from workbench.backbones import roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.placement import trainer_precision
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe, Trainer

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
        accelerator=accelerator(chosen),
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


def accelerator(trainer: Trainer) -> str:
    """`gpu` or `cpu`."""
    if trainer.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return trainer.accelerator


def check(trainer: Trainer) -> None:
    """Raise UserError where the recipe asks for what torch does not see here."""
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu, but torch sees no GPU here: use cpu or auto, or install torch for CUDA"
        )
    if trainer.cuda_graphs == "on" and accelerator(trainer) != "gpu":
        raise UserError("trainer.cuda_graphs=on, but torch sees no GPU here: leave it at auto")
    if trainer.devices * trainer.num_nodes > 1 and trainer.strategy != "fsdp":
        raise UserError(f"trainer.devices={trainer.devices} needs trainer.strategy=fsdp")
    if accelerator(trainer) == "gpu" and trainer.devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={trainer.devices}, but torch sees {torch.cuda.device_count()} GPUs here")


def compiles(trainer: Trainer, denoiser: RoleNetworks) -> bool:
    """Whether the blocks of the network are to be compiled."""
    match trainer.compile:
        case "blocks":
            return True
        case "none":
            return False
        case "auto":
            size = sum(parameter.numel() for parameter in denoiser.network(roles.TEACHER).parameters())
            return accelerator(trainer) == "gpu" and size >= COMPILED_FROM
