"""Categories and their parts by difficulty: what every arm scores there, and less the reference arm.

Parts stand outside of scores, families and verdicts: the interval of each holds alone, adjusted for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from studies.analysis import arms
from studies.analysis.arms import Arm
from studies.analysis.comparisons import Measured
from studies.analysis.crossed import Table, components, two_sided
from studies.analysis.families import against_first
from studies.analysis.power import CONFIDENCE
from workbench.evaluation.case_scores import part_scores

Place = tuple[str, str]
"""(bench, category)."""
Row = dict[str, Any]


def part_tables(found: Sequence[Arm]) -> dict[Place, list[Table]]:
    """Of every category that has parts, for each arm (bench, difficulty) -> scores (runs, cases), over the cases that
    all finished trials of all arms share."""
    difficulties = {case: part for arm in found for case, part in arm.difficulties.items()}
    scores = [[part_scores(cases, difficulties) for cases in arm.cases] for arm in found]
    places = {place for of_arm in scores for of_run in of_arm for place in of_run}
    parts = {
        place: arms.tables(
            [
                replace(arm, cases=[of_run.get(place, {}) for of_run in of_arm])
                for arm, of_arm in zip(found, scores, strict=True)
            ],
            "score",
        )
        for place in places
    }
    return {place: tables for place, tables in parts.items() if all(tables)}


def part_rows(measured: Measured | None) -> list[Row]:
    """Every category with its parts below it, `cells` by the arm's name; none where no category has parts, or an
    arm's cases are not known. measured: the score."""
    if measured is None or not measured.tables:
        return []
    parts = part_tables(measured.arms)
    rows = []
    for place in sorted(measured.tables[0], key=lambda place: (place[0] != "t2i_bench", place[1])) if parts else ():
        rows.append(_row(place, "", [table[place] for table in measured.tables], measured))
        tables = parts.get(place, [{}])
        for key in tables[0]:
            rows.append(_row(place, key[1], [table[key] for table in tables], measured))
    return rows


def _row(place: Place, difficulty: str, scores: Sequence[np.ndarray], measured: Measured) -> Row:
    """One category, or a part of it. scores: (runs, cases) of every arm."""
    cells: dict[str, Row] = {
        arm.name: {"mean": float(of.mean()), "difference": None, "low": None, "high": None}
        for arm, of in zip(measured.arms, scores, strict=True)
    }
    num_cases = scores[0].shape[1]
    if measured.compares and num_cases > 1:
        found = components([{place: of} for of in scores], measured.found.pools.tolist())
        for arm, row in zip(measured.arms[1:], against_first(len(measured.arms)), strict=True):
            difference = found.contrast(row)
            low, high = difference.interval(two_sided(CONFIDENCE)) if difference.known else (None, None)
            cells[arm.name] |= {"difference": difference.value, "low": low, "high": high}
    bench, category = place
    return {"bench": bench, "category": category, "difficulty": difficulty, "num_cases": num_cases, "cells": cells}
