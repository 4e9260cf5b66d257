"""Scores of simulated studies: a run's effect, a case's, one of arm and case, and a residual of run and case."""

from __future__ import annotations

import numpy as np

KEYS = (("t2i_bench", "portrait"), ("t2i_bench", "text"), ("editing_bench", "style"))
NUM_CASES = 16
RESIDUAL = 0.2
RESIDUAL_OF_SCORE = RESIDUAL * np.sqrt((2 / 16 + 1 / 4) / NUM_CASES)
"""Standard deviation of a run's score on given cases, of the residual alone."""
Study = list[dict[tuple[str, str], np.ndarray]]


def simulated(
    generator: np.random.Generator, num_arms: int, seeds: int, seed_sd: float, interaction_sd: float,
    effects: np.ndarray | None = None,
) -> Study:  # fmt: skip
    """A table of each arm. effects: (A,) of the arms."""
    shape = (num_arms, len(KEYS), seeds, NUM_CASES)
    scores = RESIDUAL * generator.standard_normal(shape) + seed_sd * generator.standard_normal((num_arms, 1, seeds, 1))
    scores += interaction_sd * generator.standard_normal((num_arms, len(KEYS), 1, NUM_CASES))
    scores += generator.standard_normal((len(KEYS), 1, NUM_CASES))
    if effects is not None:
        scores += effects[:, None, None, None]
    return [dict(zip(KEYS, arm, strict=True)) for arm in scores]
