"""The path of a user, command by command, on one GPU and on two: `users_path.py` with the smallest model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).with_name("users_path.py")


@pytest.mark.parametrize(("processes", "then", "roles"), [(1, 1, "lora"), (2, 1, "full"), (1, 2, "full")])
def test_a_model_goes_through_all_commands(processes: int, then: int, roles: str, tmp_path: Path) -> None:
    if max(processes, then) > torch.cuda.device_count():
        pytest.skip("needs two GPUs")
    words = [str(tmp_path / "out"), f"processes={processes}", f"then={then}", f"roles={roles}"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    print(done.stdout)
