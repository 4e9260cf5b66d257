"""From models to `metrics.json`: every number with its interval, its NFE, its number of cases and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from datamodules.files import write_bytes
from workbench.config import Recipe
from workbench.evaluation import diversity, features
from workbench.evaluation.answers import CHUNK, Answers, answer, chunks, judge_into, write_answers
from workbench.evaluation.benchmark import BENCHES, Case, openmoji_cases
from workbench.evaluation.beside import beside_metrics
from workbench.evaluation.grids import chosen_cases, write_grids
from workbench.evaluation.judge import LocalJudge
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.statistics import bench_intervals, comparison, paired_differences
from workbench.evaluation.vlm_judge import Panel
from workbench.evaluation.vlm_metrics import judged, panel_metrics, preferences, write_verdicts
from workbench.recipes import recipe_hash

SELECTION_CASES = 10
"""Cases a category on which the teacher's best few-step sampling is chosen."""
CONSOLE = Console()
COMPARED = (("student", "teacher_few_step"), ("student", "teacher"), ("teacher_few_step", "teacher"))


def benchmark_cases(recipe: Recipe, split: str, t2i_cases: int, editing_cases: int) -> list[Case]:
    """Both benchmarks' slices of a split."""
    resolution = recipe.data.resolution
    return [
        *openmoji_cases("t2i", split, t2i_cases, resolution),
        *openmoji_cases("edit", split, editing_cases, resolution),
    ]


