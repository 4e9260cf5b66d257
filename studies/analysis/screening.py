"""Two-level screening designs: 16 runs for up to 8 factors, 32 for up to 16, and which factors matter.

The columns of a Hadamard matrix of 2^m runs are the products of m base factors. Factors are the products of an odd
number of them. Any product of two such columns is a product of an even number, so no main effect is confounded with
another or with an interaction of two factors: resolution IV (Box, Hunter and Hunter, Statistics for Experimenters,
2005, chapter 6).
"""

from __future__ import annotations

import numpy as np

from studies.analysis.crossed import Contrast, Variance

MIN_FACTORS, MAX_FACTORS = 4, 16
"""Fewer than four would have runs that are alike."""


def columns(num_runs: int, odd: bool) -> np.ndarray:
    """(num_runs, M) levels -1 and 1: products of one, three, five... base factors, or of two, four...; single factors
    first."""
    sizes = {number: number.bit_count() for number in range(1, num_runs)}
    chosen = sorted((number for number, size in sizes.items() if size % 2 == odd), key=lambda number: sizes[number])
    # Sylvester's matrix, entry by entry; scipy's would make every `workbench study` start later.
    return -np.array([[(-1) ** (run & column).bit_count() for column in chosen] for run in range(num_runs)])


def design(num_factors: int) -> np.ndarray:
    """(runs, num_factors) levels -1 and 1 of the smallest of the two designs. Raises: ValueError beyond 4 to 16
    factors."""
    if not MIN_FACTORS <= num_factors <= MAX_FACTORS:
        raise ValueError(f"{num_factors} factors: a design has {MIN_FACTORS} to {MAX_FACTORS}")
    return columns(16 if num_factors <= 8 else 32, odd=True)[:, :num_factors]


def main_effects(num_factors: int) -> np.ndarray:
    """(num_factors, runs) contrasts: mean at the high level less mean at the low one."""
    levels = design(num_factors)
    return levels.T / (len(levels) / 2)


def pseudo_standard_error(contrasts: np.ndarray) -> float:
    """Standard error of a contrast when few are active: 1.5 medians of the absolute values below 2.5 times the same
    of all (Lenth, Technometrics 31, 1989)."""
    absolute = np.abs(contrasts)
    return 1.5 * float(np.median(absolute[absolute <= 2.5 * 1.5 * np.median(absolute)]))


def effects_of_single_runs(num_factors: int, scores: np.ndarray) -> list[Contrast]:
    """Main effects from one score of every run of `design(num_factors)`, in its order. What other seeds would give is
    read from all contrasts of the design, most of which are of nothing: Lenth's pseudo standard error, with a third of
    their number as degrees of freedom."""
    num_runs = len(scores)
    everything = np.hstack([columns(num_runs, odd=True), columns(num_runs, odd=False)])
    contrasts = everything.T @ scores / (num_runs / 2)
    error = Variance(pseudo_standard_error(contrasts) ** 2, len(contrasts) / 3)
    return [Contrast(float(value), error, Variance(0.0, np.inf)) for value in contrasts[:num_factors]]
