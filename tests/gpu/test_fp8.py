"""The GPU multiplies in 8 bits what the CPU emulates; graphs and stops change no run with it, or with such moments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_runs import Bench, assert_same_bits, losses
from torch import nn

from workbench.backbones import fp8, lora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < fp8.LEAST_CAPABILITY,
        reason="this GPU does not multiply e4m3",
    ),
]
BF16 = 4e-3
"""Relative error of rounding to bfloat16."""
FP8 = ("model.roles=lora", "model.frozen=fp8", "trainer.precision=bf16-mixed")


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found.double().cpu() - expected.double()).norm() / expected.double().norm()).detach())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("rows", [1, 37, 256])
def test_products_of_the_gpu_are_those_of_the_emulation(rows: int, compiled: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(512, 768).to(torch.bfloat16)
    x, gradient = (torch.randn(rows, n).to(torch.bfloat16) * torch.logspace(-3, 1, rows)[:, None] for n in (512, 768))
    layer, results = fp8.Fp8Linear(plain, differentiable=True), []
    for device in ("cpu", "cuda"):
        project = torch.compile(lora.project, fullgraph=True) if compiled and device == "cuda" else lora.project
        given = x.to(device, torch.bfloat16).requires_grad_()
        y = project(lora.projection(layer.to(device), None, given.dtype), given)
        results.append((y, *torch.autograd.grad(y, given, gradient.to(device, torch.bfloat16))))
    for expected, found in zip(*results, strict=True):
        assert found.is_cuda and relative(found, expected) < BF16


@pytest.mark.parametrize("words", [FP8, ("optim.moments=8bit",)], ids=["frozen weights", "moments"])
def test_an_eager_run_in_two_parts_ends_with_the_bits_of_a_replayed_one(
    words: tuple[str, ...], bench: Bench, tmp_path: Path
) -> None:
    replayed, other = tmp_path / "replayed", tmp_path / "other"
    bench.run("distill", *words, "trainer.updates=20", "trainer.cuda_graphs=on", f"trainer.folder={replayed}")
    for updates in (10, 20):
        bench.run("distill", *words, f"trainer.updates={updates}", "trainer.cuda_graphs=off", f"trainer.folder={other}")
    assert_same_bits(replayed, other)


def test_losses_are_those_of_bfloat16_within_a_few_per_cent(bench: Bench, tmp_path: Path) -> None:
    rows = {}
    for name, words in (("plain", (*FP8, "model.frozen=auto")), ("eager", FP8), ("compiled", FP8)):
        compile_ = f"trainer.compile={'blocks' if name == 'compiled' else 'none'}"
        bench.run("distill", *words, "trainer.updates=1", compile_, f"trainer.folder={tmp_path / name}")
        (rows[name],) = losses(tmp_path / name)
    for name in ("loss/fake_score/t2i", "loss/fake_score/edit"):
        # Codes of 8 bits flip with the order of roundings: compiled and eager differ as each differs from bfloat16.
        for row in ("eager", "compiled"):
            assert rows[row][name] == pytest.approx(rows["plain"][name], rel=0.1), (row, name)
