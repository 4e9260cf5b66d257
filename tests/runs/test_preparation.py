"""A run compiles before its first update, and says what is compiled later."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from datamodules.shards.pack import pack
from workbench.backbones.base import RoleNetworks
from workbench.modules import rehearsal
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping
from workbench.runs.encoding import encode
from workbench.runs.preparation import keep_compiled
from workbench.runs.runner import distill

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def recipe(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = tmp_path_factory.mktemp("preparation")
    made = from_mapping(
        {
            "model": {"folder": str(tiny_pipeline_folder)},
            "data": {
                "samples": {"t2i": {"portrait": 2}},
                "resolution": 64,
                "raw": str(root / "raw"),
                "encoded": str(root / "encoded"),
                "num_workers": 0,
            },
            # Pictures of milestones are more than one.
            "mixture": {"batch_size": 2, "micro_batch_size": 1, "tasks": {"t2i": 1.0}},
            "dmd": {"fake_updates": 1, "student_steps": 2},
            "trainer": {
                "folder": str(root / "run"),
                "accelerator": "cpu",
                "compile": "blocks",
                "updates": 3,
                "log_every": 1,
                "sample_every": 2,
            },
        }
    )
    pack(made)
    encode(made)
    return made


def compilations(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["throughput/compilations"] for line in lines]


@pytest.mark.parametrize("rehearses", [True, False])
def test_what_is_compiled_after_the_first_update_is_counted_and_told(
    rehearses: bool,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compile_blocks = RoleNetworks.compile_blocks
    monkeypatch.setattr(RoleNetworks, "compile_blocks", lambda self: compile_blocks(self, "eager"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    torch._dynamo.reset()
    if not rehearses:
        monkeypatch.setattr(rehearsal, "_rehearse", lambda *_: None)
    run = distill(replace(recipe, trainer=replace(recipe.trainer, folder=str(tmp_path / "runs" / "one"))))
    printed = capsys.readouterr().out
    assert "prepared 1 shapes of batches" in printed and "blocks keep" not in printed
    assert any(compilations(run)) != rehearses
    assert ("update 1:" in printed) != rehearses
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "runs" / ".compiled")


def test_a_folder_of_ones_own_for_compiled_kernels_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/my/own")
    keep_compiled(tmp_path / "run")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/my/own"
