"""The page of a study folder: which sections it has depends on what the study did (one recipe, arms, a search)."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from datamodules.shards.counts import category_counts
from datamodules.shares import category_shares, used_samples
from studies.analysis import (
    arms,
    collapse,
    comparisons,
    effects,
    expectations,
    importance,
    numbers,
    parts,
    plots,
    spread,
)
from studies.analysis.arms import Arm, Floor
from studies.analysis.decisions import MARGIN
from studies.analysis.verdict import TITLES, arms_verdict, effects_verdict, noise_verdict, search_verdict
from workbench.common.errors import UserError
from workbench.common.images import read_image
from workbench.common.outside import read_json
from workbench.evaluation.places import first_files
from workbench.evaluation.sheet_index import read_sheets
from workbench.evaluation.trained_student import outdated
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load
from workbench.reporting.page import write_page
from workbench.reporting.plots import inline_bytes
from workbench.sampling.contact_sheet import contact_sheet, cut_sheet

MAX_COLUMNS = 12
SHEET_ROWS = 2
MAX_FRONT = 6


def report_study(folder: Path, floor_folder: Path | None = None) -> Path:
    """Write `report.html` into a study folder (one that holds `study.json`).

    floor_folder: study whose noise floor differences are compared with; `noise-floor` next to `folder` when absent.

    Raises: UserError if `floor_folder` is given and holds no finished noise floor.
    """
    return write_page(
        folder, "study.html.j2", {**study_values(folder, floor_folder), "titles": TITLES}, "studies.analysis"
    )


def study_values(folder: Path, floor_folder: Path | None = None) -> dict[str, Any]:
    """Everything that the study's page shows.

    Raises: UserError if `floor_folder` is given and holds no finished noise floor.
    """
    study = arms.read_study(folder)
    found, floor = arms.read_arms(folder, study), arms.find_floor(folder, floor_folder)
    replicated = arms.replicated(found)
    drawn = [trial for arm in found if arm.name == arms.SEARCH for trial in arm.finished]
    objectives = [name for name in study.get("objectives", ["score"])]
    reported = [*objectives, *(name for name in arms.REPORTED if name not in objectives)]
    reported = [name for name in reported if any(arm.values(name) for arm in found)]
    trials = [{**trial, "arm": arm.name, "link": _link(trial)} for arm in found for trial in arm.trials]
    return {
        "title": study.get("name", folder.resolve().name),
        "question": study.get("question") or "No question recorded.",
        "objectives": objectives,
        "reported": reported,
        "split": study.get("split", "search"),
        "budget": arms.budget_of(study),
        "floor": floor,
        "floor_differs": floor is not None and bool(floor.budget) and floor.budget != arms.budget_of(study),
        **_arms_values(replicated, study, objectives[0], reported),
        **_search_values(drawn, study, objectives, floor),
        "curves": plots.curves_chart(numbers.curves(folder, found), [arm.name for arm in found]),
        "expectations": _expectations(folder, arms.asked_for(replicated, study), study, reported),
        "mean_spread": _mean_spread(replicated, study, objectives[0]),
        "collapses": collapse.fall_rows(folder, replicated),
        "sheets": side_by_side(_columns(folder, replicated, drawn, study)),
        "cost": numbers.cost(found),
        "device": _device(folder, trials),
        "outdated": _outdated(folder, found),
        "trials": sorted(trials, key=lambda trial: trial["number"]),
        "counts": _counts(trials),
        "passes": _passes(folder, replicated),
        "commands": [_command(study, folder), shlex.join(["workbench", "report", str(folder)])],
        "storage": study.get("storage", ""),
    }


def _arms_values(all_arms: Sequence[Arm], study: Any, objective: str, reported: list[str]) -> dict[str, Any]:
    """The arms of a replication or the runs of a screening; empty sections for a search."""
    found = arms.asked_for(all_arms, study)
    not_asked = [arm.name for arm in all_arms if arm not in found]
    reference, margin, factors = study.get("reference"), study.get("margin", MARGIN), study.get("factors") or []
    measured = {name: comparisons.measure(found, name, reference) for name in reported}
    rows = numbers.arm_rows(found, measured)
    is_floor = len(found) == len(all_arms) == 1
    compared = [row for of in measured.values() for row in comparisons.against_reference(of, margin)]
    first = [{"name": row["name"], **row["objectives"][objective]} for row in rows if objective in row["objectives"]]
    shown = comparisons.by_category(measured.get("score"), margin)
    matter = [row for of in measured.values() for row in effects.effect_rows(of, factors, margin)] if factors else []
    columns, categories = numbers.category_rows(found, shown)
    every = [numbers.noise_floor(found[0], arms.tables(found, name)[0], name) for name in reported if is_floor]
    floors = [row for row in every if row is not None]
    if is_floor:
        verdict = noise_verdict(floors[0] if floors else None)
    elif factors:
        left = effects.missing_runs(measured.get(objective), factors)
        verdict = effects_verdict([row for row in matter if row["objective"] == objective], objective, margin, left)
    else:
        verdict = arms_verdict(rows, compared, objective, margin, shown, not_asked)
    return {
        "arms": rows,
        "verdicts": [verdict] if all_arms else [],
        "arms_chart": plots.arms_chart(first, TITLES[objective]),
        "comparisons": compared,
        "among_all": comparisons.among_all(measured.get(objective)),
        "screening": bool(factors),
        "effects": matter,
        "effects_chart": plots.differences_chart(
            [row for row in matter if row["objective"] == objective], f"{TITLES[objective]}, high level - low", margin
        ),
        "reference": reference,
        "margin": margin,
        "differences_chart": plots.differences_chart(
            [row for row in compared if row["objective"] == objective],
            f"{TITLES[objective]}, arm - {reference}",
            margin,
        ),
        "category_columns": columns,
        "categories": categories,
        "parts": parts.part_rows(measured.get("score")),
        "floors": floors,
        "floor_chart": plots.detectable_chart(floors[0]["planned"], *floors[0]["factors"]) if floors else "",
    }


def _expectations(folder: Path, found: Sequence[Arm], study: Any, reported: list[str]) -> list[dict[str, Any]]:
    """What was predicted, against what was measured."""
    names = {arm.name for arm in found}
    expects = {arm: what for arm, what in (study.get("expects") or {}).items() if arm in names}
    reference, margin = study.get("reference"), study.get("margin", MARGIN)
    if not expects:
        return []
    objectives = {expected.split()[0] for expected in expects.values() if expected != expectations.NOISIER}
    measured = [comparisons.measure(found, name, reference) for name in sorted({*reported, *objectives})]
    compared = [row for of in measured for row in comparisons.against_reference(of, margin)]
    return expectations.expectation_rows(folder, found, expects, reference, compared)


def _mean_spread(found: Sequence[Arm], study: Any, objective: str) -> spread.MeanSpread | None:
    """Of the arms that have finished; the runs of a screening are no draws from a space."""
    return None if study.get("factors") else spread.mean_spread([of for arm in found if (of := arm.values(objective))])


def _search_values(drawn: Sequence[Any], study: Any, objectives: list[str], floor: Floor | None) -> dict[str, Any]:
    """The front of a search, what matters, and how it went; nothing without drawn trials."""
    scored = [trial for trial in drawn if all(name in trial["values"] for name in objectives)]
    front, values = study.get("front") or [], {name: [t["values"][name] for t in scored] for name in objectives}
    matters = importance.importance(importance.drawn_trials(scored, study.get("space") or {}), values)
    searched = any(arm["name"] == arms.SEARCH for arm in study.get("arms", []))
    several = len(objectives) > 1
    best = sorted(scored, key=lambda trial: (trial["number"] not in front, -trial["values"][objectives[0]]))
    return {
        "searched": searched,
        "search_verdict": search_verdict(scored, front, objectives, matters, floor) if searched else None,
        "front_chart": plots.front_chart(scored, front, objectives) if several else "",
        "progress_chart": "" if several else plots.progress_chart(scored, objectives[0]),
        "importance": matters,
        "importance_chart": plots.importance_chart(matters),
        "slices_chart": plots.slices_chart(scored, objectives[0]),
        "best": [trial for trial in best if trial["number"] in front] if several else best[:MAX_FRONT],
    }


def _columns(folder: Path, found: Sequence[Arm], drawn: Sequence[Any], study: Any) -> list[tuple[str, Path]]:
    """Name and run folder of the runs that are shown side by side: one seed of every arm, or every seed of a single
    arm, then the front of a search."""
    if len(found) == 1:
        named = [(f"seed {trial['seed']}", trial) for trial in found[0].finished]
    else:
        named = [(arm.name, min(arm.finished, key=lambda t: t.get("seed") or 0)) for arm in found if arm.finished]
    front = study.get("front") or [trial["number"] for trial in drawn]
    named += [(f"trial {trial['number']}", trial) for trial in drawn if trial["number"] in front]
    runs = [(name, arms.run_folder(folder, trial)) for name, trial in named]
    return [(name, run) for name, run in runs if run is not None][:MAX_COLUMNS]


def side_by_side(columns: Sequence[tuple[str, Path]]) -> list[dict[str, Any]]:
    """Per category one picture: the source and target, the teacher, and each run's student on the same cases from the
    same noise, cut from the runs' own contact sheets."""
    sheets: dict[tuple[str, str], dict[str, Any]] = {}
    for name, run in columns:
        for entry, cells in _sheets(run):
            sheet = sheets.setdefault((entry["task"], entry["category"]), {"prompts": [], "cells": {}, **entry})
            if not sheet["prompts"]:
                sheet["prompts"] = [row["prompt"] for row in entry["rows"]][:SHEET_ROWS]
                sheet["cells"] |= {given: cells[given] for given in ("source", "target", "teacher") if given in cells}
            if "student" in cells and [row["prompt"] for row in entry["rows"]][:SHEET_ROWS] == sheet["prompts"]:
                sheet["cells"][name] = cells["student"]
    return [
        {"task": task, "category": category, "prompts": sheet["prompts"], "columns": len(sheet["cells"]),
         "image": _inline(sheet["cells"])}
        for (task, category), sheet in sheets.items()
    ]  # fmt: skip


