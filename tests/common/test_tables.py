"""Tables: within their terminal, no word cut, and plain in a pipe."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from workbench.common.tables import Table, fitted, stdout_console

ROWS = [
    ["teacher_few_step", "4", "3.01\n2.70..3.28", "0.82"],
    ["a student with a rather long name", "4", "4.54\n4.31..4.73", "[x]"],
]


def printed(width: int, terminal: bool = True, rows: list[list[str]] = ROWS) -> list[str]:
    table = Table("model", "NFE", "T2I", "words\nright", title="scores of the whole evaluation", title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row))
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=terminal, color_system=None).print(table)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [200, 80, 60, 46, 30])
def test_a_terminal_is_never_wider_and_no_word_is_cut(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    for word in ("teacher_few_step", "student", "rather", "4.31..4.73", "0.82", "[x]"):
        assert any(word in line for line in lines), word
    assert not any("…" in line for line in lines)


def test_what_does_not_fit_side_by_side_is_a_block_a_row() -> None:
    lines = [line.rstrip() for line in printed(30)]
    start = lines.index("teacher_few_step")
    assert lines[start : start + 4] == ["teacher_few_step", "  NFE: 4", "  T2I: 3.01 2.70..3.28", "  words right: 0.82"]


def test_a_pipe_gets_one_plain_line_a_row() -> None:
    lines = [line.split() for line in printed(500, terminal=False)]
    assert lines[1] == ["model", "NFE", "T2I", "words", "right"]
    assert lines[2] == ["teacher_few_step", "4", "3.01", "2.70..3.28", "0.82"]
    assert len(lines) == 4 and all(character.isascii() for line in lines for word in line for character in word)


def test_widths_lie_between_the_longest_word_and_the_longest_line() -> None:
    assert fitted([4, 2], [10, 20], 40) == [10, 20]
    assert fitted([4, 2], [10, 20], 14) == [7, 7]
    assert fitted([4, 2], [5, 20], 14) == [5, 9]
    assert fitted([4, 2], [10, 20], 5) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_are_no_markup(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    table = Table("model[0]", title="runs/[a]", title_justify="left")
    table.add_row("student[b]")
    console = stdout_console()
    console.print(table)
    console.print("pip install 'few-step-workbench[ocr]'")
    printed = Text.from_ansi(capsys.readouterr().out).plain
    assert all(text in printed for text in ("model[0]", "runs/[a]", "student[b]", "[ocr]"))


def test_no_console_reads_markup() -> None:
    """Names of files, runs and models may hold brackets."""
    root = Path(__file__).parents[2]
    made = [
        (path.name, call)
        for package in ("workbench", "studies", "datamodules")
        for path in (root / package).rglob("*.py")
        for call in re.findall(r"\bConsole\(.*\)", path.read_text())
    ]
    assert len(made) > 5 and [one for one in made if "markup=False" not in one[1]] == []
