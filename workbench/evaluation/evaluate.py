"""From models to `metrics.json`: every number with its interval, its NFE, its number of cases and seeds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from workbench.common.clock import Clock
from workbench.common.progress import doing
from workbench.evaluation import diversity
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.answers import Answers, answer, write_answers
from workbench.evaluation.cases.case import BENCHES, Case
from workbench.evaluation.cases.choose import benchmark_cases
from workbench.evaluation.judges.choose import judges_left_out, judges_of, local_judge
from workbench.evaluation.judges.judge import NEEDS_LOCAL, Judge
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.measures import distances
from workbench.evaluation.measures.ocr import chosen_reader
from workbench.evaluation.measures.statistics import bench_intervals, paired_differences, part_intervals
from workbench.evaluation.measuring import Measuring
from workbench.evaluation.metrics_file import (
    MEAN,
    Benches,
    Ceiling,
    Comparison,
    Diversity,
    Floor,
    Metrics,
    ModelMetrics,
    Parts,
    Student,
    Value,
)
from workbench.evaluation.models import ModelUnderTest, given
from workbench.evaluation.panel_metrics import comparison, judge_records, judged, preferences, write_verdicts
from workbench.evaluation.places import EvaluationFiles, first_files
from workbench.evaluation.secondary import secondary_metrics
from workbench.evaluation.sheets import chosen_cases, write_grids
from workbench.recipe.config import Data, Evaluation, Recipe
from workbench.recipe.reading import recipe_hash

SELECTION_CASES = 10
"""Cases a category on which the teacher's best few-step sampling is chosen."""
CONSOLE = Console(markup=False)
WITHOUT_LOCAL = (
    "no local judge: benchmark scores and their comparisons, diversity, Frechet distance, KID, precision, recall, "
    "words right, free choices, counts and order of objects are left out, since they use its scores, features or "
    f"attributes ({NEEDS_LOCAL})"
)
COMPARED = (("student", "teacher_few_step"), ("student", "teacher"), ("teacher_few_step", "teacher"))


