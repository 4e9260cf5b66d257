"""An update of LoRA roles over a base of more than 10^9 parameters, as a full-size user runs it, within its plan."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_runs import Bench, losses
from safetensors.torch import load_file

from studies.tiny_model.assemble import SMALLEST, assemble
from workbench import cli

pytestmark = pytest.mark.gpu

SIZES = replace(SMALLEST, blocks=6, heads=32, rope_axes=(16, 56, 56))
"""Six blocks of width 4,096, as the full-size model has 32 of."""
CAPTIONS = ["a red fox under a clear sky", 'a sign that says "CAT"', "make the fox blue"]


def test_one_update_over_a_billion_parameters(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "large", tmp_path / "run"
    assemble(model, CAPTIONS, seed=0, sizes=SIZES)
    settings = (
        f"model.folder={model}",
        "model.roles=lora",
        "model.gradient_checkpointing=true",
        "trainer.precision=bf16-mixed",
        "trainer.deterministic=false",
        "trainer.updates=1",
        "data.resolution=512",
        "data.samples={t2i: {landscape: 2}, edit: {object: 2}}",
        "mixture.batch_size=2",
        f"data.raw={tmp_path / 'raw'}",
        f"data.encoded={tmp_path / 'encoded'}",
        f"trainer.folder={out}",
    )
    bench.run("pack", *settings)
    bench.run("encode", *settings)
    capsys.readouterr()
    recomputed = (*settings, "model.stored_blocks=0")
    bench.run("distill", "--dry-run", *recomputed)
    plan = capsys.readouterr().out.replace("\n", " ")
    planned = re.search(r"peak about ([\d.]+) +GiB", plan)
    frozen = re.search(r"([\d.]+) M +frozen", plan)
    assert planned and frozen, plan
    assert float(frozen.group(1)) > 1000

    torch.cuda.empty_cache()
    bench.run("distill", *recomputed)
    (row,) = losses(out)
    peak = row["memory/peak_gib"]
    assert peak < 1.25 * float(planned.group(1)), f"{peak:.2f} GiB taken, {planned.group(1)} planned"
    assert all(torch.tensor(value).isfinite() for name, value in row.items() if name.startswith("loss/"))
    assert row["gradient_norm/student"] > 0

    capsys.readouterr()
    bench.run(
        "distill", *settings, "trainer.updates=2", "trainer.compile=blocks", f"trainer.folder={tmp_path / 'stored'}"
    )
    printed = capsys.readouterr().out
    assert f"{SIZES.blocks} of {SIZES.blocks} blocks keep their activations" in printed, printed
    assert [row["throughput/compilations"] for row in losses(tmp_path / "stored")] == [0, 0]

    adapter = tmp_path / "student.safetensors"
    assert cli.main(["export", str(out), str(adapter), "--lora"]) == 0
    assert all(tensor.isfinite().all() for tensor in load_file(adapter).values())
