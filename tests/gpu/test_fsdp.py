"""FSDP on two GPUs trains what one GPU does on the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_runs import Bench, finish, losses, student_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]


@pytest.mark.parametrize("roles", ["full", "lora"])
def test_two_gpus_train_as_one(roles: str, bench: Bench, tmp_path: Path) -> None:
    common = (f"model.roles={roles}", "trainer.updates=3", "trainer.cuda_graphs=off")
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    other = bench.start("distill", *common, "trainer.strategy=fsdp", "trainer.devices=2", f"trainer.folder={sharded}")
    bench.run("distill", *common, f"trainer.folder={alone}")
    finish(other)
    rows, expected = losses(sharded), losses(alone)
    assert len(rows) == len(expected) == 3
    for row, single in zip(rows, expected, strict=True):
        for name in single:
            if name.startswith("loss/"):
                # The first steps of AdamW are signs, so rounding grows from update to update.
                assert row[name] == pytest.approx(single[name], rel=1e-3 * row["update"]), (row["update"], name)
    weights, others = student_weights(sharded), student_weights(alone)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor.float(), others[name].float(), rtol=0.02, atol=0.01, msg=name)
