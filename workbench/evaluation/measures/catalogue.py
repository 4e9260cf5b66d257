"""The measures that no score holds, by the names and titles that files, tables, comparisons and studies use.

docs/measures.md says of each how it is defined, its best and its worst value, and what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.evaluation.metrics_file import Bounded, Secondary

T2I, EDITS = "t2i_bench", "editing_bench"


@dataclass(frozen=True)
class Measure:
    """bench: the benchmark whose answers have it. key: where it stands among the measures of an answer (`Measures`), a
    dot for every level. sign: 1 where higher is better, else -1."""

    title: str
    bench: str
    key: str
    sign: int = 1

    def of(self, measures: Mapping[str, Any]) -> float | None:
        """Its value among the measures of one answer; None where the case defines none."""
        found: Any = measures
        for name in self.key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return None if found is None else float(found)


def _of_text(prefix: str, bench: str, title: str) -> dict[str, Measure]:
    return {
        f"{prefix}_words": Measure(f"words read, {title}", bench, "text.word"),
        f"{prefix}_letters": Measure(f"letters read, {title}", bench, "text.letters"),
        f"{prefix}_log_probability": Measure(f"log-probability, {title}", bench, "text.log_probability"),
        f"{prefix}_legibility": Measure(f"legibility, {title}", bench, "text.legibility"),
    }


TEXT_MEASURES = {**_of_text("t2i", T2I, "T2I"), **_of_text("editing", EDITS, "edits")}
"""Those that need OCR."""
MEASURES: Mapping[str, Measure] = {
    "prompts_right": Measure("prompts wholly right", T2I, "whole"),
    "edits_right": Measure("edits wholly right", EDITS, "whole"),
    **TEXT_MEASURES,
    "one_word": Measure("one word exact", T2I, "exact.one"),
    "several_words": Measure("several words exact", T2I, "exact.several"),
    "displacement": Measure("displacement, %", EDITS, "displacement", -1),
    "colour_drift": Measure("colour drift, ΔE", EDITS, "colour", -1),
    "object_count": Measure("objects counted", T2I, "count"),
    "object_order": Measure("objects in order", T2I, "order"),
}
"""Those that answers have one by one."""
VARIETY = "variety of free choices"
"""Title of the one number of all answers together that is better higher."""


def numbers_of(secondary: Secondary) -> dict[str, Bounded]:
    """Title -> number, of all that a model has: those of single answers, then those of all of them together."""
    found = {
        measure.title: Bounded(of.mean, of.low, of.high, n=of.n)
        for name, measure in MEASURES.items()
        if (of := secondary.measures.get(name)) is not None
    }
    if secondary.variety is not None:
        found[VARIETY] = secondary.variety
    found |= {f"total variation, {name}": of for name, of in secondary.choices.items()}
    return found | {f"Fréchet distance, {name}": of for name, of in secondary.category_frechet.items()}


def rows_of(models: Sequence[Secondary]) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """For tables: title, n, and the value and note of every model, of all measures that any has."""
    given = [numbers_of(secondary) for secondary in models]
    titles = dict.fromkeys(title for of_model in given for title in of_model)
    rows = {title: [of_model.get(title) for of_model in given] for title in titles}
    return [
        (title, max(of.n for of in found if of is not None), [_text(of) for of in found])
        for title, found in rows.items()
    ]


def _text(found: Bounded | None) -> tuple[str, str]:
    """A number and its note: its interval, and what real pictures get; a hyphen where there is none."""
    if found is None or math.isnan(found.value):
        return "-", ""
    digits = 0 if abs(found.value) >= 100 else 2
    parts = [] if found.low is None else [f"{found.low:z.{digits}f} to {found.high:z.{digits}f}"]
    parts += [] if found.real is None else [f"real {found.real:z.{digits}f}"]
    return f"{found.value:z.{digits}f}", ", ".join(parts)
