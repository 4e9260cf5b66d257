"""Where a run folder keeps its evaluations: one a set of cases, so that none overwrites another. Needs no torch.

RUN/  metrics.json  evaluation/{cases,vlm}.jsonl  samples/evaluation/       the set that the run's recipe names
      evaluation/NAME/  metrics.json  cases.jsonl  vlm.jsonl  sheets/       any other: a case file, another split

NAME is the stem of the file of cases, or the split of the world.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from workbench.common.errors import UserError, nearest
from workbench.common.outside import as_name, inside
from workbench.evaluation import metrics_file
from workbench.evaluation.metrics_file import Metrics
from workbench.recipe.config import Evaluation

METRICS = "metrics.json"
_FOLDER = "evaluation"
_RESERVED = ("search", "report", "calibration", "partial", "cases.jsonl", "vlm.jsonl")
"""What stands for something else in `evaluation/`, or names a split."""


@dataclass(frozen=True)
class EvaluationFiles:
    """Files of one evaluation. metrics: its scores. cases: the score of every case. verdicts: of vision-language
    judges. sheets: folder of contact sheets. partial: folder of answers until the metrics are written."""

    metrics: Path
    cases: Path
    verdicts: Path
    sheets: Path
    partial: Path

    def read(self) -> Metrics | None:
        """Its metrics, None if they are missing or broken."""
        return metrics_file.read(self.metrics)


def first_files(run: Path) -> EvaluationFiles:
    """Files of the set of cases that a run's recipe names."""
    place = run / _FOLDER
    return EvaluationFiles(
        run / METRICS, place / "cases.jsonl", place / "vlm.jsonl", run / "samples" / "evaluation", place / "partial"
    )


def named_files(run: Path, name: str) -> EvaluationFiles:
    """Files of any other set of cases."""
    place = inside(run / _FOLDER, name)
    return EvaluationFiles(
        place / METRICS, place / "cases.jsonl", place / "vlm.jsonl", place / "sheets", place / "partial"
    )


def name_of(chosen: Evaluation) -> str:
    """Name of the set of cases that is chosen."""
    if not chosen.cases:
        return chosen.split
    stem = as_name(Path(chosen.cases).stem)
    return f"{stem}-cases" if stem in _RESERVED else stem


def files_for(run: Path, chosen: Evaluation, own: Evaluation) -> EvaluationFiles:
    """Where the scores of `chosen` go. own: what the run's recipe names, whose scores stand in the run folder itself.

    Scores of another set are never overwritten, not even where a recipe was changed, or two files share a stem.
    """
    first = first_files(run)
    stored = first.read()
    if _is_of(stored, chosen) or (stored is None and _set_of(chosen) == _set_of(own)):
        return first
    name = name_of(chosen)
    files = named_files(run, name)
    stored = files.read()
    if stored is None or _is_of(stored, chosen):
        return files
    return named_files(run, f"{name}-{hashlib.sha256(os.path.abspath(chosen.cases).encode()).hexdigest()[:6]}")


def evaluations(run: Path) -> dict[str, tuple[EvaluationFiles, Metrics]]:
    """Name -> files and metrics of every evaluation of a run that can be read, the one that its recipe names first."""
    first = first_files(run)
    places = [first, *(named_files(run, folder.name) for folder in _named(run))]
    found: dict[str, tuple[EvaluationFiles, Metrics]] = {}
    for files in places:
        metrics = files.read()
        if metrics is not None:
            name = name_of_metrics(metrics) if files == first else files.metrics.parent.name
            found[name if name not in found else f"{name}, again"] = (files, metrics)
    return found


def find(run: Path, name: str) -> tuple[EvaluationFiles, Metrics]:
    """The evaluation of a run by its name. Raises: UserError listing those that there are."""
    found = evaluations(run)
    if name not in found:
        known = f"it has {', '.join(found)}" if found else "it has none: run `workbench evaluate` on it first"
        raise UserError(f"{run} has no evaluation {name!r}{nearest(name, found)}; {known}")
    return found[name]


def name_of_metrics(metrics: Metrics) -> str:
    """Name of the set of cases that was scored."""
    return name_of(Evaluation(cases=metrics.cases)) if metrics.cases else metrics.split or "report"


def _named(run: Path) -> list[Path]:
    folder = run / _FOLDER
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    return [place for place in places if as_name(place.name) == place.name and (place / METRICS).is_file()]


def _set_of(chosen: Evaluation) -> tuple[str, str]:
    """What tells sets of cases apart: the file, wherever the command is given, or the split."""
    return (os.path.abspath(chosen.cases), "") if chosen.cases else ("", chosen.split)


def _is_of(metrics: Metrics | None, chosen: Evaluation) -> bool:
    if metrics is None:
        return False
    cases = os.path.abspath(metrics.cases) if metrics.cases else ""
    return (cases, "" if cases else metrics.split) == _set_of(chosen)
