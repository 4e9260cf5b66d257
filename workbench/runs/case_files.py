"""Files of cases by the command line: the benchmarks that ship, or published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.common.errors import UserError
from workbench.evaluation.cases.convert import LANGUAGE, convert
from workbench.runs.inference import write_cases


def write_case_file(words: Sequence[str]) -> str:
    """Do what `OUT.jsonl key=value ...` or `FORM FILE ... OUT.jsonl language=L` says; what was written, in words.

    Raises:
        UserError: see `write_cases` and `convert`.
    """
    keys = [word for word in words if "=" in word and not Path(word).exists()]
    places = [word for word in words if word not in keys]
    if len(places) == 1:
        return f"wrote {write_cases(Path(places[0]), keys)} cases to {places[0]}"
    if len(places) < 3 or any(not key.startswith("language=") for key in keys):
        raise UserError("write `workbench cases FORM FILE ... OUT.jsonl [language=en]`; docs/cases.md lists the forms")
    name, *files, out = places
    language = keys[-1].partition("=")[2] if keys else LANGUAGE
    return f"wrote {out}: {convert(name, [Path(file) for file in files], Path(out), language)}"
