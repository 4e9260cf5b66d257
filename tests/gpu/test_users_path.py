"""The path of a user, command by command, on one GPU and on two: `users_path.py` and `scaling.py` with the smallest
model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
HERE = Path(__file__).parent


@pytest.mark.parametrize(("processes", "then", "roles"), [(1, 1, "lora"), (2, 1, "full"), (1, 2, "full")])
def test_a_model_goes_through_all_commands(processes: int, then: int, roles: str, tmp_path: Path) -> None:
    if max(processes, then) > torch.cuda.device_count():
        pytest.skip("needs two GPUs")
    _run("users_path.py", str(tmp_path / "out"), f"processes={processes}", f"then={then}", f"roles={roles}")


def test_two_gpus_are_held_against_one(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    assert "100.0%" in _run("scaling.py", str(tmp_path / "out"), "updates=2")


def _run(script: str, *words: str) -> str:
    """What a script prints; it must end well."""
    command = [sys.executable, str(HERE / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    print(done.stdout)
    return done.stdout
