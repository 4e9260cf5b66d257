"""Graded damage: none at severity 0, growing with it, and the same for the same generator."""

from __future__ import annotations

import pytest
import torch

from studies.tiny_model.corruptions import CORRUPTIONS, augment, corrupt
from workbench.evaluation.judges.local_network import JudgeConfig, JudgeNetwork


def scene() -> torch.Tensor:
    """Flat areas with sharp edges, (4, 3, 64, 64) in [0, 1]."""
    image = torch.full((3, 64, 64), 0.3)
    image[0, 13:47, 15:50] = 0.8
    image[1, 21:39, 9:55] = 0.6
    return image.expand(4, 3, 64, 64).clone()


def damage(name: str, severity: float) -> float:
    images, generator = scene(), torch.Generator().manual_seed(0)
    damaged = CORRUPTIONS[name](images, torch.full((4,), severity), generator)
    assert damaged.shape == images.shape and damaged.min() >= 0 and damaged.max() <= 1
    return float((damaged - images).abs().mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_starts_at_nothing_and_grows(name: str) -> None:
    levels = [damage(name, s) for s in (0.0, 0.25, 0.5, 1.0)]
    assert levels[0] == pytest.approx(0, abs=1e-5)
    assert levels == sorted(levels) and levels[3] > 1.5 * levels[1] > 0


def test_undamaged_rows_stay_and_equal_generators_agree() -> None:
    kinds, severity = torch.tensor([-1, 0, 1, 6]), torch.full((4,), 0.5)
    first, second = (corrupt(scene(), kinds, severity, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first[0], scene()[0])
    assert not torch.equal(first[1], scene()[1])
    assert (augment(scene(), torch.Generator().manual_seed(0)) - scene()).abs().mean() < 0.1


def test_the_judge_of_the_world_stays_small() -> None:
    from datamodules.openmoji import HEADS

    network = JudgeNetwork(JudgeConfig({name: classes for name, classes in HEADS.items() if name != "word"}))
    assert sum(p.numel() for p in network.parameters()) <= 1_500_000
