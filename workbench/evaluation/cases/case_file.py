"""Cases in a file, one JSON object a line: a user's own, or the shipped benchmarks written out. See docs/cases.md.

    {"id": "my-1", "task": "edit", "category": "object", "instruction": "Add a tree.", "source": "my-1.png", "seed": 7,
     "target": "my-1-after.png", "scene": {"objects": ["tree"]}, "source_scene": {"objects": []},
     "named": ["objects"], "kept": ["sky"], "accepted": {"objects": [["palm"], ["tree"]]}, "exact": false,
     "text": "OPEN", "order": ["tree", "car"], "difficulty": "one word"}

Paths are relative to the file. id, task, category and prompt (or instruction) are needed, and source for an edit: a
path, or a list of paths.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from datamodules.shards.sources import source_name
from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.common.images import png_bytes, read_image
from workbench.common.outside import LARGEST_WHOLE, LONGEST_TEXT, as_name, inside, parse, read_bytes
from workbench.evaluation.cases.case import BENCHES, Case, slice_indices
from workbench.evaluation.measures.text import folded

MANY = 200
"""From so many cases on, reading and writing show a progress bar."""
LISTS = ("objects",)
"""Attributes that hold several values at once."""
MEAN = "mean"
"""What a benchmark's mean over its categories is called among them."""
_LONGEST_CATEGORY = 64
_CATEGORY = re.compile(rf"[^\W_][\w .+-]{{0,{_LONGEST_CATEGORY - 1}}}")
_TEXTS = ("id", "task", "category", "prompt")
_KEYS = tuple(item.name for item in fields(Case) if item.name != "more_sources")
_NAMES = ("named", "kept")
_MAPPINGS = ("scene", "source_scene", "accepted")


def write_jsonl(cases: Sequence[Case], path: Path) -> None:
    """Cases in the form above, their images as PNG files in the folder `<stem>_images` next to `path`."""
    folder = path.with_name(f"{path.stem}_images")
    lines = []
    for case in track(cases, f"writing {path.name}", transient=True, disable=len(cases) < MANY):
        row: dict[str, Any] = {}
        for name in _KEYS:
            value = vars(case)[name]
            match value:
                case np.ndarray() if name == "source":
                    stems = [f"{as_name(case.id)}.{source_name(i + 1)}" for i in range(len(case.sources))]
                    files = [_written(each, folder, stem) for each, stem in zip(case.sources, stems, strict=True)]
                    row[name] = files[0] if len(files) == 1 else files
                case np.ndarray():
                    row[name] = _written(value, folder, f"{as_name(case.id)}.{name}")
                case None:
                    continue
                case bool() | int():
                    row[name] = value
                case _ if value or name in _TEXTS:
                    row[name] = value
        lines.append(json.dumps(row, ensure_ascii=False))
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _written(picture: np.ndarray, folder: Path, stem: str) -> str:
    """Write a picture as PNG; its path from the file of cases."""
    file = inside(folder, f"{stem}.png")
    write_bytes(file, png_bytes(Image.fromarray(picture)))
    return f"{folder.name}/{file.name}"


def read_jsonl(path: Path, prepare: Callable[[Image.Image], Image.Image] = lambda image: image) -> list[Case]:
    """Cases of a file. prepare: what becomes of every image as it is read, so that no large ones are held.

    Raises: UserError naming file and line of anything unusable.
    """
    lines = read_bytes(path, "name a file of cases").split(b"\n")
    cases: list[Case] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(track(lines, f"reading {path.name}", transient=True, disable=len(lines) < MANY), 1):
        if not line.strip():
            continue
        case = _parse(line, path, f"{path}:{number}", prepare)
        if case.id in seen:
            raise UserError(f"{path}:{number}: the id {case.id!r} stands in line {seen[case.id]} already; give another")
        seen[case.id] = number
        cases.append(case)
    if not cases:
        raise UserError(f"{path} holds no cases")
    return cases


def sliced(cases: Sequence[Case], per_category: dict[str, int], categories: Sequence[str], seed: int) -> list[Case]:
    """At most `per_category[task]` cases of every (task, category), in their order; `categories` alone, unless empty.

    seed: 0 takes the first ones, any other a seeded shuffle. Raises UserError for a category that no case has.
    """
    known = {case.category for case in cases}
    for name in categories:
        if name not in known:
            raise UserError(f"evaluation.categories names {name!r}; the cases have {', '.join(sorted(known))}")
    count = Counter((case.task, case.category) for case in cases)
    taken = {
        group: set(slice_indices(available, per_category[group[0]], seed))
        for group, available in count.items()
        if not categories or group[1] in categories
    }
    at: Counter[tuple[str, str]] = Counter()
    chosen = []
    for case in cases:
        group = (case.task, case.category)
        if at[group] in taken.get(group, ()):
            chosen.append(case)
        at[group] += 1
    # Benchmark by benchmark and category by category, as the world's cases come.
    return sorted(
        chosen, key=lambda case: (list(BENCHES).index(case.task), list(count).index((case.task, case.category)))
    )


