"""The command `rank`: its arguments, read without torch, and what it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the sub-commands of a parser."""
    text = "rank students that exist, each a pipeline folder or a base with LoRA files, on one page (docs/ranking.md)"
    command = commands.add_parser("rank", help=text, description=text, parents=[common])
    command.add_argument("file", metavar="STUDENTS.yaml", type=Path)
    command.add_argument("--devices", default="", metavar="N,N", help="GPUs that draw side by side (default: all)")
    text = "change the recipe of the evaluation, e.g. evaluation.t2i_cases=20"
    command.add_argument("overrides", metavar="key=value", nargs="*", help=text)


def run(arguments: argparse.Namespace) -> None:
    """Rank, and print where the page is."""
    from studies.ranking.rank import rank

    devices = [name for name in arguments.devices.split(",") if name]
    print(f"wrote {rank(arguments.file, arguments.overrides, devices)}")
