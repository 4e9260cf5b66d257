"""Two workers of a study share one GPU."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from gpu_runs import Bench, finish, start

pytestmark = pytest.mark.gpu


def test_two_workers_on_one_gpu(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    recipe = tmp_path / "recipe.yaml"
    settings = [word for word in bench.settings if not word.startswith("trainer.sample_every")]
    recipe.write_text("seed: 0\n")
    words = [f"recipe={recipe}", f"folder={folder}", "seeds=0,1,2", "workers=2", "trainer.updates=4"]
    finish(start("study", "noise-floor", *words, *settings))
    (arm,) = json.loads((folder / "study.json").read_text())["arms"]
    assert [trial["state"] for trial in arm["trials"]] == ["complete"] * 3
    runs = sorted(path.parent for path in folder.glob("trial-*/environment.json"))
    assert len(runs) == 3
    for run in runs:
        assert json.loads((run / "environment.json").read_text())["cuda_devices"]
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2, "both workers ran trials"
