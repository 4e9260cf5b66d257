"""What a run folder does with the next command: goes on, is finished, refuses, or serves as another run's start."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_runs import in_folder, student_weights

from datamodules.shards.encoded import EncodedDataset
from workbench.backbones import weights_hash as weights
from workbench.backbones.weights_hash import weights_hash
from workbench.common.errors import UserError
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load, to_yaml
from workbench.runs import checkpoint, continuing, environment, runner
from workbench.runs.encoding import encode
from workbench.runs.exporting import export_run
from workbench.runs.run_folder import Beginning, RunFolder
from workbench.runs.runner import distill, pretrain


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def changed(recipe: Recipe, run: Path, *overrides: str) -> Recipe:
    """`recipe` in the folder `run`, with overrides."""
    written = run.parent / "recipe.yaml"
    written.write_text(to_yaml(recipe))
    return load(written, [f"trainer.folder={run}", *overrides])


def checked(recipe: Recipe) -> None:
    """What every `distill` checks first."""
    folder = RunFolder(Path(recipe.trainer.folder))
    continuing.distillation(folder, recipe, EncodedDataset(recipe.data.encoded).content)


def test_a_run_that_made_no_update_is_in_nobodys_way(
    finished: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too large a batch is found out after the folder is claimed and the first pictures are drawn."""
    run, other = tmp_path / "run", replace(recipe, seed=recipe.seed + 1)

    def runs_out(self: Distiller, data: Any, index: int) -> None:
        raise UserError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="out of memory"):
        patched.setattr(Distiller, "training_step", runs_out)
        distill(in_folder(other, run))
    drawn = {path.name: path.read_bytes() for path in (run / "samples").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="in use by process"), RunFolder(run).begun(Beginning(other)):
        distill(in_folder(recipe, run))
    assert RunFolder(run).read_recipe().seed == other.seed
    capsys.readouterr()
    distill(in_folder(recipe, run))
    assert "came to nothing" in capsys.readouterr().out
    assert RunFolder(run).read_recipe().seed == recipe.seed
    weights, expected = student_weights(run), student_weights(finished)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    again = {path.name: path.read_bytes() for path in (run / "samples").rglob("*") if path.is_file()}
    assert drawn and all(again[name] != drawn[name] for name in drawn.keys() & again.keys())
    with pytest.raises(UserError, match="another recipe"):
        distill(in_folder(other, run))


