"""Lightning's trainer for a recipe, and whether this machine has what the recipe asks for."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from workbench.backbones import families, fp8, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.placement import trainer_precision
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe, Trainer

COMPILED_FROM = 10**9
"""Parameters of a network whose blocks `trainer.compile=auto` compiles: its products outlast a kernel's launch."""


def make_trainer(recipe: Recipe, callbacks: Sequence[L.Callback], **options: Any) -> L.Trainer:
    """Lightning's trainer for `recipe.trainer`; `options` go to it as they are."""
    chosen = recipe.trainer
    return L.Trainer(
        callbacks=[Termination(), *callbacks],
        accelerator=accelerator(chosen),
        devices=chosen.devices,
        num_nodes=chosen.num_nodes,
        strategy=strategy_of(chosen),
        precision=trainer_precision(recipe),
        deterministic=True if chosen.deterministic else None,
        max_epochs=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


class Termination(L.Callback):
    """On SIGTERM ends each of several processes where it is, with those that it started. In Lightning's own handler
    each waits for the first one, in a broadcast, while that may wait for it in another collective: for ever."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, partial(_end_all, trainer))


def _end_all(trainer: L.Trainer, number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.Signals(number))
    raise SIGTERMException


class OneDevice(SingleDeviceStrategy):
    """One process on one device, where the weights stay when training ends."""

    def teardown(self) -> None:
        _end(self)


class Replicated(DDPStrategy):
    """A process a device that holds all weights, and keeps them there when training ends. They are not wrapped: the
    roles take turns and the root module steps by hand, so it averages the gradients itself, once an optimiser step."""

    def configure_ddp(self) -> None:
        """Nothing is wrapped."""

    def teardown(self) -> None:
        assert self.cluster_environment is not None
        self.cluster_environment.teardown()
        _end(self)


def _end(strategy: Strategy) -> None:
    """What `Strategy.teardown` does, but for moving all weights and moments to the host: that takes as long as reading
    them did, and as much of the host's memory as they are large, while an export takes them one by one."""
    assert strategy.accelerator is not None
    strategy.precision_plugin.teardown()
    strategy.accelerator.teardown()
    strategy.checkpoint_io.teardown()


def release_memory() -> None:
    """Give the device back what a run of this process left there: networks and trainer hold each other."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def strategy_of(trainer: Trainer) -> Strategy:
    """Lightning's strategy for one that `resolved` has chosen."""
    world = trainer.devices * trainer.num_nodes
    match trainer.strategy:
        case "fsdp":
            return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
        case "ddp" if world > 1:
            return Replicated()
        case _:
            return OneDevice(torch.device("cuda", 0) if accelerator(trainer) == "gpu" else torch.device("cpu"))


def resolved(recipe: Recipe) -> tuple[Recipe, str]:
    """The recipe with a strategy for its devices in place of `auto`, and a line that says why; empty for one device.

    Raises:
        UserError: options that this strategy does not know.
    """
    trainer = recipe.trainer
    if trainer.devices * trainer.num_nodes == 1 or trainer.strategy != "auto":
        return recipe, ""
    strategy: Literal["ddp", "fsdp"]
    if recipe.model.frozen == "fp8":
        strategy, why = "ddp", "every device holds weights in 8 bits whole"
    elif recipe.model.roles == "full":
        strategy, why = "fsdp", "full roles are sharded"
    else:
        weights, limit = _frozen_bytes(recipe), _device_bytes(trainer) / 2
        strategy = "ddp" if weights <= limit else "fsdp"
        compared = f"{weights / 2**30:.1f} GiB, and half of a device has {limit / 2**30:.1f}"
        why = f"frozen weights take {compared}" if limit < float("inf") else "LoRA roles on CPUs"
    chosen = replace(recipe, trainer=replace(trainer, strategy=strategy))
    return chosen, f"trainer.strategy={strategy}: {why}"


def _frozen_bytes(recipe: Recipe) -> int:
    """Of the base teacher and of specialists with weights of their own, as their files have them."""
    folders = [recipe.model.folder, *recipe.teachers.specialists.values()]
    found = [families.resolve(folder) / "transformer" for folder in folders if not folder.endswith(".safetensors")]
    return sum(file.stat().st_size for folder in found for file in folder.glob("*.safetensors"))


def _device_bytes(trainer: Trainer) -> float:
    if accelerator(trainer) == "cpu":
        return float("inf")
    return torch.cuda.get_device_properties(0).total_memory


def accelerator(trainer: Trainer) -> str:
    """`gpu` or `cpu`."""
    if trainer.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return trainer.accelerator


def check(recipe: Recipe) -> None:
    """Raise UserError where the recipe asks for what torch does not see here."""
    trainer = recipe.trainer
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu, but torch sees no GPU here: use cpu or auto, or install torch for CUDA"
        )
    if trainer.cuda_graphs == "on" and accelerator(trainer) != "gpu":
        raise UserError("trainer.cuda_graphs=on, but torch sees no GPU here: leave it at auto")
    if accelerator(trainer) == "gpu" and trainer.devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={trainer.devices}, but torch sees {torch.cuda.device_count()} GPUs here")
    if accelerator(trainer) == "gpu" and recipe.model.frozen == "fp8":
        capability = torch.cuda.get_device_capability()
        if capability < fp8.LEAST_CAPABILITY:
            raise UserError(
                f"model.frozen=fp8 needs a GPU of compute capability {_version(fp8.LEAST_CAPABILITY)} or later, and "
                f"{torch.cuda.get_device_name()} has {_version(capability)}: leave it at auto"
            )


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


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
