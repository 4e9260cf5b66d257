"""Two evaluated runs, case by case: the same cases, the same noise, so differences are paired."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from workbench.common.errors import UserError
from workbench.evaluation.case_scores import Key, read_scores
from workbench.evaluation.measures.statistics import Interval, paired_differences, verdict


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


def compare_runs(first: Path, second: Path, console: Console | None = None) -> dict[str, dict[str, Interval]]:
    """Print and return the paired differences `first` - `second`. Raises UserError if they share no case."""
    console = console or Console()
    scores = [read_scores(folder) for folder in (first, second)]
    models = [subject_of(of_run, folder) for of_run, folder in zip(scores, (first, second), strict=True)]
    a, b = (of_run[model] for of_run, model in zip(scores, models, strict=True))
    shared = a.keys() & b.keys()
    if not shared:
        raise UserError(
            f"{first} and {second} were scored on different cases or seeds: evaluate both with the same evaluation keys"
        )
    found = compare_scores(a, b)
    titles = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    names = [f"{title} {model}" for title, model in zip(titles, models, strict=True)]
    title = f"{names[0]} - {names[1]}, paired, 95 % intervals"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)  # fits 80 columns
    for column in ("bench", "category", "n", "difference", "interval", "verdict"):
        table.add_column(column, justify="right" if column in ("n", "difference") else "left")
    for bench, intervals in found.items():
        for name, interval in intervals.items():
            span = f"{interval.low:+.3f} to {interval.high:+.3f}" if interval.low is not None else "-"
            shown = verdict(interval, names[0], names[1])
            table.add_row(bench.removesuffix("_bench"), name, str(interval.n), f"{interval.mean:+.3f}", span, shown)
        table.add_section()
    console.print(table)
    unpaired = len(a.keys() ^ b.keys())
    console.print(f"{len(shared)} answers paired, {unpaired} without a counterpart left out")
    return found
