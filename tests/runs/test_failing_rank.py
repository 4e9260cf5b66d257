"""A rank that fails or is terminated ends the run, though the others wait for it in a collective that they never leave,
and though its own interpreter would never end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import failing_rank
import psutil
import pytest

from workbench.recipe.config import Recipe
from workbench.recipe.reading import to_yaml

pytestmark = pytest.mark.slow


@pytest.fixture
def words(recipe: Recipe, tmp_path: Path) -> list[str]:
    """A distillation in two processes."""
    trainer = replace(recipe.trainer, folder=str(tmp_path / "run"), devices=2)
    (tmp_path / "recipe.yaml").write_text(to_yaml(replace(recipe, trainer=trainer)))
    return ["distill", str(tmp_path / "recipe.yaml")]


def test_an_error_of_all_is_said_by_the_first_however_late(words: list[str], tmp_path: Path) -> None:
    ran = failing_rank.run(words, "all", tmp_path, others_wait=False)
    assert ran.returncode == 2 and ran.stderr.count(failing_rank.FULL) == 1, (ran.returncode, ran.stderr)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_says_why_once_and_ends_all(words: list[str], tmp_path: Path, rank: int) -> None:
    ran = failing_rank.run(words, rank, tmp_path, others_wait=True)
    assert ran.returncode == (2 if rank == 0 else -9), ran.stderr
    assert ran.stderr.count(failing_rank.LINE) == 1 and "Traceback" not in ran.stderr, ran.stderr
    _wait_for_the_last_on(tmp_path)


@pytest.mark.parametrize("terminated", ["all", "the second"])
def test_terminated_ranks_end_at_once(words: list[str], tmp_path: Path, terminated: str) -> None:
    command = [sys.executable, "-m", "workbench", *words, "trainer.updates=500", "trainer.checkpoint_every=500"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as first:
        try:
            while not metrics.is_file() or metrics.read_text().count("\n") < 2:
                assert first.poll() is None
                time.sleep(0.05)
            if terminated == "all":
                os.killpg(first.pid, signal.SIGTERM)
            else:
                psutil.Process(first.pid).children()[0].terminate()
            _, said = first.communicate(timeout=30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(first.pid, signal.SIGKILL)
    assert "terminated: the same command continues" in said and "Traceback" not in said
    assert first.returncode == 143 if terminated == "all" else first.returncode in (2, -9)
    _wait_for_the_last_on(tmp_path)


def _wait_for_the_last_on(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while left := _running_on(folder):
        assert time.monotonic() < deadline, f"{left} live on"
        time.sleep(0.1)


def _running_on(folder: Path) -> list[int]:
    processes = psutil.process_iter(["cmdline"])
    return [one.pid for one in processes if str(folder) in " ".join(one.info["cmdline"] or [])]
