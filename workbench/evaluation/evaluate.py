"""From models to `metrics.json`: every number with its interval, its NFE, its number of cases and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from datamodules.files import write_bytes
from workbench.config import Recipe, recipe_hash
from workbench.evaluation import features
from workbench.evaluation.answers import CHUNK, Answers, answer, chunks, judge_into, write_answers
from workbench.evaluation.benchmark import BENCHES, Case, openmoji_cases
from workbench.evaluation.grids import chosen_cases, write_grids
from workbench.evaluation.judge import LocalJudge
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.statistics import bench_intervals, paired_differences, verdict

SELECTION_CASES = 10
"""Cases a category on which the teacher's best few-step sampling is chosen."""
DIVERSITY_PROMPTS = 4
"""T2I cases a category that are answered several times over to see the diversity within a prompt."""
DIVERSITY_SAMPLES = 4
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
    selection: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Score `models` and write `metrics.json`, `evaluation/cases.jsonl` and `samples/evaluation/*.png` in `out_folder`.

    cases: the recipe's slices of the world when absent. selection: how the few-step teacher was chosen, for the record.
    """
    chosen, judge = recipe.evaluation, judge or LocalJudge()
    if cases is None:
        cases = benchmark_cases(recipe, chosen.split, chosen.t2i_cases, chosen.editing_cases)
    keep = [case.id for group in chosen_cases(cases).values() for case in group]
    targets = Answers()
    for part in chunks([case for case in cases if case.target is not None], CHUNK):
        judge_into(targets, part, [case.target for case in part if case.target is not None], 0, judge)
    answers, metrics_of = {}, {}
    groups = chosen_cases(cases, DIVERSITY_PROMPTS).items()
    several = [case for (task, _), group in groups if task == "t2i" for case in group]
    for name, model in models.items():
        CONSOLE.print(f"{name}: {len(cases)} cases, {len(chosen.seeds)} seed(s), NFE {model.nfe}")
        answers[name] = answer(model, cases, chosen.seeds, judge, keep)
        metrics_of[name] = _model_metrics(model, answers[name], targets, recipe)
        metrics_of[name]["diversity"] = _diversity(model, several, targets, judge, recipe)
    metrics = {
        "recipe": recipe_hash(recipe),
        "split": chosen.split,
        "seeds": list(chosen.seeds),
        "judge": judge.name,
        "interval": f"95 % bootstrap over cases and seeds, {chosen.num_bootstrap} resamples",
        "models": metrics_of,
        "ceiling": _benches(targets, recipe),
        "comparisons": compare_answers(answers, recipe),
        "few_step_selection": [dict(row) for row in selection],
    }
    write_answers(answers, out_folder / "evaluation" / "cases.jsonl")
    write_grids(cases, answers, chosen.seeds[0], out_folder / "samples" / "evaluation")
    write_bytes(out_folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
    return metrics


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
    }


def _diversity(
    model: ModelUnderTest, cases: Sequence[Case], targets: Answers, judge: LocalJudge, recipe: Recipe
) -> dict[str, Any] | None:
    """Mean pairwise feature distance among answers to the same prompt, in units of the mean distance between the
    targets of different prompts; None without T2I cases and their targets."""
    real = targets.features_of("t2i_bench")
    if not cases or len(real) < 2:
        return None
    repeats = Answers()
    for k in range(DIVERSITY_SAMPLES):
        for part in chunks(cases, CHUNK):
            images, _ = model.draw(part, [case.noise_seed(f"diversity/{k}") for case in part])
            judge_into(repeats, part, images, k, judge)
    # (samples, cases, D): the k-th sample of every case stands together.
    drawn = np.stack(repeats.features).reshape(DIVERSITY_SAMPLES, len(cases), -1)
    unit = features.mean_pairwise_distance(real)
    spread = np.array([[features.mean_pairwise_distance(drawn[:, i]) / unit] for i in range(len(cases))])
    interval = bench_intervals({"t2i": spread}, recipe.evaluation.num_bootstrap)["mean"]
    return {**interval.as_dict(), "samples": DIVERSITY_SAMPLES}


def compare_answers(answers: Mapping[str, Answers], recipe: Recipe) -> list[dict[str, Any]]:
    """Paired differences of the models in COMPARED on each benchmark."""
    rows = []
    for a, b in COMPARED:
        for bench in BENCHES.values() if a in answers and b in answers else ():
            first, second = answers[a].by_category(bench), answers[b].by_category(bench)
            if first:
                found = paired_differences(first, second, recipe.evaluation.num_bootstrap)["mean"]
                rows.append(
                    {"a": a, "b": b, "bench": bench, "difference": found.mean, "low": found.low, "high": found.high,
                     "n": found.n, "verdict": verdict(found, a, b)}
                )  # fmt: skip
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


def print_metrics(metrics: Mapping[str, Any], console: Console) -> None:
    """The headline table and the verdicts."""
    title = (
        f"T2I-Bench and Editing-Bench, 1 to 5: split {metrics['split']}, seeds {metrics['seeds']}, {metrics['judge']}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("model", "NFE", "images", "T2I", "Editing", "diversity", "Frechet"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, model in metrics["models"].items():
        means = [_cell(model[bench]["mean"]) if bench in model else "-" for bench in BENCHES.values()]
        diversity = f"{model['diversity']['mean']:.2f}" if model["diversity"] else "-"
        frechet = f"{model['frechet']['value']:.0f}\nn={model['frechet']['n']}" if model["frechet"] else "-"
        cost = f"{model['n']}\n{model['seconds_per_image']:.3f} s"
        table.add_row(name.replace("_", " "), str(model["nfe"]), cost, *means, diversity, frechet)
    console.print(table)
    for row in metrics["comparisons"]:
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}" if row["low"] is not None else "no interval"
        console.print(
            f"{row['a']} against {row['b']} on {row['bench']}: {row['difference']:+.3f} ({interval}, n={row['n']}): "
            f"{row['verdict']}"
        )


def _cell(interval: Mapping[str, Any]) -> str:
    if interval["low"] is None:
        return f"{interval['mean']:.2f}"
    return f"{interval['mean']:.2f}\n{interval['low']:.2f} to {interval['high']:.2f}"
