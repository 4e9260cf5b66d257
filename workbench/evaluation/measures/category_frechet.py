"""Frechet distance within a category, with what real pictures differ by among themselves."""

from __future__ import annotations

import numpy as np

from workbench.evaluation.measures.distances import frechet
from workbench.evaluation.metrics_file import Bounded

ENOUGH = 600
"""With fewer pictures most of the distance is their small number."""
SPLITS = 8


def category_frechet(drawn: np.ndarray, real: np.ndarray, enough: int = ENOUGH, seed: int = 0) -> Bounded:
    """Distance of features (n, D) of answers from those of as many targets, with what real ones differ by among
    themselves (`real_distance`). For fewer than `enough` only n is given."""
    n = min(len(drawn), len(real))
    if n < enough:
        return Bounded(n=n)
    distance = frechet(drawn, real)
    assert distance is not None
    return Bounded(distance, real=real_distance(real, seed), n=n)


def real_distance(real: np.ndarray, seed: int = 0) -> float:
    """What two independent sets of n real pictures differ by: half of what halves of one set do, since the distance of
    equal distributions falls as 1 / n (Chong & Forsyth 2020, section 3). real: (n, D). Mean of SPLITS splits."""
    generator = np.random.default_rng(seed)
    half = len(real) // 2
    found = []
    for _ in range(SPLITS):
        order = generator.permutation(len(real))
        distance = frechet(real[order[:half]], real[order[half : 2 * half]])
        assert distance is not None
        found.append(distance)
    return float(np.mean(found)) / 2
