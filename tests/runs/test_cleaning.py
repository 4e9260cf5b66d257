"""`workbench clean`: what it deletes, what it keeps, and that it asks."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from study_fakes import base_recipe

from workbench import cli
from workbench.common.files import only_one
from workbench.recipe.reading import to_yaml
from workbench.runs.cleaning import clean

BOTH = ("update-000002", "update-000004")


def a_checkpoint(run: Path, name: str, size: int = 1000) -> None:
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(bytes(size))
    stored = {"bytes": size, "sha256": hashlib.sha256(bytes(size)).hexdigest()}
    update = int(name.rpartition("-")[2].removesuffix(".partial"))
    progress = {"num_updates": update, "num_skipped": 0, "files": {"__0_0.distcp": stored}}
    (folder / "progress.json").write_text(json.dumps(progress))


def a_run(folder: Path, *overrides: str, finished: bool = True, checkpoints: tuple[str, ...] = BOTH) -> Path:
    folder.mkdir(parents=True)
    recipe = base_recipe("trainer.updates=4", f"trainer.folder={folder}", *overrides)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    (folder / "run.json").write_text(json.dumps({"finished": 4 if finished else None}))
    if finished:
        (folder / "student").mkdir()
    for name in checkpoints:
        a_checkpoint(folder, name)
    return folder


def names(*updates: int) -> tuple[str, ...]:
    return tuple(f"update-{update:06d}" for update in updates)


def left(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_nothing_needs_goes_and_all_else_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    done = a_run(runs / "done")
    lora = a_run(runs / "lora", "model.roles=lora", "trainer.keep=best",
                 checkpoints=("best-000002", "update-000002", "update-000004"))  # fmt: skip
    stopped = a_run(runs / "studies" / "x" / "trial-0001", "trainer.keep=best", finished=False,
                    checkpoints=("best-000001", *names(1, 2), ".update-000003.partial"))  # fmt: skip
    damaged = a_run(runs / "damaged", finished=False, checkpoints=names(1, 2, 3))
    (damaged / "checkpoints" / "update-000003" / "__0_0.distcp").write_bytes(b"changed")
    start = a_run(runs / "start")
    a_run(runs / "fork", f"trainer.start={start}", finished=False, checkpoints=())
    (runs / "done" / "checkpoints" / "mine.txt").write_text("kept")

    freed = clean(runs, yes=True)
    assert left(done) == ["mine.txt"]
    assert left(lora) == ["best-000002", "update-000004"]
    assert left(stopped) == ["best-000001", "update-000002"]
    assert left(damaged) == ["update-000002", "update-000003"], "a damaged one is passed over for the one before"
    assert left(start) == ["update-000004"], "another run will start from it"
    out = capsys.readouterr().out
    assert f"{done}: 2 checkpoints, 0.0 MB (finished; student stays, more updates are then refused)" in out
    assert f"{stopped}: 2 checkpoints, 0.0 MB (stopped at update 2; the newest stays)" in out
    assert freed > 5000 and (done / "student").is_dir()
    assert clean(runs, yes=True) == 0


def test_a_run_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    with only_one(run, "trainer.folder"):
        assert clean(run, yes=True) == 0
    assert left(run) == ["update-000002", "update-000004"]
    assert f"{run}: in use, left alone" in capsys.readouterr().out


def test_a_single_run_is_cleaned_with_its_neighbours_in_mind(tmp_path: Path) -> None:
    start = a_run(tmp_path / "start")
    fork = a_run(tmp_path / "fork", f"trainer.start={start}", finished=False)
    clean(start, yes=True)
    assert left(start) == [], "the fork has checkpoints of its own"
    for name in ("update-000002", "update-000004"):
        a_checkpoint(start, name)
    clean(fork, yes=True)
    assert left(fork) == ["update-000004"] and left(start) == ["update-000002", "update-000004"]


def test_the_size_is_told_and_a_question_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "run")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert cli.main(["clean", str(run)]) == 2
    assert "There is no terminal to ask: give --yes" in capsys.readouterr().err
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    for answer, kept in (("n", 2), ("", 2), ("y", 0)):
        asked: list[str] = []
        monkeypatch.setattr("builtins.input", lambda text, answer=answer, asked=asked: asked.append(text) or answer)
        assert cli.main(["clean", str(run)]) == 0
        assert asked == ["delete 0.0 MB? [y/N] "] and len(left(run)) == kept
    assert cli.main(["clean", str(run)]) == 0 and "no checkpoint that nothing needs" in capsys.readouterr().out
    assert cli.main(["clean", str(tmp_path / "absent")]) == 2