def _sheets(run: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Index entry and cells of every contact sheet of a run."""
    place = run / "samples" / "evaluation"
    found = []
    for entry in read_sheets(place):
        sheet = read_image(place / entry.file, "the contact sheet", "evaluate the run again")
        cells = cut_sheet(sheet, entry.columns, len(entry.rows))
        found.append((entry.model_dump(), {name: column[:SHEET_ROWS] for name, column in cells.items()}))
    return found


def _inline(cells: dict[str, Any]) -> str:
    encoded = io.BytesIO()
    contact_sheet(cells).save(encoded, format="PNG")
    return inline_bytes(encoded.getvalue(), max_width=1800)


def _link(trial: Any) -> str:
    """Link to a trial's own report; its run folder is named by its last part, inside the study folder. Quoted,
    since a name with a colon would be read as an address, and `javascript:` is one."""
    return f"{quote(Path(str(trial['run'])).name)}/report.html" if trial.get("run") else ""


def _outdated(folder: Path, found: Sequence[Arm]) -> list[str]:
    """A line for every finished trial whose student is another than the one that was scored; printed too."""
    lines = []
    for trial in (trial for arm in found for trial in arm.finished):
        run = arms.run_folder(folder, trial)
        metrics = first_files(run).read() if run is not None else None
        if run is not None and metrics is not None and (line := outdated(run, metrics)):
            lines.append(f"{run.name}: {line}")
            print(f"warning: {lines[-1]}")
    return lines


def _counts(trials: Sequence[Any]) -> dict[str, int]:
    """State -> trials, finished ones first."""
    states = [str(trial.get("state")) for trial in trials]
    return {
        state: states.count(state) for state in ("complete", "running", "waiting", "pruned", "fail") if state in states
    }


def _command(study: Any, folder: Path) -> str:
    words = [str(word) for word in study.get("command") or [study.get("name", folder.name), f"folder={folder}"]]
    return shlex.join(["workbench", "study", *words])


def _device(folder: Path, trials: Sequence[Any]) -> str:
    """What the first run that says so ran on."""
    for trial in trials:
        run = arms.run_folder(folder, trial)
        if run is not None and (run / "environment.json").is_file():
            found: dict[str, Any] = read_json(run / "environment.json", dict, "delete it")
            devices = found.get("cuda_devices") or []
            return f"{len(devices)} x {devices[0]}" if devices else f"CPU, {found.get('cpu_threads', '?')} thread(s)"
    return ""


def _passes(folder: Path, found: Sequence[Arm]) -> dict[str, dict[str, float]]:
    """Arm -> category -> how often the student's own updates showed each of its prompts, where arms differ in it."""
    passes = {}
    for arm in found:
        run = arms.run_folder(folder, arm.finished[0]) if arm.finished else None
        if run is not None and (run / "recipe.yaml").is_file():
            try:
                passes[arm.name] = passes_per_prompt(load(run / "recipe.yaml"))
            except UserError:
                continue
    return passes if len({json.dumps(of, sort_keys=True) for of in passes.values()}) > 1 else {}


def passes_per_prompt(recipe: Recipe) -> dict[str, float]:
    """`task/category` -> draws of the student's updates over the samples that the data hold, of categories with any
    weight; empty where it is not known what the data hold."""
    counts = category_counts(recipe.data)
    if not counts:
        return {}
    names, available = list(counts), list(counts.values())
    shares = category_shares(names, available, recipe.mixture)
    used = used_samples(names, available, shares, recipe.mixture)
    draws = recipe.trainer.updates * recipe.mixture.batch_size
    return {name: float(draws * share / num) for name, share, num in zip(names, shares, used, strict=True) if share}
