"""Verdicts of the judges other than the local one as numbers with intervals, what is missing among them, preferences.

A case's score is the mean over the seeds that were answered; a case without any answer stands in no mean. Where all of
a category is missing there is no benchmark mean either: it would be that of other categories.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import scipy

from workbench.common.files import write_bytes
from workbench.evaluation.answers import Answers
from workbench.evaluation.cases.case import BENCHES, Case
from workbench.evaluation.judges.judge import LOCAL, Judge, Scored, Unanswered
from workbench.evaluation.judges.vlm_reply import Verdict
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.measures.preference import Match, both_orders, strength_intervals
from workbench.evaluation.measures.statistics import bench_intervals, paired_differences, part_intervals, verdict
from workbench.evaluation.metrics_file import (
    MEAN,
    Agreement,
    Benches,
    Comparison,
    JudgeRecord,
    JudgeScores,
    Missing,
    Parts,
    Preference,
    Value,
)

NOTHING = Interval(math.nan, None, None, 0)
CaseScores = dict[str, dict[str, float | None]]
"""category -> case -> mean over the seeds that were answered, None where none was."""


def case_scores(answers: Answers, judge: str, bench: str) -> CaseScores:
    """Scores of one judge, the local one too, in the order of the answers."""
    replies: Sequence[Scored | Unanswered | None] = (
        [row.judgement for row in answers.rows] if judge == LOCAL else answers.verdicts[judge]
    )
    given: dict[str, dict[str, list[float]]] = {}
    for row, reply in zip(answers.rows, replies, strict=True):
        if row.bench == bench:
            scores = given.setdefault(row.category, {}).setdefault(row.case, [])
            if reply is not None and not isinstance(reply, Unanswered):
                scores.append(reply.score)
    return {
        category: {case: float(np.mean(scores)) if scores else None for case, scores in cases.items()}
        for category, cases in given.items()
    }


def judged(answers: Answers, judge: str, num_bootstrap: int) -> JudgeScores:
    """Both benchmarks by one judge, the number of answers and, with reasons, of those missing."""
    benches: Benches = {}
    parts: Parts = {}
    for bench in BENCHES.values():
        scores = case_scores(answers, judge, bench)
        if not scores:
            continue
        tables = {name: np.array([[v] for v in cases.values() if v is not None]) for name, cases in scores.items()}
        answered = {name: table for name, table in tables.items() if len(table)}
        intervals = bench_intervals(answered, num_bootstrap)
        if len(answered) < len(tables):
            intervals.pop(MEAN, None)
        benches[bench] = {name: intervals.get(name, NOTHING) for name in (*tables, MEAN)}
        if of_parts := part_intervals(_by_difficulty(answers, scores), num_bootstrap):
            parts[bench] = of_parts
    reasons = Counter(reply.reason for reply in answers.verdicts[judge] if isinstance(reply, Unanswered))
    missing = Missing(reasons.total(), dict(reasons.most_common()))
    return JudgeScores(benches, parts, len(answers.rows) - missing.count, missing)


def _by_difficulty(answers: Answers, scores: CaseScores) -> dict[str, dict[str, np.ndarray]]:
    """Category -> difficulty -> scores (cases, 1) of what was answered."""
    difficulties = {row.case: row.difficulty for row in answers.rows if row.difficulty}
    found: dict[str, dict[str, list[list[float]]]] = {}
    for category, cases in scores.items():
        for case, score in cases.items():
            if case in difficulties and score is not None:
                found.setdefault(category, {}).setdefault(difficulties[case], []).append([score])
    return {name: {part: np.array(of) for part, of in sorted(parts.items())} for name, parts in found.items()}


def judged_comparisons(
    answers: Mapping[str, Answers], judge: str, compared: Sequence[tuple[str, str]], num_bootstrap: int
) -> list[Comparison]:
    """Paired differences over the cases that one judge scored for both models."""
    rows = []
    for a, b in compared:
        for bench in BENCHES.values() if a in answers and b in answers else ():
            first, second = case_scores(answers[a], judge, bench), case_scores(answers[b], judge, bench)
            pairs = {name: [(x, second[name][case]) for case, x in cases.items()] for name, cases in first.items()}
            answered = {
                name: np.array([pair for pair in of if None not in pair], float).reshape(-1, 2)
                for name, of in pairs.items()
            }
            if answered and all(len(of) for of in answered.values()):
                left, right = ({name: of[:, [side]] for name, of in answered.items()} for side in (0, 1))
                rows.append(comparison(a, b, bench, paired_differences(left, right, num_bootstrap)[MEAN]))
    return rows


def comparison(a: str, b: str, bench: str, difference: Interval) -> Comparison:
    """A paired difference `a` - `b` with its verdict."""
    return Comparison(a, b, bench, difference.mean, difference.low, difference.high, difference.n,
                      verdict(difference, a, b))  # fmt: skip


def agreement(answers: Mapping[str, Answers], judge: str, other: str = LOCAL) -> Agreement | None:
    """Between one judge and another; None without two models that both have scored."""
    alike = pairs = 0
    ours: list[float] = []
    theirs: list[float] = []
    for bench in BENCHES.values():
        scores = {name: [case_scores(answers[name], by, bench) for by in (other, judge)] for name in answers}
        for first, second in combinations(scores.values(), 2):
            for category in first[0]:
                local, given = _differences(first, second, category)
                if local:
                    pairs += 1
                    alike += np.sign(np.mean(local)) == np.sign(np.mean(given))
                    ours += local
                    theirs += given
    if not pairs:
        return None
    # A constant has no ranks.
    known = len({*ours}) > 1 and len({*theirs}) > 1
    correlation = Value(float(scipy.stats.spearmanr(ours, theirs).statistic), n=len(ours)) if known else None
    return Agreement(int(alike), pairs, correlation, other)


def noise(answers: Mapping[str, Answers], judge: str) -> Value | None:
    """Standard deviation of a judge's scores of one answer, pooled over all answers that it scored repeatedly."""
    asked = [reply for of in answers.values() for reply in of.verdicts.get(judge, ())]
    repeats = [reply.repeats for reply in asked if isinstance(reply, Verdict) and len(reply.repeats) > 1]
    if not repeats:
        return None
    squares = sum(float(np.var(scores)) * len(scores) for scores in repeats)
    return Value(math.sqrt(squares / sum(len(scores) - 1 for scores in repeats)), n=len(repeats))


