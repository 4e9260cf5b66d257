"""The command line: exit codes, one line an error, nothing written, fast help."""

from __future__ import annotations

import argparse
import io
import logging
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from workbench import cli
from workbench.common.errors import UserError

RECIPE = "studies/recipes/smoke.yaml"
ROOT = Path(__file__).parent.parent


def raising(error: BaseException):
    """Stands in for the command that is run."""

    def run(arguments: object) -> None:
        raise error

    return run


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such\n  thing"), 2, "error: no such thing"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), 2, "error: No such file or directory: a/b"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "error: Permission denied: a/b"),
        (
            OSError(28, "No space left on device"),
            2,
            "error: No space left on device; free some space and give the same command again",
        ),
        (OSError(27, "File too large", "a/b"), 2, "error: File too large: a/b"),
        (OSError(5, "Input/output error", "a/b"), 2, "error: Input/output error: a/b"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "error: unexpected ZeroDivisionError: division by zero (run again with --debug for the traceback)",
        ),
        (
            RuntimeError("x" * 1000),
            1,
            f"error: unexpected RuntimeError: {'x' * 400} [... 400 characters ...] {'x' * 200}"
            " (run again with --debug for the traceback)",
        ),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
            ),
            2,
            "error: CUDA out of memory. Tried to allocate 2.00 GiB: see `When memory runs out` in docs/scale.md",
        ),
        (KeyboardInterrupt(), 130, "interrupted: the same command continues"),
    ],
)
def test_every_ending_has_its_code_and_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", raising(error))
    assert cli.main(["pack", RECIPE]) == code
    assert only_line(capsys) == line


def test_debug_shows_the_traceback_before_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--debug", "pack", RECIPE], ["pack", RECIPE, "--debug"]):
        monkeypatch.setattr(cli, "_run", raising(UserError("no such thing")))
        assert cli.main(words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("Traceback")
        assert lines[-1] == "error: no such thing"


def test_an_interrupt_that_the_trainer_turned_into_an_exit_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["pack", RECIPE]) == 130


def test_a_termination_that_the_trainer_caught_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", raising(SIGTERMException()))
    assert cli.main(["distill", RECIPE]) == 143
    assert only_line(capsys) == "terminated: the same command continues"


@pytest.mark.parametrize(
    "words", ["RECIPE --dry-run a=1 b=2", "RECIPE a=1 --dry-run b=2", "--dry-run RECIPE a=1 b=2", "RECIPE a=1 b=2"]
)
def test_overrides_may_stand_after_an_option(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(cli, "_run", seen.append)
    assert cli.main(["distill", *words.split()]) == 0
    assert seen[0].overrides == ["a=1", "b=2"] and seen[0].dry_run == ("--dry-run" in words)


def test_the_libraries_are_quiet_during_a_command_and_as_before_after_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> None:
        import warnings

        warnings.warn("noise", UserWarning, stacklevel=1)
        logging.getLogger("some.library").warning("noise")

    before = logging.root.manager.disable
    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(["pack", RECIPE]) == 0
    assert capsys.readouterr().err == ""
    assert logging.root.manager.disable == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distill", "absent.yaml"], "no recipe at absent.yaml"),
        (["pack", RECIPE, "trainer.updats=1"], "did you mean 'updates'"),
        (["pack", RECIPE, "updates=3"], "unknown key updates (did you mean 'trainer.updates'?)"),
        (["distill", RECIPE, "--dry-run", "update=3"], "unknown key update (did you mean 'trainer.updates'?)"),
        (["pack", RECIPE, "optim.micro_batch_size=3"], "(did you mean 'mixture.micro_batch_size'?)"),
        (["pack", RECIPE, "optim.beta=0"], "(did you mean 'beta"),
        (["study", "noise-floor", "updates=3"], "unknown option 'updates' (did you mean 'trainer.updates'?)"),
        (["study", "noise-floor", "trainer.folder=x"], "name the study's with folder=, not trainer.folder"),
        (["evaluate", "studie"], "no pipeline folder at studie: nothing is there (did you mean 'studies'?)"),
        (["runs", "absent"], "there is no folder absent"),
        (["encode", RECIPE, "mixture.tasks={t2i: 0.9}"], "must sum to 1"),
        (["pretrain", RECIPE, "pretrain.lr=-1"], "pretrain.lr must be above 0"),
        (["compare", "absent", "absent"], "no run folder at absent"),
        (["report", "absent"], "no run or study folder at absent"),
        (["export", "absent", "out"], "no run folder at absent"),
        (
            ["study", "task-mixtre"],
            "no study 'task-mixtre' (did you mean 'task-mixture'?); there is: noise-floor, data-composition",
        ),
        (["sample", "tiny", "\udcff", "--out", "cat.png"], "the prompt must be plain UTF-8 text"),
        (["sample", "tiny", "x" * 30_000, "--out", "cat.png"], "at most 20,000 characters"),
        (["sample", "tiny", "a cat", "--out", "cat.gif"], "must end in .png, .jpg or .webp"),
        (["sample", "tiny", "a cat", "--out", "no/such/cat.png"], "there is no folder no/such"),
        (
            ["sample", "tiny", "a cat", "--image", "absent.png", "--out", "cat.png"],
            "absent.png: cannot be read",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    assert cli.main(words) == 2
    line = only_line(capsys)
    assert line.startswith("error: ")
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["studies"]


def test_a_terminal_without_a_bars_characters_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(cli, "_run", lambda _: print("one • two"))
    assert cli.main(["pack", "x"]) == 0
    terminal.seek(0)
    assert terminal.read() == "one ? two\n"


def test_an_image_that_does_not_decode_is_said_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken, text = tmp_path / "whole.png", tmp_path / "broken.png", tmp_path / "text.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    broken.write_bytes(whole.read_bytes()[:2000])
    text.write_text("not an image")
    for path in (broken, text):
        words = ["sample", "tiny", "make it blue", "--image", str(path), "--out", str(tmp_path / "out.png")]
        assert cli.main(words) == 2
        assert f"--image {path}: the image does not decode" in only_line(capsys)


def test_wrong_words_are_refused_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        [],
        ["distil"],
        ["runs", "a", "b"],
        ["sample", "tiny", "a cat"],
        ["pack", RECIPE, "--dry-run"],
        ["distill", RECIPE, "--dry-run", "updates"],
        ["compare", "a", "b", "c=1"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
        assert "usage: workbench" in capsys.readouterr().err


def test_what_a_command_lacks_is_named_and_a_mistyped_one_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["pretrain"], "the following arguments are required: RECIPE\n"),
        (["distil", "x.yaml"], "no command 'distil' (did you mean 'distill'?); there are pack, encode, pretrain"),
    ):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert said in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"workbench {version('few-step-workbench')}")


def test_help_answers_at_once_and_loads_no_framework() -> None:
    began = time.perf_counter()
    code = (
        "import sys; from workbench.cli import build_parser; build_parser().format_help();"
        "print([name for name in ('torch', 'diffusers', 'lightning', 'optuna', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    # Half a second is the aim; a loaded machine takes longer.
    assert time.perf_counter() - began < 3


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workbench", "distill", "absent.yaml"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no recipe at absent.yaml\n")
