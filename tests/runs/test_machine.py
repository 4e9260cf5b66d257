"""Which strategy several devices get, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from quiet_trainer import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader

from workbench.common.errors import UserError
from workbench.recipe.config import Dmd, Model, Recipe, Teachers, Trainer
from workbench.runs import machine

LORA = Recipe(model=Model(roles="lora"), trainer=Trainer(devices=2, accelerator="gpu"))


class Properties:
    def __init__(self, total_memory: int) -> None:
        self.total_memory = total_memory


@pytest.fixture
def weights(tiny_pipeline_folder: Path) -> int:
    return sum(path.stat().st_size for path in (tiny_pipeline_folder / "transformer").glob("*.safetensors"))


@pytest.mark.parametrize(("folders", "fits"), [(1, 2.0), (2, 4.0)])
def test_frozen_weights_that_take_half_a_gpu_are_replicated_and_more_are_sharded(
    folders: int, fits: float, weights: int, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_pipeline_folder)
    specialists = {"adapter": "tiny/text.safetensors", **({"own": folder} if folders == 2 else {})}
    recipe = replace(LORA, model=replace(LORA.model, folder=folder), teachers=Teachers(specialists=specialists))
    for memory, strategy in ((int(fits * weights), "ddp"), (int(fits * weights) - 2, "fsdp")):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, total=memory: Properties(total))
        found, line = machine.resolved(recipe)
        assert found.trainer.strategy == strategy
        assert line.startswith(f"trainer.strategy={strategy}: frozen weights take ")


def test_full_roles_are_sharded_and_one_device_is_left_alone() -> None:
    full = replace(LORA, model=Model(roles="full"))
    assert machine.resolved(full)[0].trainer.strategy == "fsdp"
    assert isinstance(machine.strategy_of(machine.resolved(full)[0].trainer), ModelParallelStrategy)
    alone = replace(LORA, trainer=Trainer(accelerator="gpu"))
    assert machine.resolved(alone) == (alone, "")
    assert machine.strategy_of(alone.trainer).root_device == torch.device("cuda", 0)
    given = replace(LORA, trainer=replace(LORA.trainer, strategy="fsdp"))
    assert machine.resolved(given) == (given, "")


def test_adapters_on_cpus_are_replicated() -> None:
    found, line = machine.resolved(replace(LORA, trainer=Trainer(devices=2, accelerator="cpu")))
    assert found.trainer.strategy == "ddp" and line == "trainer.strategy=ddp: LoRA roles on CPUs"
    assert isinstance(machine.strategy_of(found.trainer), machine.Replicated)


def test_what_the_chosen_strategy_does_not_know_is_refused() -> None:
    recipe = replace(LORA, model=Model(roles="full"), dmd=Dmd(fake_per_step=True))
    with pytest.raises(UserError, match=r"dmd\.fake_per_step has a parameter that is not sharded"):
        machine.resolved(recipe)


class Still(L.LightningModule):
    """One update of one weight. Raises: AssertionError where somebody moves it to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def training_step(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * x).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.5)

    def cpu(self) -> Still:
        raise AssertionError("the weights are moved to the host")


def test_weights_stay_where_they_were_trained() -> None:
    module, chosen = Still(), Trainer(accelerator="cpu")
    quiet_trainer(strategy=machine.strategy_of(chosen)).fit(module, DataLoader(torch.ones(1, 1)))
    assert module.weight.item() == 0.5