def evaluate(
    models: Mapping[str, ModelUnderTest],
    recipe: Recipe,
    out_folder: Path,
    *,
    cases: Sequence[Case] | None = None,
    judge: LocalJudge | None = None,
    panel: Panel | None = None,
    selection: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Score `models` and write `metrics.json`, `evaluation/cases.jsonl` and `samples/evaluation/*.png` in `out_folder`.

    cases: the recipe's slices of the world when absent. panel: judges beside the local one; what each said goes into
    `evaluation/vlm.jsonl`. selection: how the few-step teacher was chosen, for the record.
    """
    chosen, judge, of_world = recipe.evaluation, judge or LocalJudge(), cases is None
    if cases is None:
        cases = benchmark_cases(recipe, chosen.split, chosen.t2i_cases, chosen.editing_cases)
    paired = [case for group in chosen_cases(cases, chosen.vlm.pairs).values() for case in group] if panel else []
    keep = [case.id for group in chosen_cases(cases).values() for case in group] + [case.id for case in paired]
    targets, sources = _judged_as_given(cases, "target", judge), _judged_as_given(cases, "source", judge)
    groups = chosen_cases(cases, diversity.DIVERSITY_PROMPTS).items()
    several = [case for (task, _), group in groups if task == "t2i" for case in group]
    unit = diversity.unit_of(targets) if several else None
    answers, metrics_of, spreads = {}, {}, {}
    for name, model in models.items():
        CONSOLE.print(f"{name}: {len(cases)} cases, {len(chosen.seeds)} seed(s), NFE {model.nfe}")
        answers[name] = answer(model, cases, chosen.seeds, judge, keep, panel)
        metrics_of[name] = _model_metrics(model, answers[name], targets, recipe)
        spreads[name] = {} if unit is None else diversity.model_spread(model, several, unit, judge)
    real = diversity.world_spread(several, unit, judge, recipe) if of_world and unit is not None else {}
    for name, spread in spreads.items():
        found = diversity.diversity_metrics(spread, spreads.get("teacher", {}), real, recipe)
        metrics_of[name]["diversity"] = found
    metrics = {
        "recipe": recipe_hash(recipe),
        "split": chosen.split,
        "seeds": list(chosen.seeds),
        "judge": judge.name,
        "interval": f"95 % bootstrap over cases and seeds, {chosen.num_bootstrap} resamples",
        "models": metrics_of,
        "ceiling": {
            **_benches(targets, recipe),
            "beside": beside_metrics(targets, targets, recipe),
            "diversity": diversity.diversity_metrics(real, spreads.get("teacher", {}), real, recipe),
        },
        "floor": _benches(sources, recipe),
        "comparisons": compare_answers(answers, recipe),
        "few_step_selection": [dict(row) for row in selection],
    }
    if panel is not None:
        if paired and len(models) > 1:
            metrics["preference"] = preferences(panel, answers, paired, chosen.seeds[0], recipe)
        metrics["vlm"] = panel_metrics(panel, answers, COMPARED, recipe)
        write_verdicts(answers, out_folder / "evaluation" / "vlm.jsonl")
    write_answers(answers, out_folder / "evaluation" / "cases.jsonl")
    write_grids(cases, answers, chosen.seeds[0], out_folder / "samples" / "evaluation")
    write_bytes(out_folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
    return metrics


def _judged_as_given(cases: Sequence[Case], which: Literal["target", "source"], judge: LocalJudge) -> Answers:
    """Every case answered by its own target (the ceiling), or edits by their source as it was drawn (the floor)."""
    answers = Answers()
    chosen = [case for case in cases if (case.target if which == "target" else case.source) is not None]
    for part in chunks(chosen, CHUNK):
        given = [case.target if which == "target" else case.source for case in part]
        judge_into(answers, part, [image for image in given if image is not None], 0, judge)
    return answers


def _benches(answers: Answers, recipe: Recipe) -> dict[str, Any]:
    """Bench -> category or `mean` -> interval; benches without cases are left out."""
    benches = {}
    for bench in BENCHES.values():
        if table := answers.by_category(bench):
            intervals = bench_intervals(table, recipe.evaluation.num_bootstrap)
            benches[bench] = {name: interval.as_dict() for name, interval in intervals.items()}
    return benches


def _model_metrics(model: ModelUnderTest, answers: Answers, targets: Answers, recipe: Recipe) -> dict[str, Any]:
    drawn, real = answers.features_of("t2i_bench"), targets.features_of("t2i_bench")
    distance = features.frechet(drawn, real) if len(drawn) and len(real) else None
    return {
        "nfe": model.nfe,
        "n": len(answers.rows),
        "seconds_per_image": answers.seconds / max(1, len(answers.rows)),
        "sampling": model.sampling,
        **_benches(answers, recipe),
        "frechet": None if distance is None else {"value": distance, "n": min(len(drawn), len(real))},
        "beside": beside_metrics(answers, targets, recipe),
        "vlm": {name: judged(answers, name, recipe) for name in answers.verdicts},
    }


def compare_answers(answers: Mapping[str, Answers], recipe: Recipe) -> list[dict[str, Any]]:
    """Paired differences of the models in COMPARED on each benchmark."""
    rows = []
    for a, b in COMPARED:
        for bench in BENCHES.values() if a in answers and b in answers else ():
            first, second = answers[a].by_category(bench), answers[b].by_category(bench)
            if first:
                found = paired_differences(first, second, recipe.evaluation.num_bootstrap)["mean"]
                rows.append(comparison(a, b, bench, found))
    return rows


def select_few_step(
    candidates: Sequence[ModelUnderTest],
    recipe: Recipe,
    judge: LocalJudge | None = None,
    cases: Sequence[Case] | None = None,
) -> tuple[ModelUnderTest, list[dict[str, Any]]]:
    """The candidate with the best mean over both benchmarks, and every candidate's score, best first.

    It is chosen on cases that are not reported on: a slice of the search split, or of the calibration split when the
    recipe evaluates on search.
    """
    judge, chosen = judge or LocalJudge(), recipe.evaluation
    if cases is None:
        split = "search" if recipe.evaluation.split != "search" else "calibration"
        wanted = (min(SELECTION_CASES, n) for n in (recipe.evaluation.t2i_cases, recipe.evaluation.editing_cases))
        cases = benchmark_cases(recipe, split, *wanted)
    if not cases:
        return candidates[0], []
    scored = []
    CONSOLE.print(f"choosing the few-step teacher among {len(candidates)}, {len(cases)} cases each")
    for model in candidates:
        found = answer(model, cases, chosen.seeds[:1], judge)
        tables = [table for table in map(found.by_category, BENCHES.values()) if table]
        score = float(np.mean([np.mean([scores.mean() for scores in table.values()]) for table in tables]))
        scored.append((score, model))
    scored.sort(key=lambda pair: -pair[0])
    rows = [{**model.sampling, "nfe": model.nfe, "score": score, "n": len(cases)} for score, model in scored]
    return scored[0][1], rows
