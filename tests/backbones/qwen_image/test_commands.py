"""Both checkpoints of Qwen-Image go through every command: a student of the editing one, taught generation by the
other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from PIL import Image
from safetensors.torch import load_file
from stock_student import noise
from tiny_qwen_image import autoencoder

from workbench.backbones import families, roles
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import load_specialist, single_role
from workbench.backbones.qwen_image.model import QwenImageModel
from workbench.cli import main
from workbench.common.errors import UserError
from workbench.method.rollout import time_grid
from workbench.recipe import reading
from workbench.sampling.sampler import NOISE_STREAM, Request, Sampler

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
REQUESTS = {
    "t2i": Request("a red fox", seed=1, height=64, width=64),
    "edit": Request("make it blue", seed=2, sources=(Image.new("RGB", (64, 64), "red"),)),
}


@pytest.fixture(autouse=True, scope="module")
def _small_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock, "CONDITION_IMAGE_SIZE", 64 * 64)
        patch.setattr(stock, "VAE_IMAGE_SIZE", 64 * 64)
        yield


@pytest.fixture(scope="module")
def recipe(qwen_image_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over both folders, its data packed and encoded by the commands."""
    root = tmp_path_factory.mktemp("unified")
    sections: dict[str, Any] = {
        "model": {"folder": str(qwen_image_folders["edit"]), "lora_rank": 2},
        "teachers": {
            "specialists": {"generation": str(qwen_image_folders["t2i"])},
            "cfg_scale": 3.0,
            "cfg_rescale": 1.0,
        },
        "guidance": {"tables": {"t2i": [[0.0, 1.0], [0.0, 1.0]], "edit": [[1.0, 0.0], [1.0, 0.0]]}},
        "data": {
            "samples": {"t2i": {"portrait": 4}, "edit": {"object": 4}},
            "resolution": 64,
            "raw": str(root / "raw"),
            "encoded": str(root / "encoded"),
            "num_workers": 0,
        },
        "mixture": {"batch_size": 4},
        "dmd": {"student_steps": 2, "fake_updates": 1},
        "optim": {"student_lr": 0.01, "warmup_updates": 1},
        "trainer": {"accelerator": "cpu", "updates": 2, "log_every": 1, "checkpoint_every": 1, "sample_every": 2},
        "evaluation": {"teacher_steps": 2, "t2i_cases": 1, "editing_cases": 1, "seeds": [0]},
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    assert main(["pack", str(path)]) == main(["encode", str(path)]) == 0
    return path


def test_one_student_of_two_checkpoints_goes_through_every_command(
    recipe: Path,
    qwen_image_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    run, out = tmp_path / "run", tmp_path / "exported"
    distill = ["distill", str(recipe), f"trainer.folder={run}"]
    assert main([*distill, "--dry-run"]) == 0 and not run.exists()
    plan = capsys.readouterr().out
    assert "teacher_generation" in plan and "peak about" in plan
    assert "over 2 layouts (t2i 1, edit 1)" in plan and "16 of the target and 16 of sources" in " ".join(plan.split())
    assert main([*distill, "trainer.updates=1"]) == 0
    for command in (distill, ["export", str(run), str(out)]):
        assert main(command) == 0
    # The folder alone: `evaluate` of a run scores three models by the same code.
    few = [f"evaluation.{key}" for key in ("t2i_cases=1", "editing_cases=1", "teacher_steps=2", "seeds=[0]")]
    assert main(["evaluate", str(qwen_image_folders["edit"]), *few, "data.resolution=64"]) == 0
    Image.new("RGB", (128, 64), "red").save(tmp_path / "source.png")
    for more in ([], ["--image", str(tmp_path / "source.png")]):
        assert main(["sample", str(run), "a red fox", *more, "--out", str(tmp_path / "picture.png")]) == 0
        assert Image.open(tmp_path / "picture.png").size == ((96, 32) if more else (64, 64))

    folders = (qwen_image_folders["edit"], run / "student", out)
    before, after, exported = (load_file(folder / WEIGHTS) for folder in folders)
    assert all(torch.equal(after[name], exported[name]) for name in before)
    assert any(not torch.equal(after[name], before[name].to(after[name].dtype)) for name in before)
    (scores,) = tmp_path.glob("runs/evaluation/*/metrics.json")
    teacher = json.loads(scores.read_text())["models"]["model"]
    assert teacher["nfe"] == 4 and teacher["sampling"]["cfg_rescale"] == 1
    card = (out / "README.md").read_text()
    assert "from diffusers import QwenImageEditPlusPipeline" in card and "num_inference_steps=2" in card
    assert 'pipeline([IMAGE], "INSTRUCTION"' in card and "QwenImagePipeline.from_pipe(pipeline" in card
    assert families.load(str(out), text_encoder=False).default_sampling().grid().tolist() == pytest.approx(
        time_grid(2, 3.0).tolist()
    )


def test_a_student_of_adapters_is_a_lora_file_that_stock_pipelines_read(
    recipe: Path, qwen_image_folders: dict[str, Path], tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "student.safetensors"
    assert main(["distill", str(recipe), f"trainer.folder={run}", "model.roles=lora", "trainer.updates=1"]) == 0
    assert main(["export", str(run), str(file), "--lora"]) == 0
    assert "shift=1.0, use_dynamic_shifting=False" in file.with_suffix(".md").read_text()
    ours, theirs = (families.load(str(qwen_image_folders["edit"])) for _ in range(2))
    assert isinstance(ours, QwenImageModel) and isinstance(theirs, QwenImageModel) and theirs.edits is not None
    network = single_role(ours)
    roles.merge_loras(network.network(roles.TEACHER), [(file, 1.0)])
    merged, student = network.network(roles.TEACHER).transformer.state_dict(), load_file(run / "student" / WEIGHTS)
    for name, value in load_file(qwen_image_folders["edit"] / WEIGHTS).items():
        # Folder and file are in bfloat16.
        torch.testing.assert_close(merged[name], student[name].float(), atol=1e-2, rtol=1e-2)
        assert (merged[name] - value).abs().max() > 0 or not name.endswith("to_q.weight")
    theirs.edits.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    theirs.edits.load_lora_weights(str(file.parent), weight_name=file.name)
    generate = QwenImagePipeline.from_pipe(theirs.edits, torch_dtype=theirs.edits.dtype)
    how = families.sampling_of(str(run / "student"))
    for task, request in REQUESTS.items():
        (latents,) = Sampler(ours, RoleDenoiser(network, roles.TEACHER))([request], how).latents
        call: dict[str, Any] = {"prompt": request.prompt, "height": 64, "width": 64, "output_type": "latent"}
        call |= {"latents": noise(ours, request, NOISE_STREAM), "sigmas": how.grid()[:-1].tolist()}
        call |= {"true_cfg_scale": 1.0}
        stock_latents = generate(**call) if task == "t2i" else theirs.edits(image=list(request.sources), **call)
        torch.testing.assert_close(latents, stock_latents.images[0], atol=1e-4, rtol=1e-4)


PROMPT, SIDES = "put both into one picture", ((64, 64), (96, 32), (32, 96))


def own_edits(folder: Path) -> Path:
    """Three edits of three sources, three of two; each source of another aspect."""
    folder.mkdir()
    for i in range(6):
        for number, size in enumerate(SIDES[: 2 + i % 2], 1):
            picture(10 * i + number, size).save(folder / f"{i}.source_{number}.png")
        (folder / f"{i}.txt").write_text(PROMPT)
    picture(7, (64, 64)).save(folder / "1.png")
    return folder


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.effect_mandelbrot(size, (-2 + seed / 50, -1, 1, 1), 20).convert("RGB")


@torch.no_grad()
def test_edits_of_several_sources_go_from_a_folder_of_pictures_into_the_stock_pipeline(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    sections = yaml.safe_load(recipe.read_text())
    places = {name: str(tmp_path / name) for name in ("raw", "encoded")}
    sections |= {"teachers": {}, "guidance": {}, "mixture": {"batch_size": 4, "tasks": {"edit": 1.0}}}
    sections["data"] |= {"source": str(own_edits(tmp_path / "own")), "samples": {}, **places}
    path, run, out = tmp_path / "several.yaml", tmp_path / "run", tmp_path / "drawn.png"
    path.write_text(yaml.safe_dump(sections))
    assert main(["pack", str(path)]) == main(["encode", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 of 7 buckets, 3 layouts" in said and "64 x 64 + 96 x 32 + 32 x 96" in said
    assert main(["encode", str(path)]) == main(["distill", str(path), f"trainer.folder={run}"]) == 0

    student = families.load(str(run / "student"))
    assert isinstance(student, QwenImageModel) and student.edits is not None
    sampler = Sampler(student, RoleDenoiser(single_role(student), "teacher"))
    for count in (2, 3):
        files = [str(tmp_path / "own" / f"{count - 2}.source_{number}.png") for number in range(1, count + 1)]
        given = [word for file in files for word in ("--image", file)]
        assert main(["sample", str(run), PROMPT, *given, "--seed", "3", "--out", str(out)]) == 0
        request = Request(PROMPT, seed=3, sources=tuple(Image.open(file).convert("RGB") for file in files))
        drawn = sampler([request], student.default_sampling())
        width, height = SIDES[count - 1]
        call: dict[str, Any] = {"height": height, "width": width, "num_inference_steps": 2, "true_cfg_scale": 1.0}
        call |= {"latents": noise(student, request, NOISE_STREAM, width * height // 256)}
        theirs = student.edits(list(request.sources), PROMPT, output_type="latent", **call).images[0]
        torch.testing.assert_close(drawn.latents[0], theirs, atol=1e-4, rtol=1e-4)
        stock_picture = np.asarray(student.edits(list(request.sources), PROMPT, **call).images[0], dtype=int)
        assert np.abs(stock_picture - np.asarray(Image.open(out))).max() <= 1
    capsys.readouterr()
    assert main(["sample", str(run), PROMPT, *given, "--image", files[0], "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: --image: 4 source images, and the pipeline folder takes 3")
    case = {"id": "a", "task": "edit", "category": "object", "prompt": PROMPT, "source": files}
    Path("mine.jsonl").write_text(json.dumps(case))
    few = ["evaluation.cases=mine.jsonl", "data.resolution=64"]
    assert main(["evaluate", str(run / "student"), *few]) == 0 and main(["evaluate", "tiny", *few]) == 2
    assert "error: case a: 3 source images, and the pipeline folder takes 1" in capsys.readouterr().err
    (sheet,) = Path("runs/evaluation").glob("*/samples/evaluation/edit-object.png")
    assert json.loads((sheet.parent / "index.json").read_text())[0]["columns"][:3] == ["source", "source_2", "source_3"]


def test_teachers_of_one_run_share_their_encoders(
    recipe: Path, qwen_image_folders: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for item in qwen_image_folders["t2i"].iterdir():
        (other / item.name).symlink_to(item)
    (other / "vae").unlink()
    autoencoder().save_pretrained(other / "vae")
    for folder, match in ((other, "has another vae than"), (tiny_pipeline_folder, "is of the family of the base")):
        read = reading.load(recipe, [f"teachers.specialists.generation={folder}"])
        with pytest.raises(UserError, match=match):
            load_specialist(read, str(folder))