def _parse(line: bytes, path: Path, where: str, prepare: Callable[[Image.Image], Image.Image]) -> Case:
    row: dict[str, Any] = parse(line, dict, where, "write one JSON object a line")
    if "instruction" in row:
        if "prompt" in row:
            raise UserError(f"{where}: has a prompt and an instruction; they are the same, give one")
        row["prompt"] = row.pop("instruction")
    check_row(row, where)
    sources = _images(row, "source", path, where, prepare)
    targets = _images(row, "target", path, where, prepare)
    given: dict[str, Any] = {
        **{name: row[name] for name in _TEXTS},
        **{
            "source": sources[0] if sources else None,
            "more_sources": tuple(sources[1:]),
            "target": targets[0] if targets else None,
        },
        **{name: row.get(name, {}) for name in _MAPPINGS},
        **{name: tuple(row.get(name, ())) for name in _NAMES},
    }
    given |= {"exact": row.get("exact", True), "seed": row.get("seed"), "text": row.get("text", "")}
    return Case(**given, order=tuple(row.get("order", ())), difficulty=row.get("difficulty", ""))


def check_row(row: dict[str, Any], where: str) -> None:
    """Raises: UserError for a line, its instruction called a prompt, that is no case."""
    for name in _TEXTS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise UserError(f"{where}: needs a non-empty text {name!r}")
        if len(row[name]) > LONGEST_TEXT:
            raise UserError(f"{where}: {name} has {len(row[name]):,} characters; at most {LONGEST_TEXT:,} are taken")
    if unknown := sorted(row.keys() - set(_KEYS)):
        raise UserError(f"{where}: has an unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    if row["task"] not in BENCHES:
        raise UserError(f"{where}: task must be t2i or edit, not {row['task']!r}")
    if row["task"] == "edit" and "source" not in row:
        raise UserError(f"{where}: an edit needs a source image")
    if row["task"] == "t2i" and "source" in row:
        raise UserError(f"{where}: a source image makes an edit: write task edit, or drop the source")
    for name in ("category", "difficulty") if "difficulty" in row else ("category",):
        if not isinstance(row[name], str) or row[name] == MEAN or not _CATEGORY.fullmatch(row[name]):
            raise UserError(
                f"{where}: the {name} {row[name]!r} names files and rows: at most {_LONGEST_CATEGORY} letters, "
                f"digits, spaces and _ . + -, beginning with a letter or digit, and not {MEAN!r}"
            )
    seed = row.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LARGEST_WHOLE:
        raise UserError(f"{where}: seed must be a whole number from 0 to {LARGEST_WHOLE}, not {seed!r}")
    for name in _MAPPINGS:
        if not isinstance(row.get(name, {}), dict):
            raise UserError(f"{where}: {name} must be an object of attribute names and values")
    if not all(isinstance(values, list) and values for values in row.get("accepted", {}).values()):
        raise UserError(f"{where}: accepted must map attributes to non-empty lists of values")
    for name, attribute, value in _values(row):
        if not _is_value(attribute, value):
            kind = "a list of names" if attribute in LISTS else "one name"
            raise UserError(f"{where}: {name} gives {attribute} as {json.dumps(value)}; it must be {kind}")
    text = row.get("text", "")
    if not isinstance(text, str) or (text and not folded(text)):
        raise UserError(f"{where}: text must be letters or digits that a right answer shows, not {text!r}")
    order = row.get("order", [])
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise UserError(f"{where}: order must be a list of objects from left to right")
    if not isinstance(row.get("exact", True), bool):
        raise UserError(f"{where}: exact must be true or false, not {row['exact']!r}")
    for name in _NAMES:
        attributes = row.get(name, [])
        if not isinstance(attributes, list) or not all(isinstance(attribute, str) for attribute in attributes):
            raise UserError(f"{where}: {name} must be a list of attribute names")
        if lost := sorted(set(attributes) - row.get("scene", {}).keys()):
            raise UserError(f"{where}: {name} has {lost[0]!r}, of which scene gives no value")


def _values(row: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every value that a row gives an attribute: (key of the row, attribute, value)."""
    for name in ("scene", "source_scene"):
        for attribute, value in row.get(name, {}).items():
            yield name, attribute, value
    for attribute, values in row.get("accepted", {}).items():
        for value in values:
            yield "accepted", attribute, value


def _is_value(attribute: str, value: Any) -> bool:
    if attribute in LISTS:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    return isinstance(value, str)


def _images(
    row: dict[str, Any], name: str, path: Path, where: str, prepare: Callable[[Image.Image], Image.Image]
) -> list[np.ndarray]:
    """The pictures that a key names: none without it, several only of `source`."""
    if name not in row:
        return []
    given = row[name] if name == "source" and isinstance(row[name], list) and row[name] else [row[name]]
    for value in given:
        if not isinstance(value, str):
            raise UserError(f"{where}: the {name} image {value!r} must be a path")
    found = (read_image(path.parent / v, f"{where}: the {name} image", "replace it or drop the case") for v in given)
    return [np.asarray(prepare(image)) for image in found]
