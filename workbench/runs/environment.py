"""What a run was made with: versions, machine, the code's own commit, and the commands that were given."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.outside import read_json

DISTRIBUTION = "few-step-workbench"
PACKAGES = (
    DISTRIBUTION,
    "torch",
    "diffusers",
    "transformers",
    "lightning",
    "optuna",
    "omegaconf",
    "webdataset",
    "safetensors",
)
ROOT = Path(__file__).parents[2]
_GIT_S = 10


def environment() -> dict[str, object]:
    """Versions and machine. Imports torch."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": commit(),
        "packages": {name: installed(name) for name in PACKAGES},
    }


def installed(name: str) -> str:
    """Version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def commit(root: Path = ROOT) -> str | None:
    """Commit of the repository that the code at `root` is a checkout of, `+changes` where tracked files differ from
    it; None for an installed package, whatever repository its environment lies in."""
    if not (root / ".git").exists():
        return None
    hidden = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True, env=hidden)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "workbench/__init__.py")
        changes = git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def record(path: Path, update: int) -> None:
    """Add this command, given at `update` updates, to the `environment.json` at `path`. What the first command ran with
    stands at its top; a later command that ran with something else has that next to it."""
    now = environment()
    try:
        content: dict[str, Any] = read_json(path, dict, "")
    except UserError:
        content = dict(now)
    commands = content.setdefault("commands", [])
    # Runs of before have one command.
    if not isinstance(commands, list):
        commands = content["commands"] = [{"command": str(commands)}]
    if "command" in content:
        commands.insert(0, {"command": str(content.pop("command"))})
    entry = {"command": shlex.join(["workbench", *sys.argv[1:]]), "update": update, "time": f"{_now():%FT%TZ}"}
    commands.append({**entry, **{key: value for key, value in now.items() if content.get(key) != value}})
    files.write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def _now() -> datetime:
    return datetime.now(UTC)
