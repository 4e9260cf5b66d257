"""Published benchmarks as files of cases: the files that a user has downloaded, in the forms of `forms.yaml`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from datamodules.shards.own_parquet import Embedded, read_embedded, rows_of
from workbench.common.errors import UserError, nearest, shortened
from workbench.common.files import progress, write_bytes
from workbench.common.images import decode_image
from workbench.common.outside import Outside, as_name, inside, parse, read_bytes
from workbench.evaluation.cases.case_file import check_row
from workbench.evaluation.measures.text import folded

LANGUAGE = "en"
"""Of the prompts, where a benchmark has several."""
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}
_MEND = "download the file again"
_LARGEST_IMAGE = 1 << 28
Row = dict[str, Any]


class Form(Outside):
    """What is known of a benchmark's files; see the top of `forms.yaml`."""

    title: str
    licence: str
    page: str
    task: Literal["t2i", "edit"]
    rows: Literal["list", "mapping", "data_list"]
    id: list[str]
    prompt: dict[str, str]
    language: str = ""
    kind: str = ""
    category: str = ""
    categories: dict[str, str] = {}
    source: list[str] = []
    text: str = ""


@dataclass(frozen=True)
class Converted:
    """What was written: cases by category, rows left out for being of another language, or there twice."""

    form: Form
    categories: Mapping[str, int]
    other_languages: int
    repeated: int

    def __str__(self) -> str:
        count = ", ".join(f"{name} {number}" for name, number in self.categories.items())
        left_out = [
            f"{number:,} rows {why}"
            for number, why in ((self.other_languages, "of another language"), (self.repeated, "that repeat one"))
            if number
        ]
        total = sum(self.categories.values())
        words = f"{total:,} cases of {self.form.title} ({count})" + (
            f"; left out: {', '.join(left_out)}" if left_out else ""
        )
        return f"{words}. Licence of the benchmark: {self.form.licence}, see {self.form.page}"


@cache
def forms() -> Mapping[str, Form]:
    """The forms that are known, by name."""
    path = Path(__file__).with_name("forms.yaml")
    given = yaml.safe_load(path.read_text())
    return {name: parse(json.dumps(form), Form, f"{path}: {name}", "mend it") for name, form in given.items()}


def convert(name: str, files: Sequence[Path], out: Path, language: str = LANGUAGE) -> Converted:
    """Write the cases of a benchmark's files to `out`, their images next to it.

    Raises:
        UserError: an unknown form, or a file, a row or an image that is not of the form, naming it.
    """
    if name not in forms():
        raise UserError(f"no form {name!r}{nearest(name, forms())}; known are {', '.join(forms())}")
    if out.suffix != ".jsonl":
        raise UserError(f"{out} must end in .jsonl")
    form = forms()[name]
    images = out.with_name(f"{out.stem}_images")
    lines: list[str] = []
    seen: dict[str, str] = {}
    written: set[str] = set()
    other = repeated = 0
    for path in files:
        prefix = f"{path.absolute().parent.name}-{path.stem}-" if len(files) > 1 else ""
        rows = list(_rows(path, form))
        if not rows:
            raise UserError(f"{path} holds no rows of {form.title}; {_MEND}")
        with progress() as bars:
            for number, row in bars.track(rows, description=path.name):
                where = f"{path}, row {number}"
                if form.language and _field(row, form.language, form, where) != language:
                    other += 1
                    continue
                case = _case(row, f"{name}-{prefix}", form, language, where)
                if seen.setdefault(case["id"], case["prompt"]) != case["prompt"]:
                    raise UserError(f"{where}: the id {case['id']} stands for another prompt already; {_MEND}")
                if case["id"] in written:
                    repeated += 1
                    continue
                written.add(case["id"])
                if form.source:
                    case["source"] = _copy_image(row, form, path, images, case["id"], where)
                check_row(dict(case), where)
                lines.append(json.dumps(case, ensure_ascii=False))
    if not lines:
        raise UserError(f"no row of {form.title} is in the language {language!r}: name another, as in language=cn")
    write_bytes(out, ("\n".join(lines) + "\n").encode())
    categories = Counter(json.loads(line)["category"] for line in lines)
    return Converted(form, dict(sorted(categories.items())), other, repeated)


