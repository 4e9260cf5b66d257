"""Tables of a user's samples, one a row: CSV, JSON lines, JSON and Parquet, with the column names that others use.

Paths are relative to the table. Several sources stand in a list, or in numbered columns (`source`, `source_2`, ...). A
text file is a list of prompts, one a line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.shards.left_out import Tally
from datamodules.shards.own_parquet import Embedded, rows_of
from datamodules.shards.own_sample import CUSTOM, OwnSample, Picture, checked_text, read_text, safe_key
from datamodules.shards.sources import in_order, source_name, source_number
from workbench.common.errors import UserError
from workbench.common.outside import parse, read_bytes, read_json

COLUMNS = {
    "caption": ("caption", "text", "prompt", "instruction", "edit_prompt"),
    "image": ("image", "file_name", "target", "target_image", "edited_image", "output_image"),
    "source": ("source", "edit_image", "source_image", "input_image"),
    "category": ("category",),
}
"""What a sample is made of -> names of columns: ours, Hugging Face's, DiffSynth's and InstructPix2Pix's."""
TABLES = (".csv", ".jsonl", ".json", ".parquet")
_ROLE = {name: role for role, names in COLUMNS.items() for name in names}
_SOURCE = re.compile(rf"(?:{'|'.join(COLUMNS['source'])})_?(\d{{1,3}})")


def read_table(path: Path, tally: Tally, prefix: str = "") -> list[OwnSample]:
    """The samples of a table, in order. prefix: of their keys. tally: counts the columns that are not read.

    Raises:
        UserError: naming the file and the line, for what is no such table, columns without a caption, a caption that
            is missing, a file that is not there, sources with a gap.
    """
    samples: list[OwnSample] = []
    roles: dict[str, str] = {}
    known: set[str] = set()
    for line, row in _rows(path, tally):
        if not row.keys() <= known:
            known |= row.keys()
            roles = _roles(path, known)
        with tally.sample():
            samples.append(_sample(path, line, {role: row.get(name) for role, name in roles.items()}, prefix))
    for name in sorted(known - {*roles.values()}):
        tally.ignore(f"column {name}")
    return samples


def read_prompts(path: Path, tally: Tally, prefix: str = "") -> list[OwnSample]:
    """The prompts of a text file, one a line; empty lines are none."""
    samples = []
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if text.strip():
            origin = f"{path}, line {line}"
            with tally.sample():
                text = checked_text(text, f"{origin}: the prompt")
                samples.append(OwnSample(f"{prefix}{line:08d}", CUSTOM, text, None, (), origin))
    return samples


def _rows(path: Path, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line (of a Parquet file, row) and values of every row."""
    match path.suffix.lower():
        case ".csv":
            yield from _csv_rows(path)
        case ".jsonl":
            for line, content in enumerate(read_bytes(path, "write it again").split(b"\n"), 1):
                row: dict[str, Any] = {}
                if content.strip():
                    with tally.sample():
                        row = parse(content, dict, f"{path}, line {line}", "write the line again")
                if row:
                    yield line, row
        case ".json":
            yield from enumerate(read_json(path, list[dict[str, Any]], "it should hold a list of objects"), 1)
        case _:
            yield from rows_of(path)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(1 << 24)
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        columns = {*(reader.fieldnames or [])}
        if "caption" not in _roles(path, columns):
            raise UserError(f"{path} {_needs_a_caption(columns)}")
        for row in reader:
            if None in row:
                raise UserError(
                    f"{path}, line {reader.line_num}: more fields than columns; put captions with commas in double "
                    "quotes"
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise UserError(f"{path} is not a UTF-8 CSV file: {error}") from error


def _needs_a_caption(columns: set[str]) -> str:
    return (
        f"has the columns {', '.join(sorted(columns)) or '(none)'}; it needs caption (or "
        f"{', '.join(COLUMNS['caption'][1:])}) and may have image, source, category (docs/data.md)"
    )


def _roles(path: Path, columns: set[str]) -> dict[str, str]:
    """Role -> name of its column; each source is a role of its own."""
    found: dict[str, str] = {}
    for name in sorted(columns):
        numbered = _SOURCE.fullmatch(name)
        role = source_name(int(numbered[1])) if numbered else _ROLE.get(name)
        if role in found:
            raise UserError(f"{path} has the columns {found[role]} and {name}, both for the {role}; drop one of them")
        if role is not None:
            found[role] = name
    return found


def _sample(path: Path, line: int, values: dict[str, Any], prefix: str) -> OwnSample:
    origin = f"{path}, line {line}"
    if "caption" not in values:
        raise UserError(f"{origin}: {_needs_a_caption({*values})}")
    text = values["caption"]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{origin}: the caption is no text; write one or drop the line")
    text = checked_text(text or "", f"{origin}: the caption")
    images = _pictures(path, origin, "image", values.get("image"))
    if len(images) > 1:
        raise UserError(f"{origin}: several images; keep one")
    image = images[0] if images else None
    name = image.name if isinstance(image, Path) else ""
    key = f"{prefix}{line:08d}" + (f"-{safe_key(Path(name).stem)}" if name else "")
    category = CUSTOM if values.get("category") in (None, "") else str(values["category"])
    return OwnSample(key, category, text, image, _sources(path, origin, values), origin)


def _sources(path: Path, origin: str, values: dict[str, Any]) -> tuple[Picture, ...]:
    """The sources that the cells of a row name, in the order of their columns."""
    cells = {
        number: _pictures(path, origin, role, value)
        for role, value in values.items()
        if (number := source_number(role)) is not None
    }
    ordered = in_order({number: pictures for number, pictures in cells.items() if pictures}, origin)
    return tuple(picture for pictures in ordered for picture in pictures)


def _pictures(path: Path, origin: str, role: str, value: Any) -> list[Picture]:
    """The pictures that a cell names: one, none, or a list, also as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse(value, list, f"{origin}, {role}", "name a picture, or a list of them")
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return [_picture(path, origin, role, each) for each in (value if isinstance(value, list) else [value])]


def _picture(path: Path, origin: str, role: str, value: Any) -> Picture:
    if isinstance(value, Embedded):
        return value
    if not isinstance(value, str):
        raise UserError(f"{origin}: the {role} is {json.dumps(value, default=str)[:80]}, not the path of a picture")
    found = path.parent / value.strip()
    try:
        there = found.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise UserError(f"{origin}: there is no {found}; paths are relative to {path.name}")
    return found
