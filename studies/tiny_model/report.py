"""`make zoo-report`: every row of the model card's table, measured again from the shipped folder.

    python -m studies.tiny_model.report [cases=20] [seeds=[0,1,2]] [card=true] [student=RUN] [folder=tiny] [out=FOLDER]

Each row is kept under the hash of the weights, the judge and the options, and so is every chunk of answers: the same
command goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from studies.tiny_model import measured
from studies.tiny_model.figures import PARTS, Figure, Options, Zoo
from studies.tiny_model.hard_text import hard_text
from studies.tiny_model.signature_share import signature_share
from workbench.common.arguments import read_options
from workbench.common.errors import UserError
from workbench.common.files import settings_hash, write_bytes
from workbench.common.fingerprint import fingerprint
from workbench.common.tables import Table
from workbench.evaluation.sheets import write_grids

FORMAT = 3
"""Counted up when a row is measured otherwise."""
BEGIN, END = "<!-- zoo-report: begin -->", "<!-- zoo-report: end -->"
SECTIONS: dict[str, Callable[[Zoo], list[Figure]]] = {
    "autoencoder": measured.autoencoder,
    "judge": measured.judge,
    "second judge": measured.second_judge,
    "teacher": measured.teacher,
    "hard text": hard_text,
    "headroom": measured.headroom,
    "specialists": measured.specialists,
    "signature": signature_share,
    "sizes": measured.sizes,
}
OF_STUDENTS = ("signature",)
"""Sections that measure the student too."""
CONSOLE = Console(markup=False)


def key_of(zoo: Zoo) -> str:
    """Hash of all that the figures follow from."""
    parts = [zoo.path / part for part in PARTS] + list(zoo.specialists.values())
    marks = [fingerprint(path) for path in (*parts, Path(zoo.options.judge), Path(zoo.options.second_judge))]
    counted = ("cases", "choosing", "seeds", "shift")
    chosen = {name: value for name, value in asdict(zoo.options).items() if name in counted}
    return settings_hash([FORMAT, marks, list(zoo.specialists), chosen])[:16]


def measure(zoo: Zoo) -> dict[str, list[Figure]]:
    """Section -> figures, those measured before taken from their files."""
    key = key_of(zoo)
    found = {}
    student = f"-{zoo.student.fingerprint[:16]}" if zoo.student else ""
    for name, section in SECTIONS.items():
        path = Path(zoo.options.out) / f"{name}-{key}{student if name in OF_STUDENTS else ''}.json"
        # Sizes change with files that are no weights, and cost nothing.
        if path.is_file() and name != "sizes":
            found[name] = [Figure(**row) for row in json.loads(path.read_text())]
            CONSOLE.print(f"{name}: measured before ({path})")
            continue
        CONSOLE.print(f"{name}: measuring")
        found[name] = section(zoo)
        write_bytes(path, json.dumps([asdict(row) for row in found[name]], indent=1).encode())
    return found


def markdown(found: dict[str, list[Figure]], zoo: Zoo) -> str:
    """The table of the model card."""
    how = zoo.recipe.evaluation
    lines = [
        f"Measured by `make zoo-report`: {3 * how.t2i_cases} T2I and {6 * how.editing_cases} editing cases of the "
        f"report split, sampling seeds {zoo.seeds}, 95 % intervals (bootstrap over cases and seeds; Wilson's for the "
        "judge's attributes).",
        "",
        "| what | measured | 95 % interval | n | bar | reached |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for figure in (row for rows in found.values() for row in rows):
        interval = f"{_told(figure, figure.low)} to {_told(figure, figure.high)}" if figure.low is not None else ""
        reached = {None: "", True: "yes", False: "**no**"}[figure.reached]
        count = str(figure.n) if figure.n else ""
        lines.append(
            f"| {figure.what} | {_told(figure, figure.value)} | {interval} | {count} | {_bar(figure)} | {reached} |"
        )
        notes += [f"- {figure.what}: {figure.note}"] if figure.note else []
    return "\n".join([*lines, "", *notes])


def _told(figure: Figure, value: float | None) -> str:
    return "" if value is None else format(int(value) if figure.form == "d" else value, figure.form)


def _bar(figure: Figure) -> str:
    """What the figure should reach, or what it should not exceed, or both."""
    least, most = _told(figure, figure.bar), _told(figure, figure.most)
    return f"{least} to {most}" if least and most else f"at most {most}" if most else least


def write_card(path: Path, text: str) -> None:
    """Put `text` between the markers of the file, or, with new markers, at its end."""
    before = path.read_text() if path.is_file() else ""
    head, begin, rest = before.partition(BEGIN)
    tail = rest.partition(END)[2] if begin else "\n"
    write_bytes(path, f"{head.rstrip()}\n\n{BEGIN}\n{text}\n{END}{tail}".encode())


def write_pictures(zoo: Zoo) -> None:
    """Source, real, teacher, few-step teacher and student, the same cases and noise, one sheet a category."""
    full, few = zoo.full[0], zoo.few[0]
    columns = {f"teacher_{full.nfe}_NFE": zoo.answers(full), f"teacher_{few.nfe}_NFE": zoo.answers(few)}
    if zoo.student:
        columns[f"student_{zoo.student.nfe}_NFE"] = zoo.answers_of(zoo.student)
    write_grids(zoo.cases, columns, zoo.seeds[0], Path(zoo.options.docs))


def report(options: Options) -> dict[str, list[Figure]]:
    """Measure, print, write `report.json` and `report.md`, the pictures, and, when asked, the model card."""
    zoo = Zoo(options)
    found = measure(zoo)
    text = markdown(found, zoo)
    out = Path(options.out)
    content = json.dumps({name: [asdict(row) for row in rows] for name, rows in found.items()}, indent=1).encode()
    write_bytes(out / "report.json", content)
    write_bytes(out / "report.md", f"{text}\n".encode())
    write_pictures(zoo)
    if options.card:
        write_card(zoo.path / "README.md", text)
        write_bytes(zoo.path / "measured.json", content)
    CONSOLE.print(_table(found))
    CONSOLE.print(f"wrote {out / 'report.md'}, {out / 'report.json'} and pictures in {options.docs}")
    return found


def _table(found: dict[str, list[Figure]]) -> Table:
    table = Table("what", "measured", "interval", "bar", "reached", title="the tiny model")
    for rows in found.values():
        for row in rows:
            interval = f"{_told(row, row.low)}..{_told(row, row.high)}" if row.low is not None else ""
            reached = {None: "", True: "yes", False: "no"}[row.reached]
            table.add_row(row.what, _told(row, row.value), interval, _bar(row), reached)
        table.add_section()
    return table


if __name__ == "__main__":
    try:
        report(read_options(Options, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
