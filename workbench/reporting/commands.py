"""The commands that make a run again, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.shards.packed import Made
from workbench.evaluation.metrics_file import Metrics
from workbench.evaluation.trained_student import evaluate_command
from workbench.recipe.reading import flat_values


def commands(folder: Path, recipe: Mapping[str, Any], made: Mapping[str, Made], scored: Sequence[Metrics]) -> list[str]:
    """Of a run folder: how to make its data, train it, score it with the overrides that each evaluation had, and write
    the page.

    recipe: the run's resolved one, which every command reads. made: command -> keys that the shards were made with;
    where the run's recipe says otherwise, they are overrides. Of data that do not say how they were made there is none.
    """
    known = flat_values(dict(recipe))
    found = []
    for command in ("pack", "encode"):
        if made.get(command):
            changed = [f"{key}={_word(value)}" for key, value in made[command].items() if known.get(key) != value]
            paths = [] if command == "encode" else _place(known, made)
            found.append([command, str(folder / "recipe.yaml"), *paths, *changed])
    found.append(["distill", str(folder / "recipe.yaml")])
    return [
        *(shlex.join(["workbench", *words]) for words in found),
        *(evaluate_command(folder, metrics.overrides) for metrics in scored or [Metrics()]),
        shlex.join(["workbench", "report", str(folder)]),
    ]


def _place(known: Mapping[str, Any], made: Mapping[str, Made]) -> list[str]:
    """Where `pack` writes: what `encode` read."""
    raw = made.get("encode", {}).get("data.raw")
    return [f"data.raw={raw}"] if raw is not None and raw != known.get("data.raw") else []


def _word(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
