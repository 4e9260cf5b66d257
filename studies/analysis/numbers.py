"""The numbers of a study's report, before they become a page: arms, comparisons, noise floor, curves, cost, verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from studies.analysis import arms, power, replicates
from studies.analysis.arms import Arm
from studies.analysis.comparisons import Measured
from studies.analysis.crossed import Table, components
from workbench.common.jsonl import read_scalars

PLANNED_SEEDS = (2, 3, 4, 5, 6, 8, 12, 16)
MAX_DRAWN_FROM = 6
"""Quantities whose curves are shown."""
CURVES = ("per_step/spread/", "per_step/flat_noise/", "x0_gap/t2i", "x0_gap/edit", "gradient_norm/student")
"""Names, or beginnings of families whose mean is drawn, in `metrics.jsonl`."""
Row = dict[str, Any]


def arm_rows(found: Sequence[Arm], objectives: Mapping[str, Measured | None]) -> list[Row]:
    """Per arm: seeds, failures, and for every objective the mean with its interval and the runs' own values."""
    rows: list[Row] = [
        {
            "name": arm.name,
            "seeds": len(arm.finished),
            "failed": sum(trial.get("state") == "fail" for trial in arm.trials),
            "running": sum(trial.get("state") in ("running", "waiting") for trial in arm.trials),
            "nfe": sorted({t["metrics"]["nfe"] for t in arm.finished if t.get("metrics", {}).get("nfe") is not None}),
            "sets": next((trial.get("hparams") for trial in arm.trials if trial.get("hparams")), {}),
            "objectives": {},
        }
        for arm in found
    ]
    for name, measured in objectives.items():
        for row, arm in zip(rows, found, strict=True):
            interval = None if measured is None else measured.interval(arm)
            row["objectives"][name] = {
                "values": arm.values(name),
                "interval": None if interval is None else interval.as_dict(),
                "cases": None if measured is None else measured.num_cases,
            }
    return rows


def category_rows(
    found: Sequence[Arm], shown: Mapping[tuple[str, tuple[str, str]], str]
) -> tuple[list[tuple[str, str]], list[Row]]:
    """(bench, category) columns, and for every arm its mean in each, the spread of its runs, and whether it is shown to
    be better or worse there than the reference arm (see `comparisons.by_category`)."""
    tables = arms.tables(found, "score")
    columns = sorted({key for table in tables for key in table}, key=lambda key: (key[0] != "t2i_bench", key[1]))
    rows = []
    for arm, table in zip(found, tables, strict=True):
        if table:
            runs = {key: table[key].mean(axis=1) for key in columns}
            cells = {
                key: {
                    "mean": float(of.mean()),
                    "sd": float(of.std(ddof=1)) if len(of) > 1 else None,
                    "shown": shown.get((arm.name, key), ""),
                }
                for key, of in runs.items()
            }
            rows.append({"name": arm.name, "cells": cells})
    return columns, rows


def noise_floor(arm: Arm, table: Table, objective: str) -> Row | None:
    """Spread between the seeds of one recipe and what n seeds an arm can show; None for fewer than two seeds."""
    spread = replicates.spread_of([arm.values(objective)])
    if spread is None:
        return None
    low, high = spread.interval()
    planned = [{"seeds": n, "least": replicates.minimal_difference(spread, n, n, 2 * n - 2)} for n in PLANNED_SEEDS]
    values = arm.values(objective)
    return {
        "objective": objective,
        "mean": float(np.mean(values)),
        "sd": spread.sd,
        "low": low,
        "high": high,
        "seeds": len(values),
        "cases": sum(scores.shape[1] for scores in table.values()) or None,
        "case_share": _case_share(table) if table else None,
        "planned": planned,
        "factors": (low / spread.sd, high / spread.sd) if spread.sd else (1.0, 1.0),
    }


def _case_share(table: Table) -> tuple[float, float]:
    """Bounds of the share of the variance between runs that more cases would average away."""
    found = components([table])
    return power.case_share(found.runs[0], found.residual[0])


def curves(folder: Path, found: Sequence[Arm]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Quantity -> arm -> student update -> value of each finished trial: scores at milestones, then diagnostics."""
    drawn: dict[str, dict[str, dict[int, list[float]]]] = {}
    for arm in found:
        for trial in arm.finished:
            for quantity, points in [*_milestones(trial).items(), *_logged(arms.run_folder(folder, trial)).items()]:
                of_arm = drawn.setdefault(quantity, {}).setdefault(arm.name, {})
                for update, value in points.items():
                    of_arm.setdefault(update, []).append(value)
    order = [name for name in drawn if name.endswith("at milestones")]
    order += [name for name in map(_title, CURVES) if name in drawn]
    return {name: drawn[name] for name in order[:MAX_DRAWN_FROM]}


def _title(name: str) -> str:
    return name.removeprefix("per_step/").rstrip("/").replace("_", " ")


def _milestones(trial: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Objective -> update -> value; what is one number a milestone is the score."""
    points: dict[str, dict[int, float]] = {}
    for update, value in (trial.get("milestones") or {}).items():
        for name, number in (value if isinstance(value, dict) else {"score": value}).items():
            if isinstance(number, int | float) and name in arms.REPORTED:
                points.setdefault(f"{name} at milestones", {})[int(update)] = float(number)
    return points


def _logged(run: Path | None) -> dict[str, dict[int, float]]:
    """Quantity -> update -> value of `metrics.jsonl`, families averaged."""
    points: dict[str, dict[int, float]] = {}
    for update, row in read_scalars(run / "metrics.jsonl") if run is not None else []:
        for name in CURVES:
            values = [v for key, v in row.items() if (key.startswith(name) if name.endswith("/") else key == name)]
            if values:
                points.setdefault(_title(name), {})[update] = float(np.mean(values))
    return points


def cost(found: Sequence[Arm]) -> Row:
    """Wall seconds of the trials, stage by stage where recorded, and trials an hour while any ran."""
    timed = [t for arm in found for t in arm.trials if t.get("started") is not None and t.get("finished") is not None]
    done = [t for t in timed if t.get("state") == "complete"]
    busy, until = 0.0, -math.inf
    for trial in sorted(timed, key=lambda trial: trial["started"]):
        busy += max(0.0, trial["finished"] - max(until, trial["started"]))
        until = max(until, trial["finished"])
    seconds = [trial["finished"] - trial["started"] for trial in done]
    stages: dict[str, float] = {}
    for trial in done:
        for name, value in (trial.get("cost") or {}).items():
            if isinstance(value, int | float):
                stages[name] = stages.get(name, 0.0) + float(value) / len(done)
    return {
        "mean": float(np.mean(seconds)) if seconds else None,
        "total": float(np.sum(seconds)) if seconds else None,
        "per_hour": 3600 * len(done) / busy if busy > 0 else None,
        "stages": {name: value for name, value in stages.items() if name != "wall"},
        "wall": stages.get("wall") or sum(stages.values()),
        "side_by_side": float(np.sum([t["finished"] - t["started"] for t in timed])) / busy if busy > 0 else None,
    }
