"""How well the base writes hard text, two words in small letters, and whether that is what it does worst."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from datamodules.openmoji.compose import LETTERINGS, Lettering
from studies.tiny_model.figures import Figure, Zoo, interval_figure, nested_figure
from workbench.evaluation.answer_cache import Answer
from workbench.evaluation.answers import Answers
from workbench.evaluation.measures.statistics import unpaired_difference

HARD: tuple[Lettering, ...] = ("two words", "two lines")
HARD_TEXT = "hard text"
Bars = tuple[float | None, float | None]
"""What a share should reach, and what it should not exceed."""
EASY_BARS: Bars = (0.75, None)
HARD_BARS: Bars = (0.4, 0.6)
"""With fewer exactly right a student has nothing to lose, with more a better teacher has no room."""


def hard_text(zoo: Zoo) -> list[Figure]:
    """Texts exactly right and letters right by difficulty, then whether hard text is the worst category."""
    found = zoo.answers(zoo.full[0])
    of_kind = {name: [row for row in found.rows if row.difficulty == name] for name in LETTERINGS}
    hard = [row for name in HARD for row in of_kind[name]]
    return [
        *written("teacher, T2I, one word", of_kind["one word"], EASY_BARS),
        *(figure for name in HARD for figure in written(f"teacher, T2I, {name}", of_kind[name])),
        *written("teacher, T2I, hard text", hard, HARD_BARS),
        *worst(found, {row.case for row in hard}),
    ]


def written(title: str, rows: Sequence[Answer], bars: Bars = (None, None)) -> list[Figure]:
    """Shares of the texts that are exactly right, with what it should reach and not exceed, and of letters."""
    if not rows:
        return []
    exact: dict[str, list[float]] = {}
    letters: dict[str, list[float]] = {}
    for row in rows:
        right = row.by_local.attributes["named/word"]
        exact.setdefault(row.case, []).append(float(right == 1))
        letters.setdefault(row.case, []).append(right)
    figure = replace(nested_figure(f"{title} exactly right", exact, bars[0]), most=bars[1])
    return [figure, nested_figure(f"{title}, letters right (1 - edit distance / length)", letters, None)]


def worst(found: Answers, hard: Collection[str]) -> list[Figure]:
    """By how much every category, among them the texts that are not hard, is better than the cases `hard`, in score and
    in the share of answers wholly right, and the least lower end of these intervals: above 0 hard text is the worst
    category, whichever is next. The local judge gives a text credit for its letters, a reader would not."""
    scored = {(row.case, row.seed): row.by_local.score for row in found.rows}
    whole = {(row.case, row.seed): of for row in found.rows if (of := row.measures.whole) is not None}
    return [*_differences(found, hard, scored, "1 to 5"), *_differences(found, hard, whole, "share wholly right")]


def _differences(
    found: Answers, hard: Collection[str], values: Mapping[tuple[str, int], float], unit: str
) -> list[Figure]:
    """values: of (case, seed)."""
    tables: dict[str, dict[str, list[float]]] = {}
    for row in found.rows:
        if (row.case, row.seed) in values:
            name = HARD_TEXT if row.case in hard else f"{row.bench}, {row.category}"
            tables.setdefault(name, {}).setdefault(row.case, []).append(values[row.case, row.seed])
    means = {name: np.array(list(cases.values())) for name, cases in tables.items()}
    if HARD_TEXT not in means:
        return []
    own = means.pop(HARD_TEXT)
    differences = {name: unpaired_difference(of, own) for name, of in means.items()}
    rows = [
        interval_figure(f"teacher, {name} less hard text, {unit}", of, None, "+.2f") for name, of in differences.items()
    ]
    ends = {name: -math.inf if of.low is None else of.low for name, of in differences.items()}
    nearest = min(ends, key=ends.__getitem__)
    note = f"of {nearest}; above 0 hard text is the worst category"
    return [*rows, Figure(f"teacher, least lower end of these, {unit}", ends[nearest], 0.0, form="+.2f", note=note)]
