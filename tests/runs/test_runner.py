"""The main job on a very small pipeline: data to run folder, exact resume, pretraining, export."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
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

from datamodules.shards.encoded import EncodedDataset
from workbench.backbones import families, lora_files, roles
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import single_role
from workbench.backbones.qwen_image_21 import text_encoder
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.prompts import PromptTokenizer
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.batch import CaptionStep, conditions
from workbench.cli import main
from workbench.common.errors import UserError
from workbench.engine.optimisation import MovingAverage
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.metrics_file import Metrics
from workbench.evaluation.model_card import CARD_START
from workbench.method import rollout
from workbench.modules import pretrainer
from workbench.modules.distiller import Distiller
from workbench.modules.pretrainer import Pretrainer
from workbench.recipe.config import Dmd, Guidance, Recipe, Schedule, Teachers
from workbench.recipe.reading import to_yaml
from workbench.runs import checkpoint, exporting, inference, milestones, preflight, runner
from workbench.runs.exporting import export_run
from workbench.runs.run_folder import Beginning, RunFolder
from workbench.runs.runner import distill, pretrain
from workbench.sampling.sampler import Request


def test_a_run_folder_holds_what_it_promises(finished: Path, recipe: Recipe) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2, 3, 4]
    assert all(line["mixture/t2i/landscape"] >= 0 and line["gradient_norm/student"] > 0 for line in lines)
    assert (finished / "samples" / "update-000004.png").is_file()
    assert list((finished / "tensorboard").glob("events*"))
    index = json.loads((finished / "student" / "model_index.json").read_text())
    assert index["sample_sigmas"] == pytest.approx(rollout.time_grid(4, 3.0)[:-1].tolist())
    assert not list(finished.rglob("*.partial"))


def test_a_run_has_one_bar_which_counts_updates(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def make(_: Recipe, **options: Any) -> None:
        made.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.machine, "make_trainer", make)
    with pytest.raises(KeyboardInterrupt):
        distill(in_folder(recipe, tmp_path / "run"))
    bars = [type(callback).__name__ for callback in made[0]["callbacks"] if "Bar" in type(callback).__name__]
    assert bars == ["UpdatesBar"] and made[0]["enable_progress_bar"] is False


def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(
    finished: Path,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = Distiller.training_step

    def dies_at_update_three(self: Distiller, data: object, index: int) -> None:
        if self.num_updates == 3:
            raise RuntimeError("killed")
        step(self, data, index)  # type: ignore[arg-type]

    again = in_folder(recipe, tmp_path / "again")
    monkeypatch.setattr(Distiller, "training_step", dies_at_update_three)
    with pytest.raises(RuntimeError, match="killed"):
        distill(again)
    monkeypatch.setattr(Distiller, "training_step", step)
    distill(again)

    straight, resumed = student_weights(finished), student_weights(tmp_path / "again")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    lines = [json.loads(line)["update"] for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]
    assert " s after the last update" in capsys.readouterr().out.replace("\n", " ")


def test_a_run_without_an_average_resumes_and_delivers_its_last_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(recipe, optim=replace(recipe.optim, ema_decay=0.0))
    distill(in_folder(bare, tmp_path / "straight"))
    distill(in_folder(bare, tmp_path / "parts", updates=2))
    distill(in_folder(bare, tmp_path / "parts"))
    straight = student_weights(tmp_path / "straight")
    resumed = student_weights(tmp_path / "parts")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    # As one that holds a copy and takes the weights over whole: the decay is capped at (1 + n) / (10 + n).
    monkeypatch.setattr(MovingAverage, "__init__", _holding_a_copy)
    distill(in_folder(bare, tmp_path / "copied"))
    copied = student_weights(tmp_path / "copied")
    assert all(torch.equal(straight[name], copied[name]) for name in straight)


def _holding_a_copy(average: MovingAverage, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
    average._update, average.decay = torch.optim.swa_utils.get_ema_multi_avg_fn, decay
    average.parameters = dict(parameters)
    average._average = {name: parameter.detach().clone() for name, parameter in parameters.items()}


def test_a_kill_right_after_a_checkpoint_loses_no_line_and_no_picture(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def then_dies(folder: Path, state: dict[str, Any], progress: checkpoint.Progress) -> Path:
        written = save(folder, state, progress)
        if progress.num_updates == 2:
            raise RuntimeError("killed")
        return written

    again = in_folder(recipe, tmp_path / "again", sample_every=2)
    monkeypatch.setattr(checkpoint, "save", then_dies)
    with pytest.raises(RuntimeError, match="killed"):
        distill(again)
    monkeypatch.setattr(checkpoint, "save", save)
    distill(again)
    for name in ("metrics.jsonl", "milestones.jsonl"):
        lines = [json.loads(line)["update"] for line in (tmp_path / "again" / name).read_text().splitlines()]
        assert lines == ([1, 2, 3, 4] if name == "metrics.jsonl" else [2, 4])
    pictures = sorted(path.name for path in (tmp_path / "again" / "samples").glob("update-*"))
    assert pictures == ["update-000000.png", "update-000002.png", "update-000004.png"]


def test_a_damaged_checkpoint_is_passed_over_with_a_line(
    finished: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "student")
    shard = next((folder / "checkpoints" / "update-000004").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    distill(in_folder(recipe, folder))
    said = " ".join(capsys.readouterr().out.split())
    assert f"{shard.name} is gone or has changed): the one before is taken" in said
    assert f"continuing {folder} at update 2 of 4" in said
    straight, resumed = student_weights(finished), student_weights(folder)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    lines = [json.loads(line)["update"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]


def test_a_run_folder_serves_one_process(recipe: Recipe, tmp_path: Path) -> None:
    busy = in_folder(recipe, tmp_path / "run")
    with (
        RunFolder(tmp_path / "run").begun(Beginning(busy)),
        pytest.raises(UserError, match=f"process {os.getpid()} on "),
    ):
        distill(busy)
    with RunFolder(tmp_path / "run").begun(Beginning(busy)):
        pass


def test_a_run_that_trained_nothing_delivers_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.modules.root.clip_gradients", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(UserError, match="steps were skipped in 4 updates"):
        distill(in_folder(recipe, tmp_path / "run"))
    assert not (tmp_path / "run" / "student").exists()


def test_the_student_left_the_teacher(finished: Path, recipe: Recipe) -> None:
    teacher = families.load(recipe.model.folder).transformer.state_dict()
    student = student_weights(finished)
    assert any((student[name].float() - teacher[name].float()).abs().max() > 1e-4 for name in student)


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


def test_another_recipe_does_not_continue_a_run(finished: Path, recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"another recipe \(.* was .*, is .*\)"):
        distill(replace(recipe, seed=recipe.seed + 1))


def test_a_longer_run_goes_on_from_a_finished_one(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    distill(in_folder(recipe, folder, updates=1))
    distill(in_folder(recipe, folder, updates=2))
    assert (folder / "checkpoints" / "update-000002").is_dir()


def test_all_that_a_dry_run_reads_off_the_networks_is_told_before_an_update_shards_them(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(runner, "_seconds_per_update", lambda *_: told.append(capsys.readouterr().out) or 1.0)
    distill(in_folder(recipe, tmp_path / "dry"), dry_run=True)
    assert "memory: state" in told[0] and "time: 1.00 s" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill(in_folder(recipe, tmp_path / "dry"), dry_run=True)
    assert not (tmp_path / "dry").exists()
    out = capsys.readouterr().out
    assert "passes" in out and "GiB" in out and "min" in out and "warning" not in out


def test_shards_of_another_encoder_are_one_line_of_warning(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "encoder_fingerprint", lambda folder: "another")
    distill(in_folder(recipe, tmp_path / "dry"), dry_run=True)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"warning: {recipe.data.encoded} was encoded with other files")
    assert not any("warning" in line for line in rest)


def test_fewer_updates_than_a_run_has_done_are_refused(finished: Path, recipe: Recipe) -> None:
    kept = (finished / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"has done 4 updates, and trainer\.updates is 3: set it to as many or more"):
        distill(in_folder(recipe, finished, updates=3))
    assert (finished / "recipe.yaml").read_text() == kept


def test_what_a_killed_beginning_left_is_no_obstacle(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / ".recipe.yaml.123.part").write_text("half")
    (tmp_path / "environment.json").write_text("{}")
    folder = RunFolder(tmp_path)
    with folder.begun(Beginning(recipe)):
        assert folder.read_recipe() == recipe
    folder.recipe.unlink()
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not empty and no run"):
        folder.check(Beginning(recipe))


def test_a_planned_sample_without_target_is_named_before_training(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = EncodedDataset(recipe.data.encoded)
    category = texts.categories.index("t2i/text")
    bare = int((texts.samples.category == category).argmax())
    monkeypatch.setattr(EncodedDataset, "has_target", lambda self, i: i != bare)
    for option in ("adversarial_weight", "data_weight"):
        wanted = replace(in_folder(recipe, tmp_path / "run"), dmd=replace(recipe.dmd, **{option: 0.1}))
        named = f"{option} needs a target of every sample, but {texts.samples.keys[bare]} of t2i/text has none"
        with pytest.raises(UserError, match=named):
            distill(wanted)
    without = replace(wanted.mixture, categories={"t2i": {"landscape": 0.5, "portrait": 0.5}})
    distill(replace(wanted, mixture=without), dry_run=True)
    assert not (tmp_path / "run").exists()


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


def test_pretraining_moves_transformer_and_text_encoder(recipe: Recipe, tmp_path: Path) -> None:
    folder = pretrain(in_folder(recipe, tmp_path / "pretrain"))
    before, after = (QwenImage21Model.load(where).pipeline for where in (Path(recipe.model.folder), folder))
    for part in ("transformer", "text_encoder"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        moved = [name for name in old if not torch.equal(old[name], new[name])]
        assert len(moved) > len(old) // 2, part
    assert any("visual" in name for name in moved)


def test_replayed_pretraining_too_ends_after_too_many_skipped_steps(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replayed(self: Pretrainer, data: CaptionStep, _: int) -> None:
        self._replay(data, [self._draw(batch) for batch in data.batches])
        self.num_updates += 1

    monkeypatch.setattr(pretrainer, "GraphedStep", lambda step: step)
    monkeypatch.setattr(Pretrainer, "_captured_update", lambda *_: torch.tensor(math.nan))
    monkeypatch.setattr(Pretrainer, "training_step", replayed)
    with pytest.raises(UserError, match="gradient of the teacher at update 1 .* 2 such steps are too many"):
        pretrain(in_folder(recipe, tmp_path / "pretrain", max_skipped_updates=1))


def test_the_trained_text_encoder_is_the_pipelines_own(recipe: Recipe) -> None:
    """What pretraining computes is what the pipeline will feed the transformer."""
    import numpy as np
    from PIL import Image

    model = QwenImage21Model.load(Path(recipe.model.folder))
    tokenizer = PromptTokenizer(model.pipeline)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for text, image in (("a red fox", None), ("", None), ("make it green", Image.fromarray(pixels))):
        (expected,) = model.encode_prompts([text], [[image]] if image else None)
        ids = tokenizer(text, 4 if image else 0)
        slots = text_encoder.ImageSlots(tokenizer.first_slot(ids), 2, 2) if image else None
        images = torch.from_numpy(pixels)[None] if image else None
        hidden = text_encoder.embed(model.pipeline.text_encoder, torch.tensor([ids]), images, slots)
        torch.testing.assert_close(hidden[0, tokenizer.num_system_tokens :], expected.embeddings, atol=1e-5, rtol=1e-5)


def test_the_exported_folder_runs_when_no_dtype_is_asked_for(finished: Path) -> None:
    """diffusers then loads its parts in float32 and transformers what was stored: they must agree."""
    from diffusers import QwenImage21Pipeline

    from workbench.backbones.qwen_image_21.processor import load_processor

    folder = finished / "student"
    stock = QwenImage21Pipeline.from_pretrained(folder, processor=load_processor(folder / "processor"))
    drawn = stock("a red house", output_resolution=64, output_type="latent").images
    assert torch.isfinite(drawn).all() and stock.scheduler.timesteps.shape == (4,)


ONE_CASE = ("evaluation.t2i_cases=1", "evaluation.editing_cases=1", "evaluation.split=search")


def scored(run: Path, shared: Store) -> tuple[Metrics, list[str]]:
    """Scores of a run on one case a category, and the folders that were loaded for them."""
    loaded, load = [], families.load

    def told(folder: str, **options: Any) -> Any:
        loaded.append(folder)
        return load(folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "load", told)
        metrics = inference.evaluate_run(run, [*ONE_CASE], shared=shared)
    assert metrics is not None
    return metrics, loaded


@pytest.fixture(scope="module")
def first_scored(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Metrics, list[str], Store]:
    """The finished run, and where the answers of its teacher are kept."""
    shared = Store(tmp_path_factory.mktemp("shared"))
    return *scored(finished, shared), shared


def test_a_teacher_that_answered_another_run_is_not_even_loaded(
    finished: Path, recipe: Recipe, first_scored: tuple[Metrics, list[str], Store]
) -> None:
    first, loaded, shared = first_scored
    assert sorted(loaded) == sorted([recipe.model.folder, str(finished / "student")])
    again, loaded = scored(finished, shared)
    assert loaded == [str(finished / "student")]
    assert again.few_step_selection == first.few_step_selection and again.comparisons == first.comparisons
    assert again.models["teacher"] == first.models["teacher"]


def test_the_choice_of_the_few_step_teacher_outlives_an_interruption(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, overrides = tmp_path / "run", ["evaluation.t2i_cases=1", "evaluation.editing_cases=1"]
    shutil.copytree(finished, run)
    loaded, load = [], families.load

    def told(folder: str, **options: Any) -> Any:
        loaded.append(folder)
        return load(folder, **options)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(families, "load", told)
    monkeypatch.setattr(inference, "evaluate", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            inference.evaluate_run(run, overrides)
    assert len(loaded) == 1, "the second time every answer is kept, and nothing is loaded"


def test_a_picture_to_edit_is_read_upright_and_named_where_it_cannot_be(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 6
    Image.new("RGB", (160, 64)).save(tmp_path / "photo.jpg", exif=orientation)
    inference.sample_image(str(finished), "add snow", [tmp_path / "photo.jpg"], tmp_path / "out.png", 0, resolution=64)
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.height > drawn.width
    with pytest.raises(UserError, match="--image .*none.png: cannot be read"):
        inference.sample_image(str(finished), "add snow", [tmp_path / "none.png"], tmp_path / "out.png", 0)


def test_a_picture_has_the_size_of_the_training_or_the_one_that_is_asked_for(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.png"
    Image.new("RGB", (300, 100), "red").save(tmp_path / "wide.png")

    def drawn(folder: Path, **options: Any) -> tuple[int, int]:
        inference.sample_image(str(folder), "a fox", options.pop("images", ()), out, 0, **options)
        with Image.open(out) as image:
            return image.size

    assert drawn(finished) == drawn(finished / "student") == (64, 64)
    assert drawn(finished, size="96x64") == (96, 64)
    assert drawn(finished, images=[tmp_path / "wide.png"]) == (96, 32)
    assert drawn(finished, images=[tmp_path / "wide.png"], size="64x96") == (64, 96)
    apart = shutil.copytree(finished / "student", tmp_path / "apart")
    index = json.loads((apart / "model_index.json").read_text())
    (apart / "model_index.json").write_text(json.dumps({**index, "_resolution": 32}))
    assert drawn(apart) == (32, 32)
    monkeypatch.setattr(inference, "FolderUnderTest", None)  # no model is loaded for a size that cannot be
    for size, message in (
        ("100x64", "multiples of 32 up to 8192; the nearest is 96x64"),
        ("0x64", "the nearest is 32x64"),
        ("99999x64", "the nearest is 8192x64"),
        ("128", "is not of the form WIDTHxHEIGHT"),
        ("-1x64", "is not of the form"),
        ("٦٤x64", "is not of the form"),
    ):
        with pytest.raises(UserError, match=message):
            drawn(finished, size=size)
    with pytest.raises(UserError, match="--image: 2 source images, and the pipeline folder takes 1"):
        drawn(finished, images=[tmp_path / "wide.png"] * 2)


def test_a_folder_that_says_nothing_draws_at_the_size_of_its_family(finished: Path, tmp_path: Path) -> None:
    assert families.resolution_of(families.resolve("tiny")) == 128
    for stored in (None, "128", 0, -1, 10**9, True):
        (tmp_path / "model_index.json").write_text(
            json.dumps({"_class_name": "QwenImage21Pipeline", "_resolution": stored})
        )
        assert families.resolution_of(tmp_path) == 1024


@pytest.mark.parametrize("index_says", [True, False])
def test_shards_of_another_resolution_are_refused(
    recipe: Recipe, finished: Path, tmp_path: Path, index_says: bool
) -> None:
    """Former indexes do not say: their sizes do."""
    encoded = shutil.copytree(recipe.data.encoded, tmp_path / "encoded")
    index = json.loads((encoded / "index.json").read_text())
    if not index_says:
        del index["resolution"]
        (encoded / "index.json").write_text(json.dumps(index))
    other = replace(recipe, data=replace(recipe.data, encoded=str(encoded), resolution=256))
    for command in (distill, pretrain):
        with pytest.raises(UserError, match=r"data\.resolution is 256, .*encoded at 64: set data\.resolution=64, or"):
            command(replace(other, trainer=replace(other.trainer, folder=str(tmp_path / "run"))))
    preflight.check_resolution(
        EncodedDataset(str(encoded)), 16, replace(other, data=replace(other.data, resolution=64))
    )


def test_milestones_are_scored_as_the_evaluation_does_and_change_nothing(
    finished: Path, recipe: Recipe, tmp_path: Path, first_scored: tuple[Metrics, list[str], Store]
) -> None:
    """The last milestone is the finished student's: scored through its export, it gets the same."""
    evaluation = replace(recipe.evaluation, milestone_cases=1, t2i_cases=1, editing_cases=1, split="search")
    run = distill(replace(in_folder(recipe, tmp_path / "scored", sample_every=2), evaluation=evaluation))
    rows = [json.loads(line) for line in (run / "milestones.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [2, 4] and all(row["alarm"] == 0 for row in rows)
    assert all(math.isfinite(row["distance"]) for row in rows)
    benches = first_scored[0].models["student"].benches
    assert rows[-1]["t2i"] == pytest.approx(benches["t2i_bench"]["mean"].mean, abs=1e-3)
    assert rows[-1]["editing"] == pytest.approx(benches["editing_bench"]["mean"].mean, abs=1e-3)
    assert rows[-1]["score"] == pytest.approx((rows[-1]["t2i"] + rows[-1]["editing"]) / 2)
    for name, weight in student_weights(finished).items():
        assert torch.equal(weight, student_weights(run)[name])


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
