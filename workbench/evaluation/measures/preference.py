"""Pairwise preference: which of two models' answers is better, in both orders, and the strengths that follow.

Bradley & Terry (1952): P(i beats j) = s_i / (s_i + s_j). Strengths are logs, with mean 0, so a difference of 0.41 is a
win rate of 60 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.measures.statistics import CONFIDENCE

PRIOR_WINS = 0.5
"""Added to both sides of every pair of models that were compared: a model that won all has a finite strength."""
TOLERANCE, MAX_ITERATIONS = 1e-7, 10_000


@dataclass(frozen=True)
class Match:
    """Models a and b on one case. won: 1 if a was preferred in both orders, 0 if b was, 0.5 where the order decided."""

    case: str
    a: int
    b: int
    won: float


def both_orders(first: str, second: str) -> float:
    """What `a` won where `first` is the winner ("A" or "B") with a shown first, `second` with a shown second."""
    return ((first == "A") + (second == "B")) / 2


def wins_of(matches: Sequence[Match], num_models: int) -> np.ndarray:
    """(M, M): wins of row over column."""
    wins = np.zeros((num_models, num_models))
    for match in matches:
        wins[match.a, match.b] += match.won
        wins[match.b, match.a] += 1 - match.won
    return wins


def bradley_terry(wins: np.ndarray, prior_wins: float = PRIOR_WINS) -> np.ndarray:
    """(M,) log strengths of mean 0 from wins (M, M), by Hunter's MM iteration (2004):
    s_i <- W_i / sum_j n_ij / (s_i + s_j). Models that were never compared get 0."""
    games = wins + wins.T
    wins = wins + prior_wins * (games > 0)
    games = wins + wins.T
    strengths = np.ones(len(wins))
    for _ in range(MAX_ITERATIONS):
        rates = (games / (strengths[:, None] + strengths[None])).sum(1)
        updated = np.where(rates > 0, wins.sum(1) / np.maximum(rates, 1e-300), 1.0)
        updated /= np.exp(np.log(updated).mean())
        done = np.abs(np.log(updated / strengths)).max() < TOLERANCE
        strengths = updated
        if done:
            break
    logs = np.log(strengths)
    return np.asarray(logs - logs.mean())


def strength_intervals(
    matches: Sequence[Match], num_models: int, num_resamples: int = 1000, seed: int = 0
) -> list[Interval]:
    """Log strength of every model, with a percentile interval over cases redrawn with all their matches."""
    cases = sorted({match.case for match in matches})
    rows = {case: row for row, case in enumerate(cases)}
    of_case = np.zeros((len(cases), num_models, num_models))
    for match in matches:
        of_case[rows[match.case]] += wins_of([match], num_models)
    point = bradley_terry(of_case.sum(0))
    if len(cases) < 2:
        return [Interval(float(value), None, None, len(cases)) for value in point]
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=num_resamples)
    replicates = np.stack([bradley_terry(np.tensordot(counts, of_case, 1)) for counts in drawn])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    return [Interval(float(v), float(a), float(b), len(cases)) for v, a, b in zip(point, low, high, strict=True)]