def test_a_run_goes_on_under_changes_that_alter_no_number(
    finished: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data and model moved, re-encoded into other shards, smaller micro-batches, recomputed activations, and more."""
    run, step = tmp_path / "run", Distiller.training_step

    def dies_at_update_two(self: Distiller, data: Any, index: int) -> None:
        if self.num_updates == 2:
            raise RuntimeError("killed")
        step(self, data, index)

    monkeypatch.setattr(Distiller, "training_step", dies_at_update_two)
    with pytest.raises(RuntimeError, match="killed"):
        distill(in_folder(recipe, run))
    monkeypatch.setattr(Distiller, "training_step", step)
    model = shutil.copytree(recipe.model.folder, tmp_path / "moved" / "model")
    again = changed(
        recipe,
        run,
        f"model.folder={model}",
        f"data.encoded={tmp_path / 'moved' / 'encoded'}",
        "data.samples_per_shard=4",
        "data.keep_raw=false",
        "data.encode_workers=1",
        "data.source=elsewhere.csv",
        "data.samples={}",
        "mixture.micro_batch_size=1",
        "model.gradient_checkpointing=true",
        "trainer.compile=none",
        "trainer.cuda_graphs=off",
        "trainer.log_every=2",
        "pretrain.lr=7",
        "evaluation.t2i_cases=3",
    )
    encode(replace(again, data=replace(again.data, samples=recipe.data.samples, source=recipe.data.source)))
    distill(again)
    assert RunFolder(run).read_recipe() == again
    straight, resumed = student_weights(finished), student_weights(run)
    # Equal but for the rounding of micro-batches and of bfloat16.
    assert max((straight[name].float() - resumed[name].float()).abs().max() for name in straight) < 1e-2
    moved = [not torch.equal(straight[name], resumed[name]) for name in straight]
    assert sum(moved) < len(moved) // 2


def test_what_would_alter_the_numbers_is_refused_with_every_key_and_both_values(finished: Path, recipe: Recipe) -> None:
    with pytest.raises(UserError) as refused:
        checked(
            changed(recipe, finished, "seed=5", "dmd.fake_updates=3", "optim.student_lr=0.1", "dmd.rollout=renoise")
        )
    message = str(refused.value)
    for change in (
        "seed was 0, is 5",
        "dmd.fake_updates was 1, is 3",
        "optim.student_lr was 0.001, is 0.1",
        "dmd.rollout was euler, is renoise",
        f"trainer.start={finished}",
    ):
        assert change in message


def test_other_weights_and_data_under_the_same_path_are_noticed(copied: Path, recipe: Recipe) -> None:
    record = json.loads((copied / "run.json").read_text())
    assert record["finished"] == 4 and record["inputs"].keys() == {"model.folder", "data.encoded"}
    for key in record["inputs"]:
        other = {**record, "inputs": {**record["inputs"], key: "0123"}}
        (copied / "run.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match=rf"{key} was .* \(content 0123\), is .* \(content {record['inputs'][key]}"):
            checked(in_folder(recipe, copied))


def test_a_run_of_before_its_inputs_were_recorded_goes_by_their_paths(copied: Path, recipe: Recipe) -> None:
    (copied / "run.json").unlink()
    checked(in_folder(recipe, copied))
    with pytest.raises(UserError, match=r"seed was 0, is 1"):
        checked(changed(recipe, copied, "seed=1"))


def test_weights_are_the_same_however_they_are_cut_into_files(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).to(torch.bfloat16), "c": torch.tensor(2)}
    save_file(tensors, tmp_path / "whole.safetensors")
    save_file({"c": tensors["c"], "a": tensors["a"]}, tmp_path / "1.safetensors")
    save_file({"b": tensors["b"]}, tmp_path / "2.safetensors")
    whole = weights_hash([("t", tmp_path / "whole.safetensors")], {})
    assert whole == weights_hash([("t", tmp_path / "2.safetensors"), ("t", tmp_path / "1.safetensors")], {})
    for other in ({**tensors, "a": tensors["a"] + 1e-6}, {**tensors, "a": tensors["a"].reshape(4, 3)}, {}):
        save_file(other, tmp_path / "other.safetensors")
        assert weights_hash([("t", tmp_path / "other.safetensors")], {}) != whole
    (tmp_path / "other.safetensors").write_bytes(b"no weights")
    assert weights_hash([("t", tmp_path / "other.safetensors")], {}) == ""


def test_large_weights_are_hashed_by_parts_of_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "WHOLE_BYTES", 0)
    tensors = {"a": torch.randn(100_000), "b": torch.randn(3)}
    found = set()
    for scale in (1.0, 1.001):
        save_file({name: scale * value for name, value in tensors.items()}, tmp_path / "x.safetensors")
        found.add(weights_hash([("", tmp_path / "x.safetensors")], {}))
    assert len(found) == 2


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_finished_run_without_its_checkpoints_is_never_trained_over(
    copied: Path, recipe: Recipe, dry_run: bool
) -> None:
    shutil.rmtree(copied / "checkpoints")
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    for wanted in (in_folder(recipe, copied), in_folder(recipe, copied, updates=9)):
        with pytest.raises(UserError, match=r"is finished and its checkpoints are deleted.*model\.student="):
            distill(wanted, dry_run=dry_run)
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"its student is {copied / 'student'}"):
        export_run(copied, copied.parent / "out", lora=False)


def test_a_finished_pretraining_without_its_checkpoints_is_not_begun_again(recipe: Recipe, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.begun(Beginning(in_folder(recipe, run.path), "pretrain")):
        run.teacher.mkdir()
    with pytest.raises(UserError, match="is finished and its checkpoints are deleted"):
        pretrain(in_folder(recipe, run.path))


def test_a_dry_run_says_what_the_folder_holds(
    copied: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_seconds_per_update", lambda *_: 1.0)

    def said(run: Path, **trainer: object) -> str:
        capsys.readouterr()
        distill(in_folder(recipe, run, **trainer), dry_run=True)
        return capsys.readouterr().out

    assert said(tmp_path / "new").startswith(f"{tmp_path / 'new'} begins at update 0 of 4\n")
    assert said(copied).startswith(f"{copied} is finished at update 4: nothing is left to train\n")
    assert said(copied, updates=6).startswith(f"{copied} continues at update 4 of 6\n")
    begun = said(tmp_path / "new", start=str(copied))
    assert begun.startswith(f"{tmp_path / 'new'} starts from update 4 of {copied}\n")
    with pytest.raises(UserError, match="seed was 0, is 1"):
        distill(replace(in_folder(recipe, copied), seed=1), dry_run=True)
    with pytest.raises(UserError, match=r"has done 4 updates, and trainer\.updates is 3"):
        distill(in_folder(recipe, copied, updates=3), dry_run=True)


def test_a_dry_run_tells_the_disk_that_the_run_takes(
    finished: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_seconds_per_update", lambda *_: 1.0)
    distill(in_folder(recipe, tmp_path / "run"), dry_run=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("disk: ")]
    most = float(line.split()[1].replace(",", ""))
    kept = sorted((finished / "checkpoints").iterdir())
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6 for path in kept]
    student = sum(file.stat().st_size for file in (finished / "student").rglob("*") if file.is_file()) / 1e6
    assert most == pytest.approx(sum(sizes) + sizes[-1] + student, rel=0.1)
    assert "MB are free" in line and "free some" not in line
    monkeypatch.setattr("workbench.common.files.shutil.disk_usage", lambda _: type("Disk", (), {"free": 10**6}))
    distill(in_folder(recipe, tmp_path / "run"), dry_run=True)
    assert "1 MB are free: free some, or choose another trainer.folder" in capsys.readouterr().out


@pytest.mark.parametrize("ema_decay", [0.98, 0.0])
def test_a_run_starts_from_another_and_its_own_checkpoints_go_before(
    finished: Path,
    ema_decay: float,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights, average and moments are the other run's, the update is 0; what the other lacks is as in a new run."""
    seen: list[dict[str, Any]] = []
    step = Distiller.training_step

    def look(self: Distiller, data: Any, index: int) -> None:
        if not seen:
            found = {name: value.detach().clone() for name, value in self.trained_parameters().items()}
            states = [state["exp_avg"].clone() for of in self.trainer.optimizers for state in of.state.values()]
            seen.append({"weights": found, "update": self.num_updates, "moments": states})
        step(self, data, index)

    monkeypatch.setattr(Distiller, "training_step", look)
    options = replace(recipe.dmd, adversarial_weight=0.01, fake_per_step=True)
    fork = replace(in_folder(recipe, tmp_path / "fork", updates=1, start=str(finished)), dmd=options, seed=9)
    fork = replace(fork, optim=replace(fork.optim, ema_decay=ema_decay))
    distill(fork)
    said = " ".join(capsys.readouterr().out.split())
    assert f"starting from student, fake score and moments of {finished} at update 4; " in said
    assert "tensors that it lacks start as in any new run" in said
    (first,) = seen
    assert first["update"] == 0 and any(moment.abs().max() > 0 for moment in first["moments"])
    path, _ = checkpoint.newest_whole(finished / "checkpoints") or pytest.fail("no checkpoint")
    stored = {name: torch.zeros_like(value) for name, value in first["weights"].items() if "classifier" not in name}
    stored = {name: value for name, value in stored.items() if "step" not in name}
    checkpoint.load(path, {"parameters": stored})
    assert len(stored) > 10 and all(torch.equal(value, first["weights"][name]) for name, value in stored.items())
    record = json.loads((tmp_path / "fork" / "run.json").read_text())
    assert record["inputs"].keys() >= {"trainer.start"}

    # Once it has checkpoints, the other run is not needed.
    gone = replace(fork, trainer=replace(fork.trainer, start=str(finished), updates=2))
    monkeypatch.setattr(continuing, "_start_of", lambda *_: pytest.fail("read again"))
    distill(gone)
    assert RunFolder(tmp_path / "fork").finished() == 2


def test_what_a_run_cannot_start_from_is_refused(copied: Path, recipe: Recipe, tmp_path: Path) -> None:
    def refused(match: str, start: Path, **model: object) -> None:
        wanted = replace(recipe, model=replace(recipe.model, **model))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=match):
            distill(in_folder(wanted, tmp_path / "new", start=str(start)))
        assert not (tmp_path / "new").exists()

    refused("is no run folder", tmp_path / "absent")
    refused("is the run's own folder", tmp_path / "new")
    refused(r"was trained with model\.roles=full, and here it is lora", copied, roles="lora")
    refused(r"trainer\.start and model\.student both say", copied, student="x")
    with pytest.raises(UserError, match=r"trainer\.start is for distillation"):
        pretrain(in_folder(recipe, tmp_path / "new", start=str(copied)))
    shutil.rmtree(copied / "checkpoints")
    refused(r"has no checkpoint to start from; model\.student=.* starts from its student alone", copied)


