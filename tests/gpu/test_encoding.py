"""Encoding in bfloat16 on a GPU gives what float32 gives, within bfloat16's rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gpu_runs import Bench

from datamodules.shards.encoded import EncodedDataset

pytestmark = pytest.mark.gpu

ROUNDING = 0.03
"""Relative error of a few layers of bfloat16 products, each of which rounds to 1 in 256."""


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_bfloat16_encodes_what_float32_does(bench: Bench, tmp_path: Path) -> None:
    bench.run("encode", "trainer.precision=bf16-mixed", f"data.encoded={tmp_path}")
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
