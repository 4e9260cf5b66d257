"""Encoding on a GPU: bfloat16 gives what float32 gives within its rounding, and what does not fit goes in halves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_runs import Bench

from datamodules.shards.encode_batch import Batches
from datamodules.shards.encoded import EncodedDataset

pytestmark = pytest.mark.gpu

ROUNDING = 0.03
"""Relative error of a few layers of bfloat16 products, each of which rounds to 1 in 256."""


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("workers", [1, 2])
def test_bfloat16_encodes_what_float32_does(bench: Bench, workers: int, tmp_path: Path) -> None:
    settings = ("data.encode_dtype=bfloat16", f"data.encode_workers={workers}", f"data.encoded={tmp_path}")
    bench.run("encode", *settings)
    found, expected = EncodedDataset(str(tmp_path)), EncodedDataset(bench.encoded)
    assert len(found) == len(expected) > 0
    arrays = {"prompt": 0, "uncond": 0, "latent": 0, "source_latent": 0}
    for index in range(len(expected)):
        ours, exact = found.read(index), expected.read(index)
        for name in arrays:
            if getattr(exact, name) is not None:
                assert relative_error(getattr(ours, name), getattr(exact, name)) < ROUNDING, (index, name)
                arrays[name] += 1
    assert min(arrays.values()) > 0, "text to image and edits were encoded"


def test_a_batch_that_does_not_fit_the_gpu_goes_in_halves(capsys: pytest.CaptureFixture[str]) -> None:
    free, _ = torch.cuda.mem_get_info()
    each = free // 5

    def fill(items):
        held = [torch.empty(each, dtype=torch.uint8, device="cuda") for _ in items]
        return [len(part) for part in held]

    batches = Batches(8)
    assert batches.run("pictures", range(8), fill) == [each] * 8
    assert batches.run("pictures", range(3), fill) == [each] * 3
    assert capsys.readouterr().out.count("out of memory") == 1, "8 do not fit, 4 do, and 8 are not tried again"
