"""Tags and a note on a run, in its `labels.json`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.outside import CONTROL, Outside, read_json
from workbench.runs.run_folder import RunFolder

FILE = "labels.json"
_TAG = re.compile(r"[\w.:+-]{1,40}")
_LONGEST_NOTE = 1000


class Labels(Outside):
    """The content of `labels.json`."""

    tags: list[str] = []
    note: str = ""


def read(run: Path) -> Labels:
    """Of a run without any, or with a damaged file: none."""
    try:
        return read_json(run / FILE, Labels, "")
    except UserError:
        return Labels()


def tag(run: Path, word: str) -> Labels:
    """Add a tag. Raises: UserError for no run, or a word that can be no tag."""
    if not _TAG.fullmatch(word):
        raise UserError(f"a tag is one word of at most 40 letters, digits and .:+-_, not {word!r}")
    return _change(run, lambda found: Labels(tags=sorted({*found.tags, word}), note=found.note))


def untag(run: Path, word: str) -> Labels:
    """Take a tag away. Raises: UserError for no run, or one without that tag."""
    found = read(run)
    if word not in found.tags:
        raise UserError(f"{run} has no tag {word!r}; it has {', '.join(found.tags) or 'none'}")
    return _change(run, lambda now: Labels(tags=[each for each in now.tags if each != word], note=now.note))


def note(run: Path, text: str) -> Labels:
    """Put a note in place of the former one; an empty one takes it away. Raises: UserError for no run, or a text that
    is too long."""
    plain = " ".join(text.split())
    if len(plain) > _LONGEST_NOTE or CONTROL.search(plain):
        raise UserError(f"a note is plain text of at most {_LONGEST_NOTE} characters")
    return _change(run, lambda found: Labels(tags=found.tags, note=plain))


def _change(run: Path, change: Callable[[Labels], Labels]) -> Labels:
    if not RunFolder(run).is_run():
        raise UserError(f"{run} is no run folder: it has no recipe.yaml")
    # Two commands at once: each reads what the other wrote.
    with files.alone(run):
        changed = change(read(run))
        files.write_bytes(run / FILE, changed.model_dump_json().encode())
    return changed
