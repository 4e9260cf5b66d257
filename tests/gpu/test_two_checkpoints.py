"""Two checkpoints of Qwen-Image at their real width teach one student, within the peak that its dry run foretold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from gpu_runs import Bench, losses
from tiny_qwen_image import Sizes, assemble

pytestmark = pytest.mark.gpu

SIZES = Sizes(blocks=3, heads=24, rope_axes=(16, 56, 56))
"""Three of the sixty blocks of either: 2 billion parameters together."""
CAPTIONS = ["a red fox under a clear sky", 'a sign that says "CAT"', "make the fox blue"]


@pytest.mark.parametrize("frozen", ["auto", "fp8"])
def test_one_update_of_two_checkpoints(
    frozen: str, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = assemble(tmp_path / "edit", CAPTIONS, True, zero_cond_t=True, sizes=SIZES, dtype=torch.bfloat16)
    generation = assemble(tmp_path / "t2i", CAPTIONS, False, seed=1, sizes=SIZES, dtype=torch.bfloat16)
    settings = (
        f"model.folder={edit}",
        f"teachers.specialists={{generation: {generation}}}",
        "teachers.cfg_scale=4",
        "teachers.cfg_rescale=1",
        "guidance.tables={t2i: [[0,1],[0,1],[0,1],[0,1]], edit: [[1,0],[1,0],[1,0],[1,0]]}",
        "model.roles=lora",
        f"model.frozen={frozen}",
        "model.gradient_checkpointing=true",
        "model.stored_blocks=0",
        "trainer.precision=bf16-mixed",
        "trainer.deterministic=false",
        "trainer.updates=1",
        "data.resolution=512",
        "data.samples={t2i: {landscape: 2}, edit: {object: 2}}",
        "mixture.batch_size=2",
        f"data.raw={tmp_path / 'raw'}",
        f"data.encoded={tmp_path / 'encoded'}",
        f"trainer.folder={tmp_path / 'run'}",
    )
    for command in (["pack"], ["encode"], ["distill", "--dry-run"]):
        capsys.readouterr()
        bench.run(*command, *settings)
    plan = capsys.readouterr().out.replace("\n", " ")
    planned = re.search(r"peak about ([\d.]+) +GiB", plan)
    assert planned, plan
    torch.cuda.empty_cache()
    bench.run("distill", *settings)
    (row,) = losses(tmp_path / "run")
    peak = row["memory/peak_gib"]
    with capsys.disabled():
        print(f"\n{frozen}: {peak:.2f} GiB taken, {planned.group(1)} planned")
    assert peak < 1.25 * float(planned.group(1))
    assert all(torch.tensor(value).isfinite() for name, value in row.items() if name.startswith("loss/"))
    assert row["gradient_norm/student"] > 0
