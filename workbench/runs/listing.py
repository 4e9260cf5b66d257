"""`workbench runs`: one table of all runs, sorted and filtered by any key, and what two runs differ in."""

from __future__ import annotations

import fnmatch
import operator
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from workbench.common.errors import UserError, nearest
from workbench.common.outside import read_json
from workbench.common.tables import Table
from workbench.recipe.effects import alters
from workbench.runs.overview import Run, Score, Value, read_run
from workbench.runs.run_folder import RunFolder

HIGHEST_FIRST = ("score", "t2i", "editing", "diversity")
_PLACE = ("trainer.folder",)
"""Keys that differ in every run and say nothing."""
_FILTER = re.compile(r"([^<>=!]+?)\s*(>=|<=|!=|=|>|<)\s*(.*)", re.DOTALL)
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_NAME_WIDTH = 28


def show(runs: Sequence[Run], filters: Iterable[str], key: str | None, reverse: bool, console: Console) -> list[Run]:
    """Print the runs that all `filters` let through, in the order of `key`; returns them.

    Raises: UserError for a key that no run has, or a filter that is none.
    """
    usual = most_common(runs)
    kept = ordered(filtered(runs, filters), runs, key, reverse)
    if not kept:
        console.print("no runs" if not runs else f"none of {len(runs)} runs is as the filters say", markup=False)
        return kept
    build = _terminal_table if console.is_terminal else _pipe_table
    console.print(build(kept, usual))
    if console.is_terminal:
        scored = any(run.scores for run in kept)
        scores = "; scores of the student, 95 % intervals, n cases a benchmark" if scored else ""
        line = f"{len(kept)} of {len(runs)} runs{scores}; below a run: what differs from most runs"
        console.print(line, markup=False, highlight=False)
    return kept


def most_common(runs: Sequence[Run]) -> dict[str, Value | None]:
    """The commonest value of every key of a recipe."""
    read = [run for run in runs if run.recipe]
    keys = {key for run in read for key in run.recipe}
    return {key: Counter(run.recipe.get(key) for run in read).most_common(1)[0][0] for key in keys}


def unusual(run: Run, usual: Mapping[str, Value | None]) -> list[str]:
    """What a run's recipe sets otherwise than most, as one would type it."""
    if not run.recipe:
        return []
    found = []
    for key in sorted(usual):
        value = run.recipe.get(key)
        if value != usual[key] and key not in _PLACE:
            found.append(f"{key}={'none' if value is None else _shown(value)}")
    return found


def filtered(runs: Sequence[Run], filters: Iterable[str]) -> list[Run]:
    """Those that every `KEY=VALUE` (also != < > <= >=) lets through; text may hold * and ?. Raises: UserError."""
    kept = list(runs)
    for each in filters:
        match = _FILTER.fullmatch(each)
        if match is None:
            raise UserError(f"--filter {each!r} is not of the form key=value; also !=, <, >, <= and >= are read")
        key, sign, wanted = match.groups()
        _require_known(key, runs)
        kept = [run for run in kept if _passes(run.values().get(key), sign, wanted, key)]
    return kept


def _passes(value: Value | None, sign: str, wanted: str, key: str) -> bool:
    number = _number(wanted)
    if sign in _OPERATORS:
        if number is None:
            raise UserError(f"--filter {key}{sign}{wanted}: {wanted!r} is no number")
        return isinstance(value, int | float) and _OPERATORS[sign](value, number)
    if value is None:
        same = wanted in ("", "none")
    elif isinstance(value, bool):
        same = wanted.lower() == str(value).lower()
    elif isinstance(value, int | float):
        same = number is not None and value == number
    elif key == "tags":
        same = any(fnmatch.fnmatchcase(tag, wanted) for tag in value.split() or [""])
    else:
        same = fnmatch.fnmatchcase(str(value), wanted)
    return same == (sign == "=")


