"""An adapter is truncated to what keeps most of it at its size, and several become their mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from studies.tiny_model.adapters import truncated, write_mean
from workbench.backbones import lora_files
from workbench.backbones.lora_files import Adapter, AdapterLayer

SHAPES = {"a": (12, 7), "b": (5, 9)}


def random_adapter(seed: int, of_b: float = 1.0) -> Adapter:
    """Of rank 4; layer b's update is `of_b` times as large."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: AdapterLayer(
            torch.randn(4, columns, generator=generator),
            (of_b if name == "b" else 1.0) * torch.randn(rows, 4, generator=generator),
            0.5,
        )
        for name, (rows, columns) in SHAPES.items()
    }


def updates(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: layer.scaling * layer.up @ layer.down for name, layer in adapter.items()}


def test_a_smaller_rank_is_the_nearest_one_and_tells_what_it_keeps() -> None:
    adapter = random_adapter(0)
    whole, kept = truncated(adapter, 4, most=4)
    assert kept == pytest.approx(1) and {len(down) for down, _ in whole.values()} == {4}
    assert all(torch.allclose(up @ down, updates(adapter)[name], atol=1e-5) for name, (down, up) in whole.items())
    smaller, kept = truncated(adapter, 2, most=2)
    lost = 0.0
    for name, (down, up) in smaller.items():
        assert down.shape == (2, SHAPES[name][1]) and up.shape == (SHAPES[name][0], 2)
        values = torch.linalg.svdvals(updates(adapter)[name])
        error = float((up @ down - updates(adapter)[name]).square().sum())
        assert error == pytest.approx(float(values[2:].square().sum()), rel=1e-4)
        lost += error
    total = sum(float(one.square().sum()) for one in updates(adapter).values())
    assert kept == pytest.approx(1 - lost / total, rel=1e-4)


def test_layers_that_need_more_ranks_have_them_of_those_that_need_less() -> None:
    adapter = random_adapter(0, of_b=100.0)
    shared, kept = truncated(adapter, 2)
    ranks = {name: len(down) for name, (down, _) in shared.items()}
    size = sum(down.numel() + up.numel() for down, up in shared.values())
    assert ranks == {"a": 1, "b": 3} and size <= 2 * sum(map(sum, SHAPES.values()))
    assert kept > truncated(adapter, 2, most=2)[1]


def test_the_mean_of_files_is_that_of_their_updates(tmp_path: Path) -> None:
    adapters = [random_adapter(seed) for seed in (0, 1, 2)]
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for adapter, path in zip(adapters, paths, strict=True):
        lora_files.write(truncated(adapter, 4)[0], path, header={}, dtype=torch.float32)
    assert write_mean(paths, tmp_path / "mean.safetensors", rank=12) == pytest.approx(1)
    mean = updates(lora_files.read(tmp_path / "mean.safetensors"))
    for name, found in mean.items():
        expected = sum(updates(adapter)[name] for adapter in adapters) / 3
        assert torch.allclose(found, expected, atol=0.03 * float(expected.abs().max())), name
