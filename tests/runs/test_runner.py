"""The main job on a very small pipeline: data to run folder, exact resume, what is told before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import in_folder, student_weights

from datamodules.shards.encoded import EncodedDataset
from workbench.backbones import families
from workbench.backbones.roles import STUDENT
from workbench.common.errors import UserError
from workbench.engine.optimisation import MovingAverage
from workbench.method import rollout
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Recipe
from workbench.runs import checkpoint, continuing, preflight, runner
from workbench.runs.exporting import export_run
from workbench.runs.run_folder import Beginning, RunFolder
from workbench.runs.runner import distill, pretrain
from workbench.runs.safe_reader import SafeReader


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


def test_a_checkpoint_holds_the_weights_once_where_there_is_no_average(recipe: Recipe, tmp_path: Path) -> None:
    bare, run = replace(recipe, optim=replace(recipe.optim, ema_decay=0.0)), tmp_path / "bare"
    distill(in_folder(bare, run))
    found = checkpoint.newest_whole(run / "checkpoints")
    assert found is not None
    stored = SafeReader(found[0]).read_metadata().state_dict_metadata
    assert {name.split(".")[0] for name in stored} == {"parameters", "moments"}
    export_run(run, tmp_path / "again" / "student", lora=False)
    weights, exported = student_weights(run), student_weights(tmp_path / "again")
    assert weights.keys() == exported.keys() and all(torch.equal(weights[name], exported[name]) for name in weights)
    # A run that holds an average begins it with what this one delivers.
    prefix = "parameters."
    names = {name.removeprefix(prefix): of for name, of in stored.items() if name.startswith(prefix)}
    student = {name: torch.zeros(of.size) for name, of in names.items() if STUDENT in name.split(".")}
    state = {"parameters": {name: torch.zeros(of.size) for name, of in names.items()}, "average": student}
    continuing.load_start(continuing.Start("bare", found[0], found[1].num_updates), state, list(student))
    assert all(torch.equal(state["parameters"][name], average) for name, average in student.items())
    assert any(average.any() for average in student.values())


def _holding_a_copy(average: MovingAverage, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
    average._update, average.decay = torch.optim.swa_utils.get_ema_multi_avg_fn, decay
    average.parameters = dict(parameters)
    average.held = {name: parameter.detach().clone() for name, parameter in parameters.items()}


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
