"""A run folder as one self-contained HTML page: `report(folder)` writes `report.html`.

The page says in words what is missing; nothing is fetched from elsewhere, and every text is escaped.
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from pydantic import Field

from datamodules.shards.counts import INDEX
from datamodules.shards.left_out import LeftOut, lines
from datamodules.shards.packed import Made
from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.common.jsonl import read_scalars
from workbench.common.outside import Count, Outside, read_json
from workbench.evaluation.metrics_file import Metrics, mean_of
from workbench.evaluation.places import evaluations
from workbench.recipe import lambda_tables
from workbench.recipe.reading import from_mapping
from workbench.reporting import plots
from workbench.reporting.commands import commands
from workbench.reporting.scores import BENCH_TITLES, MODEL_TITLES, evaluation_values, or_left_out, words

MAX_MILESTONES = 6


class _Data(Outside):
    """What the page says of a run's data: `data.json`, which the run wrote."""

    samples: Count
    categories: list[str]
    resolution: Count | None = None
    left_out: LeftOut = Field(default_factory=LeftOut)
    made: dict[str, Made] = Field(default_factory=dict)


def report(folder: Path) -> Path:
    """Write `report.html` into a run folder.

    Raises:
        UserError: the folder is missing, or holds nothing to report on.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}")
    parts = ("recipe.yaml", "metrics.json", "metrics.jsonl", "samples")
    if not evaluations(folder) and not any((folder / name).exists() for name in parts):
        raise UserError(f"{folder} is neither a run (recipe.yaml, metrics.json) nor a study (study.json)")
    return write_page(folder, "run.html.j2", _run(folder))


def write_page(folder: Path, template: str, values: dict[str, Any], *packages: str) -> Path:
    """Render `template` into `report.html` of `folder`; `packages` bring templates of their own."""
    path = folder / "report.html"
    write_bytes(path, _environment(packages).get_template(template).render(**values).encode())
    return path


@cache
def _environment(packages: tuple[str, ...]) -> Environment:
    """Templates are compiled once a process."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "workbench.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "signed": signed,
        "words": words,
        "few": few,
        "mean_of": mean_of,
    }
    environment.globals |= {"bench_titles": BENCH_TITLES, "model_titles": MODEL_TITLES}
    return environment


def number(value: float | None, digits: int = 2) -> str:
    """A number without a negative zero, or a hyphen where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:z.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign."""
    return "-" if value is None or not math.isfinite(value) else f"{value:+z.{digits}f}"


def interval(value: Any, digits: int = 2) -> str:
    """`low to high` of anything that has both, or words where there is none."""
    low, high = (value["low"], value["high"]) if isinstance(value, dict) else (value.low, value.high)
    return "no interval" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def few(value: Any) -> str:
    """A drawn or set value in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _json(path: Path) -> dict[str, Any]:
    """The object in `path`, or nothing if the file is missing or broken."""
    return or_left_out(lambda: read_json(path, dict, "it is left out"), {}) if path.is_file() else {}


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _curves(folder: Path) -> list[dict[str, Any]]:
    """Logged lines without those cut short."""
    return [{"update": update, **row} for update, row in read_scalars(folder / "metrics.jsonl")]


def _data(folder: Path) -> _Data | None:
    """What the run wrote down of its data."""
    path = folder / "data.json"
    return or_left_out(lambda: read_json(path, _Data, "it is left out"), None) if path.is_file() else None


def _about(found: _Data) -> list[str]:
    """The run's data in sentences."""
    about = f" at data.resolution={found.resolution}" if found.resolution else ""
    return [f"{found.samples:,} samples of {', '.join(found.categories)}{about}", *lines(found.left_out, INDEX)]


def _milestones(folder: Path) -> list[dict[str, str]]:
    """Sample grids over training, evenly thinned, first and last kept."""
    paths = sorted((folder / "samples").glob("*.png"))
    if len(paths) > MAX_MILESTONES:
        last = len(paths) - 1
        paths = [paths[round(i * last / (MAX_MILESTONES - 1))] for i in range(MAX_MILESTONES)]
    images = plots.inline_images(paths, 900)
    names = [re.sub(r"-0*(?=\d)", " ", path.stem) for path in paths]
    return [{"name": name, "image": image} for name, image in zip(names, images, strict=True)]


def _recipe(folder: Path) -> dict[str, Any]:
    """recipe.yaml as plain values, for the lambda table and the mixture asked for."""
    import yaml

    try:
        value = yaml.safe_load(_text(folder / "recipe.yaml"))
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def _mixture(curves: list[dict[str, Any]], recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Share of every category among the samples drawn, averaged over logged lines, and the task's share asked for."""
    names = sorted({name for row in curves for name in row if name.startswith("mixture/")})
    asked = (recipe.get("mixture") or {}).get("tasks") or {}
    rows: list[dict[str, Any]] = []
    for name in names:
        values = [float(row.get(name, 0.0)) for row in curves if any(key.startswith("mixture/") for key in row)]
        rows.append({"name": name.removeprefix("mixture/"), "share": sum(values) / len(values)})
    tasks = {task: sum(row["share"] for row in rows if row["name"].split("/")[0] == task) for task in asked}
    return [*({"name": task, "share": tasks[task], "asked": asked[task]} for task in tasks), *rows]


def _tables(recipe: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Lambda tables of each class, schedules resolved; none where the recipe is no longer a valid one."""
    try:
        valid = from_mapping(recipe)
        specialists = list(valid.teachers.specialists)
        return lambda_tables.tables(valid.guidance, num_steps=valid.dmd.student_steps, specialists=specialists)
    except UserError:
        return {}


def _run(folder: Path) -> dict[str, Any]:
    scored = evaluation_values(folder)
    recipe, curves, data = _recipe(folder), _curves(folder), _data(folder)
    lambdas = _tables(recipe)
    specialists = list((recipe.get("teachers") or {}).get("specialists") or {})
    return {
        "title": folder.resolve().name,
        "metrics": scored[0]["metrics"] if scored else Metrics(),
        "evaluations": scored,
        "curves": plots.training_curves(curves),
        "by_step": plots.by_step_maps(curves),
        "num_logged": len(curves),
        "last_update": curves[-1]["update"] if curves else None,
        "lambda_chart": plots.lambda_tables(lambdas, ["base", *specialists]) if lambdas else "",
        "mixture": _mixture(curves, recipe),
        "milestones": _milestones(folder),
        "recipe_text": _text(folder / "recipe.yaml"),
        "data": _about(data) if data else [],
        "environment": _json(folder / "environment.json"),
        "commands": commands(folder, recipe, data.made if data else {}, [of["metrics"] for of in scored]),
    }
