"""What single scores miss, on the judge's features (n, D): distances of distributions, coverage, spread."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist, pdist

NEIGHBOURS = 3
"""k of the manifold's balls."""
Z_95 = 1.96


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


def standardised(features: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Features less the real ones' mean, over their standard deviation: no dimension weighs by its scale alone."""
    return np.asarray((features - real.mean(0)) / np.maximum(real.std(0), 1e-6), np.float64)


def kid(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float] | None:
    """Kernel distance of features (n, D) with its 95 % interval; None for fewer than two. Rows may be paired (an answer
    and its target): terms of a row with itself are left out, which keeps the estimate unbiased at any n, so it may fall
    below 0, and it is exactly 0 for equal sets.

    (1 / n(n-1)) sum_{i != j} k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i) (Gretton et al. 2012, eq. 4) with
    k(x, y) = (x.y / D + 1)^3 (Binkowski et al. 2018); standard error 2 std_i(mean_j h_ij) / sqrt(n).
    """
    if len(a) != len(b):
        raise ValueError(f"equal numbers of features are needed, not {len(a)} and {len(b)}")
    n, dims = a.shape if len(a) else (0, 1)
    if n < 2:
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x @ y.T / dims + 1) ** 3)

    cross = kernel(a, b)
    h = kernel(a, a) + kernel(b, b) - cross - cross.T
    np.fill_diagonal(h, 0)
    rows = h.sum(1) / (n - 1)
    value, half = float(rows.mean()), float(Z_95 * 2 * rows.std(ddof=1) / np.sqrt(n))
    return value, value - half, value + half


def coverage(points: np.ndarray, support: np.ndarray, k: int = NEIGHBOURS) -> float | None:
    """Share of `points` (n, D) inside any ball around a point of `support` (m, D) that reaches its k-th neighbour
    (Kynkaanniemi et al. 2019); None for m <= k or n = 0. Precision: drawn points inside the support of real ones.
    Recall: real points inside the support of drawn ones.
    """
    if len(support) <= k or not len(points):
        return None
    radii = np.sort(cdist(support, support), axis=1)[:, k]
    return float((cdist(points, support) <= radii[None]).any(axis=1).mean())
