"""Contact sheets of an evaluation: `samples/evaluation/index.json` of a run folder, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from workbench.common.outside import Outside, PlainName, read_json


class Row(Outside):
    """A row of a contact sheet."""

    prompt: str
    scores: dict[str, float]


class Sheet(Outside):
    """A contact sheet: its picture, and what its columns and rows show."""

    file: PlainName
    task: Literal["t2i", "edit"]
    category: str
    columns: list[str]
    rows: list[Row]


def read_sheets(folder: Path) -> list[Sheet]:
    """The contact sheets in `folder` whose pictures are there; none where there is no index.

    Raises: UserError for a damaged index.
    """
    if not (folder / "index.json").is_file():
        return []
    found = read_json(folder / "index.json", list[Sheet], "evaluate the run again")
    return [sheet for sheet in found if (folder / sheet.file).is_file()]