def _differences(first: Sequence[CaseScores], second: Sequence[CaseScores], category: str) -> list[list[float]]:
    """What two models differ by, case by case, by each judge: over the cases that all judges scored for both."""
    a, b = ([of.get(category, {}) for of in scores] for scores in (first, second))
    rows = [[(x.get(case), y.get(case)) for x, y in zip(a, b, strict=True)] for case in a[0]]
    known = [[x - y for x, y in row if x is not None and y is not None] for row in rows]
    return [[row[at] for row in known if len(row) == len(first)] for at in range(len(first))]


def judge_records(
    judges: Sequence[Judge], answers: Mapping[str, Answers], compared: Sequence[tuple[str, str]], num_bootstrap: int
) -> dict[str, JudgeRecord]:
    """Every further judge: who it is, how much it was asked, the paired differences by its scores, its own noise and
    whether it agrees with the local judge, or with the first of them where there is none."""
    records = {name: record for judge in judges for name, record in judge.records().items()}
    has_local = any(row.judgement is not None for of in answers.values() for row in of.rows)
    first = LOCAL if has_local else next(iter(records), LOCAL)
    return {
        name: replace(
            record,
            comparisons=judged_comparisons(answers, name, compared, num_bootstrap),
            agreement=agreement(answers, name, first) if name != first else None,
            noise=noise(answers, name),
        )
        for name, record in records.items()
    }


def preferences(
    judges: Sequence[Judge], answers: Mapping[str, Answers], cases: Sequence[Case], seed: int, num_bootstrap: int
) -> dict[str, Preference]:
    """Judge that compares -> Bradley-Terry log strength of every model from the kept images of `cases`, each pair shown
    both ways."""
    names = list(answers)
    pairs = [(case, a, b) for case in cases for a, b in combinations(range(len(names)), 2)]
    images = {(case.id, m): answers[names[m]].images[case.id, seed] for case in cases for m in range(len(names))}
    shown = [(case, images[case.id, i], images[case.id, j]) for case, a, b in pairs for i, j in ((a, b), (b, a))]
    found = {}
    for name, choices in (item for judge in judges for item in judge.prefer(shown).items()):
        matches, agreed = [], 0
        for (case, a, b), first, second in zip(pairs, choices[::2], choices[1::2], strict=True):
            if not isinstance(first, Unanswered) and not isinstance(second, Unanswered):
                matches.append(Match(case.id, a, b, both_orders(first.winner, second.winner)))
                agreed += first.winner != second.winner
        strengths = strength_intervals(matches, len(names), num_bootstrap) if matches else []
        found[name] = Preference(
            pairs=len(matches),
            missing=len(pairs) - len(matches),
            orders_agree=agreed / len(matches) if matches else None,
            log_strength=dict(zip(names, strengths, strict=False)),
        )
    return found


def write_verdicts(answers: Mapping[str, Answers], path: Path) -> None:
    """One JSON object a judge, model, case and seed: the full reply, or why there is none."""
    lines = []
    for model, of_model in answers.items():
        for judge, verdicts in of_model.verdicts.items():
            for row, reply in zip(of_model.rows, verdicts, strict=True):
                place = {"judge": judge, "model": model, "bench": row.bench, "category": row.category,
                         "case": row.case, "seed": row.seed}  # fmt: skip
                match reply:
                    case Unanswered():
                        lines.append(json.dumps({**place, "score": None, "missing": reply.reason}))
                    case _:
                        lines.append(json.dumps({**place, "score": reply.score, **reply.details()}))
    write_bytes(path, ("\n".join(lines) + "\n").encode())
