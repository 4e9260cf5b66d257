"""Two-level screening designs: 16 runs for up to 8 factors, 32 for up to 16, and which factors matter.

Columns are the products of an odd number of the base factors. Any product of two columns is a product of an even
number, so no main effect is confounded with another or with an interaction of two factors: resolution IV (Box, Hunter
and Hunter, Statistics for Experimenters, 2005, chapter 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from scipy import stats

from studies.analysis.families import holm_levels


@dataclass(frozen=True)
class Effect:
    """Mean score at the high level less that at the low one. p: of none at all. shown: by Holm's procedure."""

    factor: str
    value: float
    standard_error: float
    p: float
    shown: bool


def base_factors(num_runs: int) -> np.ndarray:
    """(num_runs, log2 num_runs) levels -1 and 1 in every combination."""
    return np.array([*product((-1, 1), repeat=num_runs.bit_length() - 1)])


def interactions(num_runs: int, odd: bool) -> np.ndarray:
    """(num_runs, M) products of one, three, five... base factors, or of two, four...; single factors first."""
    base = base_factors(num_runs)
    sizes = range(1 if odd else 2, base.shape[1] + 1, 2)
    chosen = [base[:, names].prod(axis=1) for size in sizes for names in combinations(range(base.shape[1]), size)]
    return np.array(chosen).T


def design(num_factors: int) -> np.ndarray:
    """(runs, num_factors) levels -1 and 1 of the smallest of the two designs. Raises: ValueError beyond 16 factors."""
    if not 1 <= num_factors <= 16:
        raise ValueError(f"{num_factors} factors: a design has 1 to 16")
    return interactions(16 if num_factors <= 8 else 32, odd=True)[:, :num_factors]


def pseudo_standard_error(contrasts: np.ndarray) -> float:
    """Standard error of a contrast when few are active: 1.5 medians of the absolute values below 2.5 times the same
    of all (Lenth, Technometrics 31, 1989)."""
    absolute = np.abs(contrasts)
    return 1.5 * float(np.median(absolute[absolute <= 2.5 * 1.5 * np.median(absolute)]))


def effects(factors: Sequence[str], scores: np.ndarray) -> list[Effect]:
    """Main effects of the factors from the score of every run of `design(len(factors))`, in its order."""
    levels = design(len(factors))
    num_runs = len(levels)
    everything = np.hstack([interactions(num_runs, odd=True), interactions(num_runs, odd=False)])
    contrasts = everything.T @ scores / (num_runs / 2)
    error = pseudo_standard_error(contrasts)
    found = contrasts[: len(factors)]
    # Lenth's degrees of freedom: a third of the number of contrasts.
    p = 2 * stats.t.sf(np.abs(found) / error, len(contrasts) / 3) if error else np.where(found, 0.0, 1.0)
    levels_of = holm_levels(p.tolist())
    return [
        Effect(name, float(value), error, float(of), bool(of <= level))
        for name, value, of, level in zip(factors, found, p, levels_of, strict=True)
    ]
