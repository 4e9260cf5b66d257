"""Two evaluated runs, case by case: the same cases, the same noise, so differences are paired."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console

from workbench.common.errors import UserError
from workbench.common.tables import Table, stdout_console
from workbench.evaluation.case_scores import Key, part_scores, read_asked, read_difficulties, read_measures, read_scores
from workbench.evaluation.measures.catalogue import MEASURES, VARIETY, numbers_of
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.measures.statistics import paired_differences, verdict
from workbench.evaluation.metrics_file import MEAN, Bounded, Metrics
from workbench.evaluation.places import evaluations, find
from workbench.evaluation.trained_student import outdated
from workbench.recipe.reading import flat_values, load


def subject_of(scores: Mapping[str, Mapping[Key, float]], folder: Path) -> str:
    """The model that a run stands for: its student, or the only model there is."""
    if "student" in scores:
        return "student"
    if len(scores) == 1:
        return next(iter(scores))
    raise UserError(f"{folder} holds scores of {', '.join(scores)}, no student: cannot tell which to compare")


def compare_scores(a: Mapping[Key, float], b: Mapping[Key, float]) -> dict[str, dict[str, Interval]]:
    """bench -> category or `mean` -> interval of a - b over the (case, seed) pairs that both hold."""
    shared = sorted(a.keys() & b.keys())
    seeds = sorted({seed for *_, seed in shared})
    cases: dict[str, dict[str, dict[str, list[Key]]]] = {}
    for key in shared:
        cases.setdefault(key[0], {}).setdefault(key[1], {}).setdefault(key[2], []).append(key)
    found: dict[str, dict[str, Interval]] = {}
    for bench, categories in cases.items():
        # A case missing a seed in either run cannot stand in a (cases, seeds) array: only complete ones are paired.
        complete = {name: [keys for keys in of.values() if len(keys) == len(seeds)] for name, of in categories.items()}
        complete = {name: rows for name, rows in complete.items() if rows}
        first = {name: np.array([[a[key] for key in keys] for keys in rows]) for name, rows in complete.items()}
        second = {name: np.array([[b[key] for key in keys] for keys in rows]) for name, rows in complete.items()}
        if complete:
            found[bench] = paired_differences(first, second)
    return found


def compare_parts(
    a: Mapping[Key, float], b: Mapping[Key, float], difficulties: Mapping[str, str]
) -> dict[tuple[str, str], dict[str, Interval]]:
    """(bench, category) -> difficulty -> interval of a - b over the pairs of that part alone."""
    first, second = part_scores(a, difficulties), part_scores(b, difficulties)
    found = {}
    for place in first.keys() & second.keys():
        for intervals in compare_scores(first[place], second[place]).values():
            found[place] = {name: of for name, of in intervals.items() if name != MEAN}
    return found


def compare_runs(
    first: Path, second: Path, name: str = "", console: Console | None = None
) -> dict[str, dict[str, Interval]]:
    """Print and return the paired differences `first` - `second`; those of the parts of categories are printed. name:
    of the evaluation, the first that both have when empty.

    Raises: UserError if they share no case, or if a case of one id asks for something else in the other.
    """
    console, folders = console or stdout_console(), (first, second)
    places = _evaluations(folders, name)
    scores = [read_scores(path) for path, _ in places]
    models = [subject_of(of_run, folder) for of_run, folder in zip(scores, folders, strict=True)]
    a, b = (of_run[model] for of_run, model in zip(scores, models, strict=True))
    shared = a.keys() & b.keys()
    if not shared:
        raise UserError(
            f"{first} and {second} were scored on different cases or seeds: evaluate both with the same evaluation keys"
        )
    _check_asked(folders, [path for path, _ in places])
    for folder, (_, metrics) in zip(folders, places, strict=True):
        if line := outdated(folder, metrics):
            console.print(f"warning: {folder}: {line}", soft_wrap=True, markup=False)
    found = compare_scores(a, b)
    parts = compare_parts(a, b, read_difficulties(places[0][0]) | read_difficulties(places[1][0]))
    titles = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    names = [f"{title} {model}" for title, model in zip(titles, models, strict=True)]
    _print_differing(folders, titles, console)
    title = f"{names[0]} - {names[1]}, {places[0][1].scored_on}, paired, 95 % intervals"
    table = _table(title, "bench", "category", "n", "difference", "interval", "verdict")
    for bench, intervals in found.items():
        for category, interval in intervals.items():
            table.add_row(bench.removesuffix("_bench"), category, *_cells(interval, names))
            for difficulty, of_part in parts.get((bench, category), {}).items():
                table.add_row("", f"- {difficulty}", *_cells(of_part, names))
        table.add_section()
    console.print(table)
    if parts:
        console.print("rows with -: parts of the category above by difficulty, in no mean")
    _print_measures(compare_measures([path for path, _ in places], [of for _, of in places], models), names, console)
    unpaired = len(a.keys() ^ b.keys())
    console.print(f"{len(shared)} answers paired, {unpaired} without a counterpart left out")
    return found


def _cells(difference: Interval, names: Sequence[str]) -> tuple[str, str, str, str]:
    """n, difference, interval and verdict."""
    span = f"{difference.low:+.3f} to {difference.high:+.3f}" if difference.low is not None else "-"
    return str(difference.n), f"{difference.mean:+.3f}", span, verdict(difference, *names)


def _evaluations(folders: Sequence[Path], name: str) -> list[tuple[Path, Metrics]]:
    """File of case scores and metrics of each run's evaluation of that name, or of the first that all have."""
    found = [evaluations(folder) for folder in folders]
    for folder, of_run in zip(folders, found, strict=True):
        if (folder / "study.json").is_file():
            runs = " ".join(str(path.parent) for path in sorted(folder.glob("*/recipe.yaml"))[:2])
            raise UserError(
                f"{folder} is a study: `workbench report {folder}` compares its arms; to compare two of its runs, "
                f"`workbench compare {runs or 'RUN RUN'}`"
            )
        if not of_run:
            raise UserError(f"{folder} holds no scores: run `workbench evaluate {folder}` first")
    if not name:
        shared = [of for of in found[0] if all(of in of_run for of_run in found)]
        if not shared:
            lists = "; ".join(f"{folder} has {', '.join(of)}" for folder, of in zip(folders, found, strict=True))
            raise UserError(f"no evaluation that both have: {lists}; evaluate both on the same cases")
        name = shared[0]
    return [(files.cases, metrics) for files, metrics in (find(folder, name) for folder in folders)]