def _number(text: str) -> float | None:
    """A number, or a time in seconds: 90, 1e-4, 2d, 30min."""
    match = re.fullmatch(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(s|min|h|d)?\s*", text)
    try:
        return float(match[1]) * _UNITS[match[2] or "s"] if match else None
    except ValueError:
        return None


def ordered(kept: list[Run], runs: Sequence[Run], key: str | None, reverse: bool) -> list[Run]:
    """By `key`: scores from the highest, all else from the lowest; runs without it last. Raises: UserError."""
    if key is None:
        return kept[::-1] if reverse else kept
    _require_known(key, runs)
    score = key.rpartition(":")[2].partition("/")[0]
    descending = (score in HIGHEST_FIRST) != reverse
    having = [run for run in kept if key in run.values()]

    def place(run: Run) -> tuple[bool, Value]:
        value = run.values()[key]
        return isinstance(value, str), value

    lacking = [run for run in kept if key not in run.values()]
    return sorted(having, key=place, reverse=descending) + lacking


def _require_known(key: str, runs: Collection[Run]) -> None:
    known = {name for run in runs for name in run.values()}
    if runs and key not in known:
        raise UserError(f"no run has a key {key!r}{nearest(key, sorted(known))}")


def _terminal_table(runs: Sequence[Run], usual: Mapping[str, Value | None]) -> Table:
    """As narrow as 80 columns."""
    scores = [name for name in ("t2i", "editing") if any(name in run.scores for run in runs)]
    columns = ("run", "state", "updates", *(_TITLES[name] for name in scores), *(["NFE"] if scores else []))
    table = Table(*columns, box=None, padding=(0, 1, 0, 0))
    for run in runs:
        parts = [run.name, *unusual(run, usual)]
        lines = "\n".join(_folded(parts[0], 0) + [line for part in parts[1:] for line in _folded(part, 2)])
        tags = [line for tag in run.labels.tags for line in _folded(f"#{tag}", 2)]
        note = _wrapped(f"scores are of {run.outdated}" if run.outdated else "") + _wrapped(run.labels.note)
        cells = ["\n".join([lines, *tags, *note]), f"{run.state}\n{age(run.changed)}", _updates(run)]
        cells += [_score(run.scores.get(name)) for name in scores]
        table.add_row(*(Text(cell) for cell in cells), *([Text(str(run.nfe or "-"))] if scores else []))
    return table


_TITLES = {"t2i": "T2I", "editing": "Editing"}


def _pipe_table(runs: Sequence[Run], usual: Mapping[str, Value | None]) -> Table:
    """One line a run."""
    scores = [f"{title} {part}" for title in _TITLES.values() for part in ("mean", "low", "high", "n", "seeds")]
    columns = [title.replace(" ", "_") for title in scores]
    table = Table("run", "state", "age", "updates", "NFE", *columns, "scored", "tags", "differs", "note")
    for run in runs:
        cells = [run.name, run.state, age(run.changed).replace(" ", ""), _updates(run), str(run.nfe or "-")]
        for name in _TITLES:
            score = run.scores.get(name)
            numbers = [score.mean, score.low, score.high] if score else [None] * 3
            cells += ["-" if value is None else f"{value:.3f}" for value in numbers]
            cells += [str(score.n), str(score.seeds)] if score else ["-", "-"]
        cells.append(run.outdated.replace(" ", "_") or ("current" if run.scores else "-"))
        cells += [",".join(run.labels.tags) or "-", " ".join(unusual(run, usual)) or "-", run.labels.note or "-"]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _updates(run: Run) -> str:
    return str(run.done) if run.done == run.total else f"{run.done}/{run.total}"


def _score(score: Score | None) -> str:
    if score is None:
        return "-"
    span = "" if score.low is None or score.high is None else f"\n{score.low:.2f}..{score.high:.2f}"
    seeds = f" x {score.seeds}" if score.seeds > 1 else ""
    return f"{score.mean:.2f}{span}\nn={score.n}{seeds}"


def age(changed: float) -> str:
    """Time since then, in its largest unit."""
    seconds = max(0.0, time.time() - changed)
    unit = max((name for name in _UNITS if _UNITS[name] <= max(1.0, seconds)), key=lambda name: _UNITS[name])
    return f"{seconds / _UNITS[unit]:.0f} {unit}"


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _NAME_WIDTH - 2:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [part for line in lines if line for part in _folded(line, 2)]


def _folded(text: str, indent: int) -> list[str]:
    """`text` in lines of at most the name's column, broken behind a slash, a dot or a sign, at worst anywhere."""
    lines, left = [], " " * indent + text
    while len(left) > _NAME_WIDTH:
        start = indent + 4
        places = [i + 1 for i in range(start, _NAME_WIDTH) if left[i] in "/.=-_ ,"]
        cut = places[-1] if places else _NAME_WIDTH
        lines.append(left[:cut].rstrip())
        left = " " * (indent + 2) + left[cut:].lstrip()
    return [*lines, left]


def show_difference(first: Path, second: Path, console: Console) -> list[str]:
    """Print what two runs differ in, recipe first, then what they were made with; returns the keys.

    Raises: UserError for a folder that is no run, or whose recipe cannot be read.
    """
    for path in (first, second):
        if not RunFolder(path).is_run():
            raise UserError(f"{path} is no run folder: it has no recipe.yaml")
    a, b = (read_run(path, str(path)) for path in (first, second))
    for run in (a, b):
        if not run.recipe:
            raise UserError(f"{run.path / 'recipe.yaml'} is no recipe")
    record = RunFolder(first).read_record()
    table = Table("key", a.name, b.name, "alters the numbers")
    found = []
    for key in sorted({*a.recipe, *b.recipe} - {*_PLACE}):
        values = [run.recipe.get(key) for run in (a, b)]
        if values[0] != values[1]:
            found.append(key)
            shown = (Text("-" if value is None else _shown(value)) for value in values)
            table.add_row(Text(key), *shown, "yes" if alters(key, record.command) else "no")
    for key, (ours, theirs) in _made_with(a, b).items():
        found.append(key)
        table.add_row(Text(key), Text(ours), Text(theirs), "-")
    if found:
        console.print(table)
    else:
        console.print(f"{first} and {second} differ in nothing but their folders", markup=False)
    return found


def _made_with(a: Run, b: Run) -> dict[str, tuple[str, str]]:
    """Versions, commit and devices in which two environments differ, and how far the runs are."""
    flat = []
    for run in (a, b):
        try:
            content = read_json(run.path / "environment.json", dict, "")
        except UserError:
            content = {}
        packages = content.get("packages")
        named = {key: content.get(key) for key in ("python", "commit", "cuda_devices", "cpu_threads")}
        flat.append({**named, **(packages if isinstance(packages, dict) else {}), "updates": _updates(run)})
    keys = [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]
    return {key: (str(flat[0].get(key)), str(flat[1].get(key))) for key in keys}
