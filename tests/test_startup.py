"""Commands that only read results or start other processes load no framework: torch alone takes seconds to import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shard_fakes import make_encoded
from study_fakes import World, base_recipe

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ("torch", "lightning", "diffusers", "transformers", "torchmetrics")
RUN = """
import sys
from workbench import cli
code = cli.main({arguments})
print("exit", code, [name for name in {frameworks} if name in sys.modules])
"""
STUDY = """
import sys
from workbench import cli
from studies.machine import runner
runner.supervise = lambda *_: print("starts workers", [name for name in {frameworks} if name in sys.modules])
cli.main({arguments})
"""


def printed_line(script: str, arguments: list[str], which: str) -> str:
    """The line of output that starts with `which`."""
    code = script.format(arguments=arguments, frameworks=FRAMEWORKS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(which)] or [done.stderr]
    return line


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    World(sheets=True)(base_recipe(), tmp_path / "trial-0000")
    return tmp_path / "trial-0000"


def test_report_and_compare_load_no_framework(run_folder: Path) -> None:
    folder = str(run_folder)
    assert printed_line(RUN, ["report", folder], "exit") == "exit 0 []"
    assert printed_line(RUN, ["compare", folder, folder], "exit") == "exit 0 []"


def test_a_study_loads_no_framework_before_it_starts_workers(tmp_path: Path) -> None:
    encoded = make_encoded(tmp_path, {"t2i/landscape": 2})
    arguments = ["study", "noise-floor", "smoke=true", f"folder={tmp_path / 'noise'}", f"data.encoded={encoded}"]
    assert printed_line(STUDY, arguments, "starts") == "starts workers []"
    assert (tmp_path / "noise" / "study.json").is_file()
