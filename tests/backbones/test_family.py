"""A second family goes through every command: nothing beyond `PipelineModel` and `Denoiser` is known of a family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_family
import yaml
from PIL import Image
from safetensors.torch import load_file
from toy_family import WEIGHTS, ToyModel

from workbench.backbones import families, lora_files
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import single_role
from workbench.cli import main
from workbench.method.rollout import Sampling, time_grid
from workbench.sampling.sampler import Request, Sampler

COUNTS = {"t2i": {"portrait": 4, "text": 4}, "edit": {"object": 4, "style": 4}}


@pytest.fixture(autouse=True, scope="module")
def _known() -> Iterator[None]:
    with toy_family.known():
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over a folder of the toy family, its data packed and encoded by the commands."""
    root = tmp_path_factory.mktemp("toy")
    for name in ("teacher", "specialist"):
        toy_family.write_folder(root / name, seed=len(name))
    sections = {
        "model": {"folder": str(root / "teacher"), "lora_rank": 2},
        "teachers": {"specialists": {"text": str(root / "specialist")}, "cfg_scale": 3.0},
        "guidance": {"tables": {"default": [[1.0, 0.0], [0.5, 0.5]]}},
        "data": {
            "samples": COUNTS,
            "resolution": 64,
            "raw": str(root / "raw"),
            "encoded": str(root / "encoded"),
            "num_workers": 0,
        },
        "mixture": {"batch_size": 4},
        "dmd": {"student_steps": 2, "fake_updates": 1},
        "optim": {"student_lr": 0.01, "warmup_updates": 1},
        "trainer": {"accelerator": "cpu", "updates": 3, "log_every": 1, "checkpoint_every": 3, "sample_every": 3},
        "evaluation": {"teacher_steps": 3, "t2i_cases": 2, "editing_cases": 1, "seeds": [0]},
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    assert main(["pack", str(path)]) == main(["encode", str(path)]) == 0
    return path


def test_another_family_goes_through_every_command(recipe: Path) -> None:
    root = recipe.parent
    run, out, picture = root / "run", root / "exported", root / "picture.png"
    distill = ["distill", str(recipe), f"trainer.folder={run}"]
    assert main([*distill, "--dry-run"]) == 0 and not run.exists()
    for command in (distill, ["evaluate", str(run)], ["report", str(run)], ["export", str(run), str(out)]):
        assert main(command) == 0
    Image.new("RGB", (96, 64), "red").save(root / "source.png")
    for more in ([], ["--image", str(root / "source.png")]):
        assert main(["sample", str(run), "a red fox", *more, "--out", str(picture)]) == 0
        # About 64 x 64 pixels, as trained, at the aspect of the source, in sides that this family alone can make.
        assert Image.open(picture).size == ((80, 56) if more else (64, 64))

    for card in (run / "student" / "README.md", out / "README.md"):
        assert card.read_text().count("## Scores") == 1 and "| student | 2 |" in card.read_text()

    teacher, student, exported = (load_file(folder / WEIGHTS) for folder in (root / "teacher", run / "student", out))
    assert teacher.keys() == student.keys() and all(torch.equal(student[name], exported[name]) for name in student)
    assert any(not torch.equal(student[name], teacher[name]) for name in student)
    assert families.load(str(out)).default_sampling().times == tuple(time_grid(2, 3.0)[:-1].tolist())
    scores = json.loads((run / "metrics.json").read_text())["models"]
    assert {name: model["nfe"] for name, model in scores.items()} == {
        "teacher": 6,
        "teacher_few_step": 4,
        "student": 2,
    }


def test_a_student_of_adapters_is_exported_as_a_lora_file(recipe: Path) -> None:
    run, file = recipe.parent / "adapters", recipe.parent / "student.safetensors"
    assert main(["distill", str(recipe), f"trainer.folder={run}", "model.roles=lora"]) == 0
    assert main(["export", str(run), str(file), "--lora"]) == 0
    adapter, student = lora_files.read(file), load_file(run / "student" / WEIGHTS)
    for name, tensor in load_file(recipe.parent / "teacher" / WEIGHTS).items():
        layer = adapter.get(name.removesuffix(".weight"))
        # The file is in bfloat16.
        update = torch.zeros(()) if layer is None else layer.scaling * layer.up @ layer.down
        torch.testing.assert_close(student[name], tensor + update, atol=1e-3, rtol=0)
        assert (student[name] - tensor).abs().max() > 1e-3 or layer is None
    assert adapter


def test_a_folder_of_another_family_scores_by_itself(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["evaluation.t2i_cases=2", "evaluation.editing_cases=1", "data.resolution=64"]
    assert main(["evaluate", str(recipe.parent / "teacher"), *few, "evaluation.teacher_steps=2"]) == 0


def test_a_family_that_guides_by_default_is_guided(recipe: Path, tmp_path: Path) -> None:
    folder, drawn = str(recipe.parent / "teacher"), []
    model = families.load(folder)
    assert main(["sample", folder, "a red fox", "--out", str(tmp_path / "image.png")]) == 0
    sampler = Sampler(model, RoleDenoiser(single_role(model), "teacher"), batch_size=1)
    for scale in (model.default_sampling().cfg_scale, 1.0):
        drawn += sampler([Request("a red fox")], Sampling(3, cfg_scale=scale)).images
    found = np.asarray(Image.open(tmp_path / "image.png"))
    assert np.array_equal(found, drawn[0]) and not np.array_equal(found, drawn[1])


def test_the_autoencoder_keeps_what_it_averages() -> None:
    model = ToyModel(None, None, 0)
    colours = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 3), dtype=np.uint8)
    images = torch.from_numpy(colours).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    assert torch.equal(model.decode_latents(model.encode_images(images), 2, 3), images)
