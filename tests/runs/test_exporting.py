"""The student leaves a run: its folder, stock diffusers, adapters, cards and licences."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import QwenImage21Transformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from small_runs import SAMPLES, in_folder, student_weights
from stock_student import own_and_stock

from workbench.backbones import lora_files, roles
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import single_role
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.batch import conditions
from workbench.cli import main
from workbench.common.errors import UserError
from workbench.evaluation.model_card import CARD_START
from workbench.method import rollout
from workbench.recipe.config import Dmd, Guidance, Recipe, Schedule, Teachers
from workbench.recipe.reading import to_yaml
from workbench.runs import exporting, milestones
from workbench.runs.exporting import export_run
from workbench.runs.runner import distill
from workbench.sampling.sampler import Request


@pytest.mark.parametrize("with_image", [False, True], ids=["t2i", "edit"])
def test_stock_diffusers_draws_the_exported_student(finished: Path, with_image: bool) -> None:
    """Same noise, fp32: the stock pipeline on the exported folder against this project's own forward and sampler."""
    from PIL import Image

    loaded = QwenImage21Model.load(finished / "student")
    image = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20).convert("RGB") if with_image else None
    noise = torch.randn(1, 16, loaded.transformer.config.in_channels, generator=torch.Generator().manual_seed(3))
    stock = loaded.pipeline(
        prompt="a red house", image=image, latents=noise, output_type="latent", output_resolution=64
    ).images  # fmt: skip
    encoded = loaded.encode_prompts(["a red house"], [[image]] if image else None)
    references = None
    if image is not None:
        import numpy as np

        references = loaded.encode_images(torch.from_numpy(np.asarray(image).copy())[None], exactly=True)
    condition = conditions(encoded, references, 4, 4)
    network = RoleDenoiser(single_role(loaded), "teacher")
    ours = network.sample(condition, None, noise, rollout.time_grid(4, 3.0))
    assert (ours - stock).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [2, 4])
def test_a_run_of_all_options_exports_a_student_that_stock_diffusers_draws_as_we_do(
    recipe: Recipe, tmp_path: Path, steps: int
) -> None:
    """Re-noised, its first step trained instead by the teacher's path, all other terms on; images and edits."""
    options = Dmd(
        student_steps=steps,
        rollout="renoise",
        renoise_tied="below",
        fake_updates=1,
        fake_per_step=True,
        decoupled=True,
        first_step="instead",
        first_step_weight=0.1,
        data_weight=0.1,
        adversarial_weight=0.005,
    )
    wanted = replace(recipe, dmd=options, teachers=Teachers(cfg_scale=2.0))
    run = distill(in_folder(wanted, tmp_path / "run", updates=2, task_gradients_every=2))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss/classifier/t2i", "loss/data/edit", "task_gradients/norm/edit"} < last.keys()
    student = QwenImage21Model.load(run / "student")
    source = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20).convert("RGB")
    for request in (Request("a red house", 0, 0, height=64, width=64), Request("make it blue", 0, 1, (source,))):
        ours, stock = own_and_stock(student, request)
        assert (ours - stock).abs().max() < 1e-4


def test_exporting_again_gives_the_same_weights(finished: Path, tmp_path: Path) -> None:
    export_run(finished, tmp_path / "student", lora=False)
    left = student_weights(finished)
    right = load_file(tmp_path / "student" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(left[name], right[name]) for name in left)
    rights = {path.stat().st_mode for path in (tmp_path / "student").rglob("*") if path.is_file()}
    assert len(rights) == 1, "weights are as open to others as every other file"


def test_a_student_that_the_teachers_folder_could_not_hold_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    deeper = tmp_path / "deeper"
    shutil.copytree(recipe.model.folder, deeper)
    config = dict(QwenImage21Transformer2DModel.load_config(deeper / "transformer"))
    num_layers = config["num_layers"]
    config["num_layers"] += 1
    QwenImage21Transformer2DModel.from_config(config).save_pretrained(deeper / "transformer")
    wanted = replace(in_folder(recipe, tmp_path / "run"), model=replace(recipe.model, student=str(deeper)))
    with pytest.raises(UserError, match=rf"\(num_layers {num_layers + 1} against {num_layers}\)"):
        distill(wanted)
    assert not (tmp_path / "run").exists()


