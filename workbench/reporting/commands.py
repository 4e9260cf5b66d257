"""The commands that make a run again, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from workbench.evaluation.metrics_file import Metrics
from workbench.evaluation.trained_student import evaluate_command


def commands(folder: Path, scored: Sequence[Metrics]) -> list[str]:
    """Of a run folder: how to train it again, every evaluation with the overrides that it had, and the page.

    The run's resolved recipe holds every value that was given, the places of the data too.
    """
    return [
        shlex.join(["workbench", "distill", str(folder / "recipe.yaml")]),
        *(evaluate_command(folder, metrics.overrides) for metrics in scored or [Metrics()]),
        shlex.join(["workbench", "report", str(folder)]),
    ]