def evaluate(
    models: Mapping[str, ModelUnderTest],
    recipe: Recipe,
    out: Path | EvaluationFiles,
    *,
    cases: Sequence[Case] | None = None,
    judges: Sequence[Judge] | None = None,
    selection: Sequence[Mapping[str, Any]] = (),
    store: Store | None = None,
    shared: Store | None = None,
    clock: Clock | None = None,
    compared: Sequence[tuple[str, str]] = COMPARED,
    overrides: Sequence[str] = (),
    student: Student | None = None,
) -> Metrics:
    """Score `models` and write the metrics, the score of every case and contact sheets.

    out: the files to write, or a folder, for `places.first_files` of it. cases, judges: what the recipe chooses when
    absent. selection: how the few-step teacher was chosen, for the record. store: of answers; when absent that in
    `out`, which goes when the metrics are written. shared: keeps what targets and sources score, for other evaluations
    on the same cases. clock: whose phases stand in `seconds`. compared: pairs of models whose differences are given.
    overrides, student: what the command had, and which student is scored, for the record.
    """
    files = first_files(out) if isinstance(out, Path) else out
    chosen, clock = recipe.evaluation, clock or Clock()
    if cases is None:
        with clock.phase("cases"):
            cases = benchmark_cases(recipe.data, chosen)
    judges = judges_of(chosen, cases) if judges is None else judges
    local, num_bootstrap = local_judge(judges), chosen.num_bootstrap
    kept_answers = store or Store(files.partial)
    paired = [case for group in chosen_cases(cases, chosen.vlm.pairs).values() for case in group]
    keep = [case.id for group in chosen_cases(cases).values() for case in group] + [case.id for case in paired]
    reader, unread = chosen_reader(chosen.ocr, cases)
    lines = (judges_left_out(chosen, cases), "" if local else WITHOUT_LOCAL, unread)
    left_out = [line for line in lines if line]
    for line in left_out:
        CONSOLE.print(line, soft_wrap=True)
    with Measuring(reader) as measuring:
        targets = _judged_as_given(cases, "target", local, shared or kept_answers, clock, measuring)
        answers = {}
        for name, model in models.items():
            CONSOLE.print(f"{name}: {len(cases)} cases, {len(chosen.seeds)} seed(s), NFE {model.nfe}")
            doing(name.replace("_", " "))
            answers[name] = answer(model, cases, chosen.seeds, judges, keep, kept_answers, clock, measuring=measuring)
    sources = _judged_as_given(cases, "source", local, shared or kept_answers, clock)
    spreads = _spreads(models, cases, targets, local, kept_answers, clock)
    of_teacher = spreads.get("teacher", {})
    doing("statistics")
    with clock.phase("statistics"):
        metrics = Metrics(
            recipe=recipe_hash(recipe),
            split=chosen.split,
            cases=chosen.cases or None,
            seeds=list(chosen.seeds),
            judge="no local judge" if local is None else local.title,
            interval=f"95 % bootstrap over cases and seeds, {num_bootstrap} resamples",
            models={
                name: _model_metrics(
                    model,
                    answers[name],
                    targets,
                    diversity.diversity_metrics(spreads[name], of_teacher, num_bootstrap),
                    num_bootstrap,
                )
                for name, model in models.items()
            },
            ceiling=Ceiling(
                _benches(targets, num_bootstrap),
                _parts(targets, num_bootstrap),
                secondary_metrics(targets, targets, num_bootstrap),
            ),
            floor=Floor(_benches(sources, num_bootstrap)),
            comparisons=compare_answers(answers, num_bootstrap, compared),
            few_step_selection=[dict(row) for row in selection],
            preference=preferences(judges, answers, paired, chosen.seeds[0], num_bootstrap)
            if paired and len(models) > 1
            else {},
            vlm=judge_records(judges, answers, compared, num_bootstrap),
            left_out=left_out,
            overrides=list(overrides),
            student=student,
        )
    with clock.phase("files"):
        files.verdicts.unlink(missing_ok=True)
        if metrics.vlm:
            write_verdicts(answers, files.verdicts)
        write_answers(answers, cases, files.cases, vars(student) if student else None)
        write_grids(cases, answers, chosen.seeds[0], files.sheets)
    metrics = replace(metrics, seconds=clock.seconds())
    metrics.write(files.metrics)
    if store is None:
        shutil.rmtree(kept_answers.folder, ignore_errors=True)
    return metrics


def _spreads(
    models: Mapping[str, ModelUnderTest],
    cases: Sequence[Case],
    targets: Answers,
    local: LocalJudge | None,
    store: Store,
    clock: Clock,
) -> dict[str, diversity.Spread]:
    """Spread of every model's answers to one prompt, where one is defined."""
    several = diversity.answered_often(cases)
    unit = diversity.unit_of(targets) if several else None
    if unit is None or local is None:
        return {name: {} for name in models}
    return {name: diversity.model_spread(model, several, unit, local, store, clock) for name, model in models.items()}


def _judged_as_given(
    cases: Sequence[Case],
    which: Literal["target", "source"],
    local: LocalJudge | None,
    store: Store,
    clock: Clock,
    measuring: Measuring | None = None,
) -> Answers:
    """Every case answered by its own target (the ceiling), or edits by their source as it was drawn (the floor)."""
    chosen = [case for case in cases if getattr(case, which) is not None]
    judges = [local] if local else []
    return answer(given(which), chosen, [0], judges, store=store, clock=clock, measuring=measuring)


def _benches(answers: Answers, num_bootstrap: int) -> Benches:
    """Benchmarks by the local judge; those without scores are left out."""
    return {
        bench: bench_intervals(table, num_bootstrap)
        for bench in BENCHES.values()
        if (table := answers.by_category(bench))
    }


def _parts(answers: Answers, num_bootstrap: int) -> Parts:
    """The parts of categories by the local judge; benchmarks without any are left out."""
    return {
        bench: part_intervals(table, num_bootstrap)
        for bench in BENCHES.values()
        if (table := answers.by_difficulty(bench))
    }


