"""What the tests on a GPU share: encoded data of the world that ships, and a finished run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_runs import SETTINGS, Bench

from workbench.engine import lanes

# Read when the library of matrix products starts; trainer.deterministic=true needs it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True, scope="session")
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.exit("these tests need a GPU, and torch sees none: run `make test` instead", returncode=2)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The model that ships, on its own data, packed and encoded in float32."""
    root = tmp_path_factory.mktemp("gpu")
    recipe = root / "recipe.yaml"
    recipe.write_text("seed: 3\n")
    encoded = str(root / "encoded")
    made = Bench(recipe, encoded, (*SETTINGS, f"data.raw={root / 'raw'}", f"data.encoded={encoded}"))
    made.run("pack")
    made.run("encode")
    return made


@pytest.fixture(scope="session")
def replayed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 30 updates that replayed CUDA graphs."""
    out = tmp_path_factory.mktemp("runs") / "replayed"
    replays, side_by_side = 0, 0
    replay, beside = torch.cuda.CUDAGraph.replay, lanes.beside

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        nonlocal replays
        replays += 1
        replay(graph)

    def noted(parts: Sequence[Any]) -> list[Any]:
        nonlocal side_by_side
        side_by_side += lanes.fit(parts)
        return beside(parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "replay", counted)
        patch.setattr(lanes, "beside", noted)
        bench.run("distill", "trainer.updates=30", f"trainer.folder={out}")
    assert replays > 20, f"{replays} replays: the run was eager"
    assert side_by_side, "no graph has both tasks beside each other"
    return out