def test_a_start_that_went_on_before_the_first_checkpoint_is_noticed(
    copied: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Distiller.training_step

    def dies_at_update_one(self: Distiller, data: Any, index: int) -> None:
        if self.num_updates == 1:
            raise RuntimeError("killed")
        step(self, data, index)

    monkeypatch.setattr(Distiller, "training_step", dies_at_update_one)
    fork = in_folder(recipe, tmp_path / "fork", start=str(copied))
    with pytest.raises(RuntimeError, match="killed"):
        distill(fork)
    assert RunFolder(tmp_path / "fork").scalars.is_file() and not RunFolder(tmp_path / "fork").checkpoint_updates()
    shutil.rmtree(copied / "checkpoints" / "update-000004")
    with pytest.raises(UserError, match=r"trainer\.start was .* \(content .*\), is"):
        distill(fork)


@pytest.mark.parametrize("where", ["logger", "thread"])
def test_a_full_disk_is_one_line_with_the_path_and_what_to_do(
    where: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(*_: object, **__: object) -> None:
        if where == "thread":
            worker = threading.Thread(target=lambda: (_ for _ in ()).throw(full))
            worker.start()
            worker.join()
        raise full

    monkeypatch.setattr("workbench.runs.scalars.log_scalars", write)
    run, hook = tmp_path / "run", threading.excepthook
    with pytest.raises(UserError, match=rf"cannot write {run}: the disk is full.* same command again: it continues"):
        distill(in_folder(recipe, run))
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook


def test_the_environment_names_the_first_command_and_every_later_one(
    copied: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["workbench", "distill", "my recipe.yaml", "mixture.tasks={t2i: 1}"]
    monkeypatch.setattr(sys, "argv", words)
    before = json.loads((copied / "environment.json").read_text())
    monkeypatch.setattr(environment, "commit", lambda: "another")
    with RunFolder(copied).begun(Beginning(in_folder(recipe, copied)), 4):
        pass
    after = json.loads((copied / "environment.json").read_text())
    assert {**after, "commands": 0} == {**before, "commands": 0}
    first, second = after["commands"]
    assert first["update"] == 0 and shlex.split(first["command"])[0] == "workbench"
    assert shlex.split(second["command"]) == words and (second["update"], second["commit"]) == (4, "another")
    assert "packages" not in second and "packages" in after


def test_the_command_of_a_run_of_before_is_kept(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text('{"python": "3.9", "command": "workbench distill a.yaml"}')
    environment.record(tmp_path / "environment.json", 7)
    after = json.loads((tmp_path / "environment.json").read_text())
    assert after["python"] == "3.9" and after["commands"][0] == {"command": "workbench distill a.yaml"}
    assert after["commands"][1]["update"] == 7 and after["commands"][1]["python"] != "3.9"


def test_the_commit_is_of_the_codes_own_repository_alone(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    installed = tmp_path / "venv" / "site-packages"
    for root in (tmp_path, installed):
        (root / "workbench").mkdir(parents=True)
        (root / "workbench" / "__init__.py").write_text("")
    git("commit", "-q", "--allow-empty", "-m", "someone else's project")
    assert environment.commit(tmp_path) is None, "its workbench is not tracked"
    git("add", "workbench/__init__.py")
    git("commit", "-q", "-m", "the code")
    head = git("rev-parse", "HEAD")
    assert environment.commit(tmp_path) == head
    assert environment.commit(installed) is None
    (tmp_path / "workbench" / "__init__.py").write_text("changed")
    assert environment.commit(tmp_path) == f"{head}+changes"