def _model_metrics(
    model: ModelUnderTest, answers: Answers, targets: Answers, spread: Diversity | None, num_bootstrap: int
) -> ModelMetrics:
    return ModelMetrics(
        nfe=model.nfe,
        n=len(answers.rows),
        seconds_per_image=answers.seconds / max(1, len(answers.rows)),
        sampling=model.sampling,
        benches=_benches(answers, num_bootstrap),
        parts=_parts(answers, num_bootstrap),
        frechet=frechet_to(answers, targets),
        secondary=secondary_metrics(answers, targets, num_bootstrap),
        vlm={name: judged(answers, name, num_bootstrap) for name in answers.verdicts},
        diversity=spread,
    )


def frechet_to(answers: Answers, targets: Answers) -> Value | None:
    """Frechet distance of the T2I answers to their targets, each seed against as many: mean over the seeds, and n."""
    real = targets.features_of("t2i_bench")
    seeds = sorted({row.seed for row in answers.rows})
    drawn = [answers.features_of("t2i_bench", seed) for seed in seeds]
    found = [distances.frechet(of_seed, real) for of_seed in drawn if len(of_seed) and len(real)]
    known = [value for value in found if value is not None]
    return Value(float(np.mean(known)), n=len(real)) if known else None


def compare_answers(
    answers: Mapping[str, Answers], num_bootstrap: int, compared: Sequence[tuple[str, str]] = COMPARED
) -> list[Comparison]:
    """Paired differences of pairs of models on each benchmark, by the local judge."""
    rows = []
    for a, b in compared:
        for bench in BENCHES.values() if a in answers and b in answers else ():
            first, second = answers[a].by_category(bench), answers[b].by_category(bench)
            if first:
                rows.append(comparison(a, b, bench, paired_differences(first, second, num_bootstrap)[MEAN]))
    return rows


def selection_cases(data: Data, evaluation: Evaluation) -> list[Case]:
    """Those on which the few-step teacher is chosen: none of the split that is reported on."""
    return benchmark_cases(data, selection_slice(evaluation), split=selection_split(evaluation))


def selection_split(evaluation: Evaluation) -> str:
    """Split of the world on which the few-step teacher is chosen."""
    return "search" if evaluation.split != "search" else "calibration"


def selection_slice(evaluation: Evaluation) -> Evaluation:
    """What is chosen of that split, as numbers of cases."""
    t2i, editing = (min(SELECTION_CASES, number) for number in (evaluation.t2i_cases, evaluation.editing_cases))
    return replace(evaluation, t2i_cases=t2i, editing_cases=editing)


def select_few_step(
    candidates: Sequence[ModelUnderTest],
    recipe: Recipe,
    local: LocalJudge | None = None,
    cases: Sequence[Case] | None = None,
    store: Store | None = None,
) -> tuple[ModelUnderTest, list[dict[str, Any]]]:
    """The candidate with the best mean over both benchmarks, and every candidate's score, best first.

    It is chosen by the local judge on cases that are not reported on: a slice of the search split, or of the
    calibration split when the recipe evaluates on search.
    """
    cases = selection_cases(recipe.data, recipe.evaluation) if cases is None else cases
    if not cases:
        return candidates[0], []
    scored, judges = [], [local or LocalJudge()]
    CONSOLE.print(f"choosing the few-step teacher among {len(candidates)}, {len(cases)} cases each")
    doing("choosing the few-step teacher")
    for model in candidates:
        found = answer(model, cases, recipe.evaluation.seeds[:1], judges, store=store)
        tables = [table for table in map(found.by_category, BENCHES.values()) if table]
        score = float(np.mean([np.mean([scores.mean() for scores in table.values()]) for table in tables]))
        scored.append((score, model))
    scored.sort(key=lambda pair: -pair[0])
    rows = [{**model.sampling, "nfe": model.nfe, "score": score, "n": len(cases)} for score, model in scored]
    return scored[0][1], rows
