"""A rank that fails ends the run, though the others wait for it in a collective that they never leave, and though its
own interpreter would never end."""

from __future__ import annotations

import time
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
    deadline = time.monotonic() + 20
    while left := _running_on(tmp_path):
        assert time.monotonic() < deadline, f"{left} live on"
        time.sleep(0.1)


def _running_on(folder: Path) -> list[int]:
    processes = psutil.process_iter(["cmdline"])
    return [one.pid for one in processes if str(folder) in " ".join(one.info["cmdline"] or [])]
