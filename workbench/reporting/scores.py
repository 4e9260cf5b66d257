"""What the page of a run shows of each of its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from workbench.common.errors import UserError
from workbench.evaluation.measures.catalogue import rows_of
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.metrics_file import MEAN, Diversity, Metrics
from workbench.evaluation.places import EvaluationFiles, evaluations, first_files
from workbench.evaluation.sheet_index import Sheet, read_sheets
from workbench.evaluation.trained_student import outdated
from workbench.reporting import plots

BENCH_TITLES = {"t2i_bench": "T2I-Bench", "editing_bench": "Editing-Bench"}
MODEL_TITLES = {
    "teacher": "Teacher",
    "teacher_few_step": "Teacher, best few-step",
    "student": "Student",
}
Found = TypeVar("Found")


def words(name: str) -> str:
    """A name of the files as words."""
    return MODEL_TITLES.get(name, BENCH_TITLES.get(name, name.replace("_", " ")))


def or_left_out(read: Callable[[], Found], nothing: Found) -> Found:
    """What is read, or `nothing` and a line that says why."""
    try:
        return read()
    except UserError as error:
        print(error)
        return nothing


def evaluation_values(folder: Path) -> list[dict[str, Any]]:
    """Values of every evaluation of a run, the one that its recipe names first; a line on the terminal and the page
    where the student is newer than its scores. Contact sheets stand without their metrics too."""
    found = evaluations(folder)
    values = [_values(folder, name, files, metrics) for name, (files, metrics) in found.items()]
    if not any(files == first_files(folder) for files, _ in found.values()):
        without = _values(folder, "", first_files(folder), Metrics())
        values += [without] if without["sheets"] else []
    return values


def _values(folder: Path, name: str, files: EvaluationFiles, metrics: Metrics) -> dict[str, Any]:
    warning = outdated(folder, metrics)
    if warning:
        print(f"warning: {folder}: {name}: {warning}")
    secondary = _secondary(metrics)
    return {
        "name": name,
        "metrics": metrics,
        "warning": warning,
        "categories": _categories(metrics),
        "secondary": secondary,
        "measures": rows_of([row["of"] for row in secondary]),
        "defects": sorted({defect for row in secondary for defect in row["of"].enhance_by_defect}),
        "score_chart": plots.score_chart(metrics.models, MODEL_TITLES, BENCH_TITLES, name),
        "sheets": _sheets(files.sheets),
    }


def _sheets(place: Path) -> list[dict[str, Any]]:
    """Contact sheets of an evaluation with their prompts and scores."""
    nothing: list[Sheet] = []
    sheets = or_left_out(lambda: read_sheets(place), nothing)
    images = plots.inline_images([place / sheet.file for sheet in sheets], 1000)
    return [{**sheet.model_dump(), "image": image} for sheet, image in zip(sheets, images, strict=True)]


def _categories(metrics: Metrics) -> list[dict[str, Any]]:
    """Per bench: category names and, for every model, its interval in each; of the parts of categories (category,
    difficulty), and every model's intervals."""
    tables = []
    for bench in BENCH_TITLES:
        named = {name: model.benches[bench] for name, model in metrics.models.items() if bench in model.benches}
        if named:
            columns = [name for name in next(iter(named.values())) if name != MEAN] + [MEAN]
            ceiling = metrics.ceiling.benches.get(bench)
            tables.append(
                {"bench": bench, "columns": columns, "models": named, "ceiling": ceiling, **_parts(metrics, bench)}
            )
    return tables


def _parts(metrics: Metrics, bench: str) -> dict[str, Any]:
    """Which parts any model has, what each model gets in them, and what exact targets get."""
    models = {name: model.parts.get(bench, {}) for name, model in metrics.models.items()}
    return {
        "parts": part_names(models.values()),
        "in_parts": {name: of for name, of in models.items() if of},
        "ceiling_in_parts": metrics.ceiling.parts.get(bench, {}),
    }


def part_names(models: Iterable[Mapping[str, Mapping[str, Interval]]]) -> list[tuple[str, str]]:
    """(category, difficulty) of all parts of a benchmark that any model has."""
    return list(dict.fromkeys((name, part) for of in models for name, parts in of.items() for part in parts))


def _secondary(metrics: Metrics) -> list[dict[str, Any]]:
    """Name, secondary metrics and diversity of every model that has such, and of the exact targets."""
    named = {words(name): (model.secondary, model.diversity) for name, model in metrics.models.items()}
    named["Exact targets"] = (metrics.ceiling.secondary, None)
    return [
        {"name": name, "of": secondary, "diversity": diversity or Diversity()}
        for name, (secondary, diversity) in named.items()
        if secondary is not None
    ]