def _check_asked(folders: Sequence[Path], files: Sequence[Path]) -> None:
    """Raises: UserError naming the first case of both whose prompt or source differs."""
    first, second = (read_asked(path) for path in files)
    for case, asked in first.items():
        if asked and second.get(case) and asked != second[case]:
            raise UserError(
                f"{folders[0]} and {folders[1]} were scored on different cases: {case!r} has another prompt or source "
                "in each (other case files, or another data.resolution): evaluate both on the same cases"
            )


def differing(folders: Sequence[Path]) -> list[tuple[str, str, str]]:
    """Key of the recipe and both runs' values, where they differ; where the runs lie is no difference.

    Raises: UserError for a recipe that cannot be read.
    """
    first, second = (flat_values(load(folder / "recipe.yaml")) for folder in folders)
    keys = [key for key in {**first, **second} if key != "trainer.folder" and first.get(key) != second.get(key)]
    return [(key, str(first.get(key, "-")), str(second.get(key, "-"))) for key in keys]


def _print_differing(folders: Sequence[Path], titles: Sequence[str], console: Console) -> None:
    if not all((folder / "recipe.yaml").is_file() for folder in folders):
        return
    try:
        rows = differing(folders)
    except UserError as error:
        console.print(f"the recipes are not compared: {error}", soft_wrap=True, markup=False)
        return
    table = _table("What differs in their recipes", "key", *titles)
    for row in rows:
        table.add_row(*row)
    console.print(table if rows else "their recipes do not differ")


def compare_measures(
    files: Sequence[Path], scored: Sequence[Metrics], models: Sequence[str]
) -> dict[str, tuple[Interval, int]]:
    """Title of a measure -> difference first - second, and 1 where higher is better, else -1.

    files: of case scores; scored: metrics; models: the compared model of each.

    Measures of single answers are paired over the (case, seed) pairs that both runs have. The intervals of those of all
    answers together count as independent, which is too wide on equal cases; a Frechet distance has none.
    """
    of_cases = [read_measures(path, model) for path, model in zip(files, models, strict=True)]
    found: dict[str, tuple[Interval, int]] = {}
    for name, measure in MEASURES.items():
        # Weighed by cases, as in metrics.json, not by categories.
        a, b = ({(key[0], "all", *key[2:]): x for key, x in of.get(name, {}).items()} for of in of_cases)
        for intervals in compare_scores(a, b).values():
            found[measure.title] = (intervals[MEAN], measure.sign)
    of_models = [of_run.models.get(model) for of_run, model in zip(scored, models, strict=True)]
    first, second = (numbers_of(of.secondary) if of and of.secondary else {} for of in of_models)
    for title, number in first.items():
        if title not in found and title in second and not math.isnan(number.value - second[title].value):
            found[title] = (_unpaired(number, second[title]), 1 if title == VARIETY else -1)
    return found


def _unpaired(a: Bounded, b: Bounded) -> Interval:
    """a - b; its interval has the root of the sum of the squares of both half-widths."""
    difference, n = a.value - b.value, min(a.n, b.n)
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Interval(difference, None, None, n)
    half = math.hypot(a.high - a.low, b.high - b.low) / 2
    return Interval(difference, difference - half, difference + half, n)


def _print_measures(found: Mapping[str, tuple[Interval, int]], names: Sequence[str], console: Console) -> None:
    table = _table("What scores miss (docs/measures.md)", "measure", "n", "difference", "interval", "verdict")
    for title, (of, sign) in found.items():
        span = "-" if of.low is None or of.high is None else f"{of.low:+.3f} to {of.high:+.3f}"
        better = of if sign > 0 else Interval(-of.mean, of.high and -of.high, of.low and -of.low, of.n)
        shown = verdict(better, *names) if of.low is not None else "no interval"
        table.add_row(title, str(of.n), f"{of.mean:+.3f}", span, shown)
    if found:
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    """Fits 80 columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("n", "difference") else "left")
    return table
