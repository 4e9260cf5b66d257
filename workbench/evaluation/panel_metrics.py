"""What vision-language judges said, as numbers with intervals, what is missing among them, and preferences.

A case's score is the mean over the seeds that were answered; a case without any answer stands in no mean. Where a whole
category is missing there is no benchmark mean either: it would be that of other categories.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from workbench.common.files import write_bytes
from workbench.evaluation.answers import Answers
from workbench.evaluation.cases.case import BENCHES, Case
from workbench.evaluation.judges.vlm_judge import Panel, Unanswered
from workbench.evaluation.judges.vlm_prompts import WORDING
from workbench.evaluation.judges.vlm_reply import Verdict
from workbench.evaluation.measures.preference import Match, both_orders, strength_intervals
from workbench.evaluation.measures.statistics import Interval, bench_intervals, comparison, paired_differences
from workbench.recipe.config import Recipe

NOTHING = Interval(float("nan"), None, None, 0).as_dict() | {"mean": None}
CaseScores = dict[str, dict[str, float | None]]
"""category -> case -> mean over the seeds that were answered, None where none was."""


def case_scores(answers: Answers, judge: str, bench: str) -> CaseScores:
    """Scores of one judge in the order of the answers."""
    given: dict[str, dict[str, list[float]]] = {}
    for row, said in zip(answers.rows, answers.verdicts[judge], strict=True):
        if row.bench == bench:
            scores = given.setdefault(row.category, {}).setdefault(row.case, [])
            if isinstance(said, Verdict):
                scores.append(said.score)
    return {
        category: {case: float(np.mean(scores)) if scores else None for case, scores in cases.items()}
        for category, cases in given.items()
    }


def judged(answers: Answers, judge: str, recipe: Recipe) -> dict[str, Any]:
    """Both benchmarks by one judge, the number of answers and, with reasons, of those missing."""
    found: dict[str, Any] = {}
    for bench in BENCHES.values():
        scores = case_scores(answers, judge, bench)
        if not scores:
            continue
        tables = {name: np.array([[v] for v in cases.values() if v is not None]) for name, cases in scores.items()}
        whole = {name: table for name, table in tables.items() if len(table)}
        intervals = bench_intervals(whole, recipe.evaluation.num_bootstrap)
        if len(whole) < len(tables):
            intervals.pop("mean", None)
        names = [*tables, "mean"]
        found[bench] = {name: intervals[name].as_dict() if name in intervals else dict(NOTHING) for name in names}
    reasons = Counter(said.reason for said in answers.verdicts[judge] if isinstance(said, Unanswered))
    missing = {"count": reasons.total(), "reasons": dict(reasons.most_common())}
    return {**found, "n": len(answers.rows) - reasons.total(), "missing": missing}


def judged_comparisons(
    answers: Mapping[str, Answers], judge: str, compared: Sequence[tuple[str, str]], recipe: Recipe
) -> list[dict[str, Any]]:
    """Paired differences over the cases that one judge scored for both models."""
    rows = []
    for a, b in compared:
        for bench in BENCHES.values() if a in answers and b in answers else ():
            first, second = case_scores(answers[a], judge, bench), case_scores(answers[b], judge, bench)
            pairs = {name: [(x, second[name][case]) for case, x in cases.items()] for name, cases in first.items()}
            whole = {
                name: np.array([pair for pair in of if None not in pair], float).reshape(-1, 2)
                for name, of in pairs.items()
            }
            if whole and all(len(of) for of in whole.values()):
                left, right = ({name: of[:, [side]] for name, of in whole.items()} for side in (0, 1))
                found = paired_differences(left, right, recipe.evaluation.num_bootstrap)["mean"]
                rows.append(comparison(a, b, bench, found))
    return rows


def panel_metrics(
    panel: Panel, answers: Mapping[str, Answers], compared: Sequence[tuple[str, str]], recipe: Recipe
) -> dict[str, Any]:
    """Of every judge: who it is, how much it was asked, and the paired differences."""
    return {
        judge.name: {
            "model": judge.model,
            "wording": WORDING,
            "asked": judge.asked,
            "from_cache": judge.found,
            "comparisons": judged_comparisons(answers, judge.name, compared, recipe),
        }
        for judge in panel.judges
    }


def preferences(
    panel: Panel, answers: Mapping[str, Answers], cases: Sequence[Case], seed: int, recipe: Recipe
) -> dict[str, Any]:
    """Judge -> Bradley-Terry log strength of every model from the kept images of `cases`, each pair shown both ways."""
    names = list(answers)
    met = [(case, a, b) for case in cases for a, b in combinations(range(len(names)), 2)]
    images = {(case.id, m): answers[names[m]].images[case.id, seed] for case in cases for m in range(len(names))}
    shown = [(case, images[case.id, i], images[case.id, j]) for case, a, b in met for i, j in ((a, b), (b, a))]
    found = {}
    for judge, choices in panel.prefer(shown).items():
        matches, agreed = [], 0
        for (case, a, b), first, second in zip(met, choices[::2], choices[1::2], strict=True):
            if not isinstance(first, Unanswered) and not isinstance(second, Unanswered):
                matches.append(Match(case.id, a, b, both_orders(first.winner, second.winner)))
                agreed += first.winner != second.winner
        strengths = strength_intervals(matches, len(names), recipe.evaluation.num_bootstrap)
        found[judge] = {
            "pairs": len(matches),
            "missing": len(met) - len(matches),
            "orders_agree": agreed / len(matches) if matches else None,
            "log_strength": {name: value.as_dict() for name, value in zip(names, strengths, strict=True)}
            if matches
            else {},
        }
    return found


def write_verdicts(answers: Mapping[str, Answers], path: Path) -> None:
    """One JSON object a judge, model, case and seed: the whole reply, or why there is none."""
    lines = []
    for model, of_model in answers.items():
        for judge, verdicts in of_model.verdicts.items():
            for row, said in zip(of_model.rows, verdicts, strict=True):
                place = {"judge": judge, "model": model, "bench": row.bench, "category": row.category,
                         "case": row.case, "seed": row.seed}  # fmt: skip
                told: dict[str, Any]
                match said:
                    case Verdict():
                        told = {"score": said.score, "overall": said.overall, "sub_scores": said.sub_scores,
                                "failure_modes": list(said.failure_modes), "reason": said.reason}  # fmt: skip
                    case Unanswered():
                        told = {"score": None, "missing": said.reason}
                lines.append(json.dumps({**place, **told}))
    write_bytes(path, ("\n".join(lines) + "\n").encode())
