"""What single scores miss, on the judge's features (n, D): distance of distributions, and diversity in a prompt."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist


def gaussian_frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson & Landau 1982); the trace of the root from eigenvalues,
    which are real and non-negative since C_a C_b is similar to a positive semi-definite matrix."""
    roots = np.sqrt(np.clip(np.linalg.eigvals(cov_a @ cov_b).real, 0, None))
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum())


def frechet(a: np.ndarray, b: np.ndarray) -> float | None:
    """Frechet distance between Gaussians fitted to features (n_a, D) and (n_b, D); None with fewer than two of either.
    It is biased upwards for small n: compare only at equal n."""
    if min(len(a), len(b)) < 2:
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    return gaussian_frechet(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def mean_pairwise_distance(features: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of features (n, D); n of at least 2."""
    return float(pdist(features.astype(np.float64)).mean())
