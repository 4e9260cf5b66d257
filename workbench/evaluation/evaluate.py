"""From models to `metrics.json`: every number with its interval, its NFE, its number of cases and seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from workbench.common.clock import Clock
from workbench.common.files import write_bytes
from workbench.evaluation import diversity
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.answers import CHUNK, Answers, answer, chunks, judge_into, write_answers
from workbench.evaluation.cases.case import BENCHES, Case
from workbench.evaluation.cases.choose import benchmark_cases
from workbench.evaluation.cases.world import is_of_world
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.judges.vlm_judge import Panel
from workbench.evaluation.measures import distances
from workbench.evaluation.measures.statistics import bench_intervals, comparison, paired_differences
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.panel_metrics import judged, panel_metrics, preferences, write_verdicts
from workbench.evaluation.secondary import beside_metrics
from workbench.evaluation.sheets import chosen_cases, write_grids
from workbench.recipe.config import Recipe
from workbench.recipe.reading import recipe_hash

SELECTION_CASES = 10
"""Cases a category on which the teacher's best few-step sampling is chosen."""
PARTIAL = Path("evaluation") / "partial"
"""Where an output folder keeps answers until its metrics are written."""
CONSOLE = Console()
COMPARED = (("student", "teacher_few_step"), ("student", "teacher"), ("teacher_few_step", "teacher"))