def _rows(path: Path, form: Form) -> Iterator[tuple[int, Row]]:
    """Every row with its number, as the file's kind and the form say."""
    if path.suffix.lower() == ".parquet":
        yield from rows_of(path)
        return
    content = read_bytes(path, _MEND)
    match path.suffix.lower(), form.rows:
        case ".csv", _:
            try:
                yield from enumerate(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))), 1)
            except (UnicodeDecodeError, csv.Error) as error:
                raise UserError(f"{path} is no UTF-8 CSV file: {error}; {_MEND}") from error
        case ".json", "mapping":
            found: dict[str, Row] = parse(content, dict[str, Row], str(path), _wrong(form))
            yield from enumerate(({"key": key, **row} for key, row in found.items()), 1)
        case ".json", "data_list":
            whole: Row = parse(content, dict, str(path), _wrong(form))
            rows = whole.get("data_list")
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise UserError(f"{path}: has no list of objects under data_list; {_wrong(form)}")
            yield from enumerate(rows, 1)
        case ".json", "list":
            yield from enumerate(parse(content, list[Row], str(path), _wrong(form)), 1)
        case ".jsonl", _:
            for number, line in enumerate(content.split(b"\n"), 1):
                if line.strip():
                    row: Row = parse(line, dict, f"{path}:{number}", _wrong(form))
                    yield number, row
        case _:
            raise UserError(f"{path}: {form.title} comes as .json, .jsonl, .csv or .parquet; {_wrong(form)}")


def _wrong(form: Form) -> str:
    return f"it is not of the form of {form.title} ({form.page})"


def _field(row: Row, name: str, form: Form, where: str) -> str:
    """A field of a row as text."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        known = shortened(", ".join(map(str, row)), 120)
        raise UserError(f"{where}: has no {name}, only {known}: {_wrong(form)}")
    return str(value).strip()


def _case(row: Row, prefix: str, form: Form, language: str, where: str) -> Row:
    """The case of a row, without its image."""
    prompt = form.prompt.get(language) or form.prompt.get("any")
    if prompt is None:
        raise UserError(f"{form.title} has prompts in {', '.join(form.prompt)}, not in {language!r}")
    identity = "-".join(_field(row, name, form, where) for name in form.id)
    case = {
        "id": as_name(f"{prefix}{identity}"),
        "task": form.task,
        "category": form.category or _category(_field(row, form.kind, form, where), form.categories),
        "prompt": _field(row, prompt, form, where),
    }
    if form.text:
        wanted = row.get(form.text)
        parts = [part for part in (wanted if isinstance(wanted, list) else [wanted]) if isinstance(part, str)]
        if not parts or (isinstance(wanted, list) and len(parts) < len(wanted)):
            raise UserError(f"{where}: {form.text} must be a text or a list of texts: {_wrong(form)}")
        text = " ".join(" ".join(parts).split())
        if folded(text):
            case["text"] = text
    return case


def _category(kind: str, categories: Mapping[str, str]) -> str:
    """The category of a row of some kind: by the table, or else the first part of the kind itself."""
    parts = [part.strip() for part in re.split("[;/]", kind)]
    known = next((category for name, category in categories.items() if name in parts), None)
    return known or re.sub(r"[^\w .+-]+", "_", parts[0]).lower() or "other"


def _copy_image(row: Row, form: Form, path: Path, images: Path, case: str, where: str) -> str:
    """Copy a row's source image into the folder `images`; its path from the file of cases."""
    name = next((name for name in form.source if row.get(name) not in (None, "")), None)
    if name is None:
        raise UserError(f"{where}: has none of {', '.join(form.source)}: {_wrong(form)}")
    match row[name]:
        case Embedded() as embedded:
            content = read_embedded(embedded)
        case str() as relative:
            content = read_bytes(
                path.parent / relative, f"put {form.title}'s images next to {path}", largest=_LARGEST_IMAGE
            )
        case _:
            raise UserError(f"{where}: {name} must be a path or an embedded image: {_wrong(form)}")
    decode_image(content, f"{where}: {name}", _MEND)
    suffix = next((suffix for start, suffix in SUFFIXES.items() if content.startswith(start)), ".png")
    file = inside(images, f"{as_name(case)}.source{suffix}")
    write_bytes(file, content)
    return f"{images.name}/{file.name}"
