"""Diversity within a prompt: how far apart the answers to one prompt lie, against those of the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.common.clock import Clock
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.answers import Answers, answer
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.measures import distances
from workbench.evaluation.measures.statistics import bench_intervals
from workbench.evaluation.metrics_file import Diversity, Value
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.sheets import chosen_cases

DIVERSITY_PROMPTS = 4
"""T2I cases a category that are answered several times over."""
DIVERSITY_SAMPLES = 4
Spread = dict[str, float]
"""Case -> spread of the answers to it."""


def unit_of(targets: Answers) -> float | None:
    """Mean feature distance between the targets of different prompts; None for fewer than two that differ."""
    real = targets.features_of("t2i_bench")
    return (distances.mean_pairwise_distance(real) if len(real) > 1 else 0.0) or None


def answered_often(cases: Sequence[Case]) -> list[Case]:
    """The T2I cases that are answered several times over."""
    groups = chosen_cases(cases, DIVERSITY_PROMPTS).items()
    return [case for (task, _), group in groups if task == "t2i" for case in group]


def model_spread(
    model: ModelUnderTest, cases: Sequence[Case], unit: float, judge: LocalJudge, store: Store, clock: Clock
) -> Spread:
    """Mean pairwise feature distance among the model's answers to each case, in units of `unit`."""
    repeats = answer(model, cases, range(DIVERSITY_SAMPLES), [judge], store=store, clock=clock, stream="diversity/")
    # (samples, cases, D): the k-th sample of every case stands together.
    drawn = np.stack(repeats.features).reshape(DIVERSITY_SAMPLES, len(cases), -1)
    return {case.id: distances.mean_pairwise_distance(drawn[:, i]) / unit for i, case in enumerate(cases)}


def diversity_metrics(spread: Spread, teacher: Spread, num_bootstrap: int) -> Diversity | None:
    """Mean spread with its interval, and its ratio to the teacher's over the same prompts."""
    if not spread:
        return None
    mean = bench_intervals({"t2i": np.array(list(spread.values()))[:, None]}, num_bootstrap)["mean"]
    return Diversity(**vars(mean), samples=DIVERSITY_SAMPLES, to_teacher=_ratio(spread, teacher))


def _ratio(spread: Spread, reference: Spread) -> Value | None:
    """Ratio of the means over the prompts that both hold."""
    shared = spread.keys() & reference.keys()
    total = sum(reference[case] for case in shared)
    return Value(sum(spread[case] for case in shared) / total, n=len(shared)) if total > 0 else None