def evaluate(
    models: Mapping[str, ModelUnderTest],
    recipe: Recipe,
    out_folder: Path,
    *,
    cases: Sequence[Case] | None = None,
    judge: LocalJudge | None = None,
    panel: Panel | None = None,
    selection: Sequence[Mapping[str, Any]] = (),
    store: Store | None = None,
    clock: Clock | None = None,
    compared: Sequence[tuple[str, str]] = COMPARED,
) -> dict[str, Any]:
    """Score `models` and write `metrics.json`, `evaluation/cases.jsonl` and `samples/evaluation/*.png` in `out_folder`.

    cases: what the recipe chooses when absent. panel: judges beside the local one; what each said goes into
    `evaluation/vlm.jsonl`. selection: how the few-step teacher was chosen, for the record. store: of answers; when
    absent one in `out_folder`, which goes when the metrics are written. clock: whose phases stand in `seconds`.
    compared: pairs of models whose differences are told.
    """
    chosen, judge, clock = recipe.evaluation, judge or LocalJudge(), clock or Clock()
    if cases is None:
        with clock.phase("cases"):
            cases = benchmark_cases(recipe.data, chosen)
    kept_answers = store or Store(out_folder / PARTIAL)
    paired = [case for group in chosen_cases(cases, chosen.vlm.pairs).values() for case in group] if panel else []
    keep = [case.id for group in chosen_cases(cases).values() for case in group] + [case.id for case in paired]
    targets = _judged_as_given(cases, "target", judge, clock)
    sources = _judged_as_given(cases, "source", judge, clock)
    answers = {}
    for name, model in models.items():
        CONSOLE.print(f"{name}: {len(cases)} cases, {len(chosen.seeds)} seed(s), NFE {model.nfe}")
        answers[name] = answer(model, cases, chosen.seeds, judge, keep, panel, kept_answers, clock)
    spreads, real = _spreads(models, cases, targets, judge, recipe, kept_answers, clock)
    with clock.phase("statistics"):
        metrics_of = {
            name: {
                **_model_metrics(model, answers[name], targets, recipe),
                "diversity": diversity.diversity_metrics(spreads[name], spreads.get("teacher", {}), real, recipe),
            }
            for name, model in models.items()
        }
        ceiling = {
            **_benches(targets, recipe),
            "beside": beside_metrics(targets, targets, recipe),
            "diversity": diversity.diversity_metrics(real, spreads.get("teacher", {}), real, recipe),
        }
        comparisons = compare_answers(answers, recipe, compared)
    metrics = {
        "recipe": recipe_hash(recipe),
        "split": chosen.split,
        "cases": chosen.cases or None,
        "seeds": list(chosen.seeds),
        "judge": judge.name,
        "interval": f"95 % bootstrap over cases and seeds, {chosen.num_bootstrap} resamples",
        "models": metrics_of,
        "ceiling": ceiling,
        "floor": _benches(sources, recipe),
        "comparisons": comparisons,
        "few_step_selection": [dict(row) for row in selection],
    }
    if panel is not None:
        if paired and len(models) > 1:
            metrics["preference"] = preferences(panel, answers, paired, chosen.seeds[0], recipe)
        metrics["vlm"] = panel_metrics(panel, answers, compared, recipe)
        write_verdicts(answers, out_folder / "evaluation" / "vlm.jsonl")
    with clock.phase("files"):
        write_answers(answers, out_folder / "evaluation" / "cases.jsonl")
        write_grids(cases, answers, chosen.seeds[0], out_folder / "samples" / "evaluation")
    metrics["seconds"] = clock.seconds()
    write_bytes(out_folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
    if store is None:
        shutil.rmtree(kept_answers.folder, ignore_errors=True)
    return metrics


def _spreads(
    models: Mapping[str, ModelUnderTest],
    cases: Sequence[Case],
    targets: Answers,
    judge: LocalJudge,
    recipe: Recipe,
    store: Store,
    clock: Clock,
) -> tuple[dict[str, diversity.Spread], diversity.Spread]:
    """Spread of the answers to one prompt, of every model and of the world itself, where one is defined."""
    several = diversity.answered_often(cases)
    unit = diversity.unit_of(targets) if several else None
    if unit is None:
        return {name: {} for name in models}, {}
    spreads = {
        name: diversity.model_spread(model, several, unit, judge, store, clock) for name, model in models.items()
    }
    if recipe.evaluation.cases or not all(is_of_world(case, recipe.evaluation.split) for case in several):
        return spreads, {}
    with clock.phase("cases"):
        return spreads, diversity.world_spread(several, unit, judge, recipe)


def _judged_as_given(
    cases: Sequence[Case], which: Literal["target", "source"], judge: LocalJudge, clock: Clock
) -> Answers:
    """Every case answered by its own target (the ceiling), or edits by their source as it was drawn (the floor)."""
    answers = Answers()
    chosen = [case for case in cases if (case.target if which == "target" else case.source) is not None]
    for part in chunks(chosen, CHUNK):
        given = [case.target if which == "target" else case.source for case in part]
        judge_into(answers, part, [image for image in given if image is not None], 0, judge, clock)
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
    return {
        "nfe": model.nfe,
        "n": len(answers.rows),
        "seconds_per_image": answers.seconds / max(1, len(answers.rows)),
        "sampling": model.sampling,
        **_benches(answers, recipe),
        "frechet": frechet_to(answers, targets),
        "beside": beside_metrics(answers, targets, recipe),
        "vlm": {name: judged(answers, name, recipe) for name in answers.verdicts},
    }


def frechet_to(answers: Answers, targets: Answers) -> dict[str, float | int] | None:
    """Frechet distance of the T2I answers to their targets, each seed against as many: mean over the seeds, and n."""
    real = targets.features_of("t2i_bench")
    seeds = sorted({row.seed for row in answers.rows})
    drawn = [answers.features_of("t2i_bench", seed) for seed in seeds]
    found = [distances.frechet(of_seed, real) for of_seed in drawn if len(of_seed) and len(real)]
    known = [value for value in found if value is not None]
    return {"value": float(np.mean(known)), "n": len(real)} if known else None


def compare_answers(
    answers: Mapping[str, Answers], recipe: Recipe, compared: Sequence[tuple[str, str]] = COMPARED
) -> list[dict[str, Any]]:
    """Paired differences of pairs of models on each benchmark."""
    rows = []
    for a, b in compared:
        for bench in BENCHES.values() if a in answers and b in answers else ():
            first, second = answers[a].by_category(bench), answers[b].by_category(bench)
            if first:
                found = paired_differences(first, second, recipe.evaluation.num_bootstrap)["mean"]
                rows.append(comparison(a, b, bench, found))
    return rows


def selection_cases(recipe: Recipe) -> list[Case]:
    """Those on which the few-step teacher is chosen: none of the split that is reported on."""
    chosen = recipe.evaluation
    split = "search" if chosen.split != "search" else "calibration"
    t2i, editing = (min(SELECTION_CASES, number) for number in (chosen.t2i_cases, chosen.editing_cases))
    return benchmark_cases(recipe.data, chosen, split=split, t2i_cases=t2i, editing_cases=editing)


def select_few_step(
    candidates: Sequence[ModelUnderTest],
    recipe: Recipe,
    judge: LocalJudge | None = None,
    cases: Sequence[Case] | None = None,
    store: Store | None = None,
) -> tuple[ModelUnderTest, list[dict[str, Any]]]:
    """The candidate with the best mean over both benchmarks, and every candidate's score, best first.

    It is chosen on cases that are not reported on: a slice of the search split, or of the calibration split when the
    recipe evaluates on search.
    """
    judge, chosen = judge or LocalJudge(), recipe.evaluation
    cases = selection_cases(recipe) if cases is None else cases
    if not cases:
        return candidates[0], []
    scored = []
    CONSOLE.print(f"choosing the few-step teacher among {len(candidates)}, {len(cases)} cases each")
    for model in candidates:
        found = answer(model, cases, chosen.seeds[:1], judge, store=store)
        tables = [table for table in map(found.by_category, BENCHES.values()) if table]
        score = float(np.mean([np.mean([scores.mean() for scores in table.values()]) for table in tables]))
        scored.append((score, model))
    scored.sort(key=lambda pair: -pair[0])
    rows = [{**model.sampling, "nfe": model.nfe, "score": score, "n": len(cases)} for score, model in scored]
    return scored[0][1], rows
