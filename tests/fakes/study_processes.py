"""A study as processes: started, observed through what they write, and waited for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAKES = Path(__file__).parent
ROOT = FAKES.parents[1]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The same command as a process, of its own group."""
    command = [sys.executable, str(FAKES / "fake_study.py"), "smoke=true", f"folder={folder}", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)


def trials(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "study.json").read_text())
    return [{**trial, "arm": arm["name"]} for arm in content["arms"] for trial in arm["trials"]]


def completed(folder: Path) -> Counter[tuple[str, int]]:
    return Counter((trial["arm"], trial["seed"]) for trial in trials(folder) if trial["state"] == "complete")


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it never happened")


def writers(folder: Path) -> dict[str, list[int]]:
    """Run folder -> the processes that wrote its steps, in order."""
    return {
        path.parent.name: [json.loads(line)["process"] for line in path.read_text().splitlines()]
        for path in folder.glob("trial-*/steps.jsonl")
    }


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