def test_an_export_delivers_the_best_milestone_as_the_run_did(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {1: 0.2, 2: 0.9}
    monkeypatch.setattr(milestones, "distillation_distance", lambda *_: lambda module: told[module.num_updates])
    run = distill(in_folder(recipe, tmp_path / "run", updates=2, sample_every=1, keep="best"))
    export_run(run, tmp_path / "again", lora=False)
    last = distill(in_folder(recipe, tmp_path / "last", updates=2, sample_every=1))
    delivered, of_last = student_weights(run), student_weights(last)
    again = load_file(tmp_path / "again" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(delivered[name], again[name]) for name in delivered)
    assert any(not torch.equal(delivered[name], of_last[name]) for name in delivered)


def test_lora_roles_train_and_export(recipe: Recipe, tmp_path: Path) -> None:
    small = replace(recipe, model=replace(recipe.model, roles="lora", lora_rank=4))
    run = distill(in_folder(small, tmp_path / "lora", updates=1))
    out = tmp_path / "student.safetensors"
    export_run(run, out, lora=True)
    merged = student_weights(run)
    base = QwenImage21Model.load(Path(recipe.model.folder)).pipeline
    base.load_lora_weights(out)
    base.fuse_lora()
    fused = base.transformer.state_dict()
    name = "transformer_blocks.0.attn.to_q"
    weight = fused.get(f"{name}.weight", fused.get(f"{name}.base_layer.weight"))
    torch.testing.assert_close(weight.float(), merged[f"{name}.weight"].float(), atol=2e-3, rtol=2e-2)
    for form in ("diffusers", "comfyui"):
        export_run(run, tmp_path / f"{form}.safetensors", lora=True, form=form)
    files = [load_file(tmp_path / f"{form}.safetensors") for form in ("diffusers", "comfyui")]
    assert not files[0].keys() & files[1].keys()
    weights = []
    for form in ("diffusers", "comfyui"):
        network = SplitTransformer(QwenImage21Model.load(Path(recipe.model.folder)).transformer)
        roles.merge_loras(network, [(tmp_path / f"{form}.safetensors", 1.0)])
        weights.append(network.transformer.state_dict())
    assert all(torch.allclose(weights[0][name], value, atol=1e-6) for name, value in weights[1].items())
    card = (tmp_path / "comfyui.md").read_text()
    assert (
        card.startswith(CARD_START)
        and "`1, 0.9, 0.75, 0.5, 0`" in card
        and "`euler`" in card
        and "base_model" not in card
    )
    second = replace(small, model=replace(small.model, student=str(tmp_path / "comfyui.safetensors")))
    still = replace(second, optim=replace(second.optim, student_lr=1e-12))
    again = distill(in_folder(still, tmp_path / "again", updates=1))
    export_run(again, tmp_path / "again.safetensors", lora=True)
    first, second = (lora_files.read(tmp_path / f"{file}.safetensors") for file in ("diffusers", "again"))
    for layer, adapter in first.items():
        torch.testing.assert_close(second[layer].down, adapter.down, atol=1e-6, rtol=1e-2)
        torch.testing.assert_close(second[layer].up, adapter.up, atol=1e-6, rtol=1e-2)


def test_a_copied_run_is_exported_without_its_data_and_with_a_licence(
    recipe: Recipe, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shards stay behind, the teacher lies elsewhere, and the card says what the command was told."""
    run, teacher = tmp_path / "copied", tmp_path / "moved"
    shutil.copytree(finished, run)
    shutil.copytree(recipe.model.folder, teacher)
    text = (run / "recipe.yaml").read_text()
    for gone in (recipe.data.encoded, recipe.model.folder):
        text = text.replace(gone, str(tmp_path / "gone"))
    (run / "recipe.yaml").write_text(text)
    out = tmp_path / "student"
    assert main(["export", str(run), str(out), f"model.folder={teacher}"]) == 0
    assert "lacks what" in (said := capsys.readouterr().out) and "model.license=apache-2.0" in said.replace("\n", " ")
    assert "license" not in front_matter(out / "README.md")
    assert "not stated by the teacher" in (out / "README.md").read_text()
    told = ["license=apache-2.0", "base_model=me/teacher"]
    assert main(["export", str(run), str(out), f"model.folder={teacher}", *told]) == 0
    assert "lacks what" not in capsys.readouterr().out
    front = front_matter(out / "README.md")
    assert (front["license"], front["base_model"]) == ("apache-2.0", "me/teacher")
    assert front["pipeline_tag"] == "text-to-image" and {"image-to-image", "distillation"} < set(front["tags"])
    count = sum(sum(of_task.values()) for of_task in SAMPLES.values())
    assert f"{count} samples of" in (out / "README.md").read_text()


def test_values_that_are_not_finite_end_a_command_by_the_tensors_name(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the teacher, in a specialist's file and in a student to start from, in a dry run too."""
    folder, lora = tmp_path / "broken", tmp_path / "lora.safetensors"
    shutil.copytree(recipe.model.folder, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["transformer_blocks.1.attn.to_k.weight"][2, 3] = float("nan")
    save_file(state, file, {"format": "pt"})
    layer = "transformer.transformer_blocks.0.attn.to_q"
    halves = {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.full((32, 2), float("inf"))}
    save_file(halves, lora)
    (tmp_path / "recipe.yaml").write_text(to_yaml(in_folder(recipe, tmp_path / "run")))
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    run, dry = ["distill", "recipe.yaml"], ["--dry-run"]
    for words, name in (
        (["sample", str(folder), "a cat", "--out", "cat.png"], "transformer_blocks.1.attn.to_k.weight"),
        ([*run, f"model.folder={folder}"], "transformer_blocks.1.attn.to_k.weight"),
        ([*run, f"model.folder={folder}", *dry], "transformer_blocks.1.attn.to_k.weight"),
        ([*run, f"model.student={folder}", *dry], "transformer_blocks.1.attn.to_k.weight"),
        ([*run, f"model.student={lora}", *dry], f"{layer}.lora_B.weight"),
        ([*run, f"teachers.specialists={{text: {lora}}}", *dry], f"{layer}.lora_B.weight"),
    ):
        assert main(words) == 2
        assert name in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def front_matter(card: Path) -> dict[str, Any]:
    return yaml.safe_load(card.read_text().split("---\n")[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora", "RUN", "data.encoded=x"], "stands where the file or folder to write belongs"),
        (["RUN", "OUT", "dmd.student_steps=8"], "export takes no dmd.student_steps"),
        (["RUN", "OUT", "license=no such"], "model.license is a licence as the Hub spells it"),
        (["RUN", "OUT", "--format", "comfyui"], "add --lora"),
        (["--lora", "RUN", "OUT"], "name a .safetensors file"),
        (["--lora", "RUN", "OUT.safetensors"], "trained full weights"),
    ],
)
def test_an_export_that_cannot_be_is_one_line_and_writes_nothing(
    words: list[str],
    said: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(word.replace("RUN", str(finished)) for word in words)]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_text_in_the_place_of_a_card_is_not_written_over(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.md").write_text("mine")
    assert main(["export", "--lora", str(finished), str(tmp_path / "notes.safetensors")]) == 2
    assert "notes.md exists and is no model card" in capsys.readouterr().err
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_a_run_with_a_specialist_from_a_lora_file(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student's adapter, exported, is a specialist of the next run; the plan says what routing it costs."""
    small = replace(recipe, model=replace(recipe.model, roles="lora", lora_rank=2))
    earlier = in_folder(small, tmp_path / "earlier", updates=1)
    export_run(distill(earlier), tmp_path / "text.safetensors", lora=True)
    routed = replace(
        recipe,
        teachers=Teachers(specialists={"text": str(tmp_path / "text.safetensors")}, cfg_scale=2.0),
        guidance=Guidance(schedules={"default": Schedule(), "t2i/text": Schedule("switch", {"text": 0.5}, at=2)}),
        dmd=replace(recipe.dmd, fake_samples="student_rollout"),
    )
    run = distill(in_folder(routed, tmp_path / "routed", updates=1))
    assert (run / "student").is_dir()
    capsys.readouterr()
    distill(in_folder(routed, tmp_path / "dry", updates=1), dry_run=True)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["t2i", "2", "2", "4", "4", "3.00", "teacher,", "teacher_text"] in lines
    assert ["edit", "2", "2", "2", "2", "2.00", "teacher"] in lines


def test_the_exported_folder_runs_when_no_dtype_is_asked_for(finished: Path) -> None:
    """diffusers then loads its parts in float32 and transformers what was stored: they must agree."""
    from diffusers import QwenImage21Pipeline

    from workbench.backbones.qwen_image_21.processor import load_processor

    folder = finished / "student"
    stock = QwenImage21Pipeline.from_pretrained(folder, processor=load_processor(folder / "processor"))
    drawn = stock("a red house", output_resolution=64, output_type="latent").images
    assert torch.isfinite(drawn).all() and stock.scheduler.timesteps.shape == (4,)


def test_a_run_killed_before_its_export_is_exported_by_the_same_command(
    finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    shutil.rmtree(again / "student")
    distill(in_folder(recipe, again))
    for name, weight in student_weights(finished).items():
        assert torch.equal(weight, student_weights(again)[name])
    assert (again / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()


def test_a_student_appears_with_its_size_and_its_update_or_not_at_all(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "describe_student", dies)
    with pytest.raises(KeyboardInterrupt):
        export_run(finished, tmp_path / "student", lora=False)
    assert list(tmp_path.iterdir()) == []
