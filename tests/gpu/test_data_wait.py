"""How long a GPU waits for data is read off the GPU's own clock, however far ahead the host is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from workbench.common.jsonl import read_scalars
from workbench.runs.scalars import moment

pytestmark = pytest.mark.gpu

CYCLES_PER_MS = 1_500_000
"""About; of an H100's clock."""


def test_a_host_that_is_ahead_keeps_nobody_waiting() -> None:
    device = torch.device("cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(100 * CYCLES_PER_MS)
    ended = moment(device)
    time.sleep(0.02)
    busy = moment(device)
    assert not ended.query()
    torch.cuda.synchronize()
    time.sleep(0.02)
    idle = moment(device)
    torch.cuda.synchronize()
    assert idle.query() and ended.elapsed_time(busy) < 2 and busy.elapsed_time(idle) > 15


def test_a_run_logs_a_share_of_its_time(replayed: Path) -> None:
    shares = [row["throughput/data_wait_share"] for _, row in read_scalars(replayed / "metrics.jsonl")]
    assert all(0 <= share < 1 for share in shares) and any(shares)
