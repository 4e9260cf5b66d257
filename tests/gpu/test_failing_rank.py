"""A rank on a GPU that fails ends the run: the collectives of the others wait for it, and so would the end of its own
CUDA context."""

from __future__ import annotations

from pathlib import Path

import failing_rank
import pytest
import torch
from gpu_runs import Bench

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_a_rank_that_fails_ends_all(strategy: str, rank: int, bench: Bench, tmp_path: Path) -> None:
    settings = ("trainer.devices=2", f"trainer.strategy={strategy}", f"trainer.folder={tmp_path / 'run'}")
    ran = failing_rank.run(bench.words("distill", *settings), rank, tmp_path, others_wait=False)
    assert ran.returncode in (2, -9) and ran.stderr.count(failing_rank.LINE) == 1, (ran.returncode, ran.stderr)
