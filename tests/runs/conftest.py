"""A recipe on the smallest pipeline with its data encoded, and a finished run of it. Never write into that one."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import SAMPLES

from datamodules.shards.pack import pack
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping
from workbench.runs.encoding import encode
from workbench.runs.runner import distill


@pytest.fixture(scope="session")
def recipe(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = tmp_path_factory.mktemp("runner")
    made = from_mapping(
        {
            "model": {"folder": str(tiny_pipeline_folder)},
            "data": {
                "samples": SAMPLES,
                "resolution": 64,
                "raw": str(root / "raw"),
                "encoded": str(root / "encoded"),
                "keep_raw": True,
                "num_workers": 0,
            },
            "mixture": {"batch_size": 4},
            "dmd": {"fake_updates": 1},
            "optim": {"warmup_updates": 1, "student_lr": 1e-3},
            "pretrain": {"steps": 3, "warmup_steps": 1},
            "trainer": {
                "folder": str(root / "run"),
                "accelerator": "cpu",
                "updates": 4,
                "log_every": 1,
                "checkpoint_every": 2,
                "sample_every": 4,
            },
            "evaluation": {"teacher_steps": 3, "num_bootstrap": 50},
        }
    )
    pack(made)
    encode(made)
    return made


@pytest.fixture(scope="session")
def finished(recipe: Recipe) -> Path:
    return distill(recipe)
