"""The motion between two pictures of the same things: a shift, a zoom and a small turn.

Whole pixels by phase correlation (Kuglin & Hines 1975), from there least squares on brightness, coarse to fine (Lucas &
Kanade 1981), to a tenth of a pixel. Pictures are brightness (H, W) in grey levels of 255; a region is (H, W) bool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

LEVELS = (4, 2, 1)
"""Pixels of smoothing, and of the grid on which the motion is sought, coarse to fine."""
LEAST_SIDE = 12
"""Grid points of the shorter side below which a level is left out."""
STEPS, CLOSE = 8, 3e-3
"""Least-squares steps at each level, fewer once a step is as short as this, in grid points."""
SURELY_BETTER = 0.8
"""Misfit of a motion, as a share of that of none, below which it is believed: over a flat region anything fits."""
OUTLIER = 4.0
"""Robust standard deviations of brightness beyond which a pixel has no say in the motion."""
MISFIT_CAP = 40.0
"""Grey levels from which on a pixel is merely wrong."""
MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class Motion:
    """A shift by (dy, dx) pixels, a zoom by 1 + zoom and a small turn, in radians, about the middle."""

    dy: float = 0.0
    dx: float = 0.0
    zoom: float = 0.0
    turn: float = 0.0

    def coordinates(self, shape: tuple[int, ...]) -> np.ndarray:
        """(2, H, W): where each pixel of a picture of this shape goes."""
        y, x = _centred(shape)
        down = y + (shape[0] - 1) / 2 + self.dy + self.zoom * y + self.turn * x
        across = x + (shape[1] - 1) / 2 + self.dx + self.zoom * x - self.turn * y
        return np.stack([down, across])

    def lengths(self, shape: tuple[int, ...]) -> np.ndarray:
        """(H, W): how far each pixel goes."""
        return np.asarray(np.hypot(*(self.coordinates(shape) - np.indices(shape[:2]))))


def found_motion(a: np.ndarray, b: np.ndarray, region: np.ndarray) -> Motion:
    """The motion of `a` inside `region` that gives `b` best, whatever one change of brightness and contrast does."""
    motion = _whole_shift(a, b, region)
    for pixels in LEVELS:
        if pixels > 1 and min(a.shape) < pixels * LEAST_SIDE:
            continue
        coarse_a, coarse_b = (ndimage.gaussian_filter(picture, pixels)[::pixels, ::pixels] for picture in (a, b))
        start = Motion(motion.dy / pixels, motion.dx / pixels, motion.zoom, motion.turn)
        found = _refined(coarse_a, coarse_b, region[::pixels, ::pixels], start)
        motion = Motion(found.dy * pixels, found.dx * pixels, found.zoom, found.turn)
    return motion


def moved_back(picture: np.ndarray, motion: Motion) -> np.ndarray:
    """A picture (H, W) or (H, W, C) from before the motion."""
    if motion == Motion():
        return picture
    if picture.ndim == 3:
        return np.stack([moved_back(picture[..., c], motion) for c in range(picture.shape[2])], axis=-1)
    return np.asarray(ndimage.map_coordinates(picture, motion.coordinates(picture.shape), order=1, mode="nearest"))


def texture(picture: np.ndarray, region: np.ndarray) -> float:
    """By how many grey levels a pixel brightness changes in the direction in which it does least: deviation of the
    slopes about their mean, so that motions along an even ramp or a single edge count as unseen."""
    slopes = np.stack(np.gradient(ndimage.gaussian_filter(picture, LEVELS[-1])))[:, region]
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(np.cov(slopes))[0])))


def _whole_shift(a: np.ndarray, b: np.ndarray, region: np.ndarray) -> Motion:
    """The shift in whole pixels at the peak of the phase correlation, where it explains the region surely better than
    none."""
    window = np.outer(np.hanning(a.shape[0] + 2)[1:-1], np.hanning(a.shape[1] + 2)[1:-1])
    spectra = [np.fft.rfft2((picture - picture.mean()) * window) for picture in (a, b)]
    cross = np.conj(spectra[0]) * spectra[1]
    peak = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9 * np.abs(cross).max() + 1e-12), a.shape)
    at = np.unravel_index(int(peak.argmax()), peak.shape)
    dy, dx = (int(p - n) if p > n // 2 else int(p) for p, n in zip(at, a.shape, strict=True))
    found = Motion(float(dy), float(dx))
    near = abs(dy) < a.shape[0] / 4 and abs(dx) < a.shape[1] / 4
    better = near and _misfit(a, b, region, found) < SURELY_BETTER * _misfit(a, b, region, Motion())
    return found if better else Motion()


def _misfit(a: np.ndarray, b: np.ndarray, region: np.ndarray, motion: Motion) -> float:
    left = (moved_back(b, motion) - a)[region]
    return float(np.abs(left - np.median(left)).clip(max=MISFIT_CAP).mean())


def _refined(a: np.ndarray, b: np.ndarray, region: np.ndarray, motion: Motion) -> Motion:
    """Gauss-Newton on b(motion(x)) = gain a(x) + offset, with Tukey's weights."""
    y, x = (place[region] for place in _centred(a.shape))
    reach, a = max(a.shape) / 2, a[region]
    for _ in range(STEPS):
        back = moved_back(b, motion)
        slope_y, slope_x = (slope[region] for slope in np.gradient(back))
        rows = np.stack([slope_y, slope_x, slope_y * y + slope_x * x, slope_y * x - slope_x * y, a, np.ones_like(a)])
        left = back[region] - a
        centred = left - np.median(left)
        scale = OUTLIER * max(1.0, MAD_TO_DEVIATION * float(np.median(np.abs(centred))))
        weights = np.clip(1 - (centred / scale) ** 2, 0, None) ** 2
        # Not by a matrix product, for which BLAS would start threads that are slower than the sum itself.
        normal = np.einsum("in,jn->ij", rows * weights, rows)
        normal += np.diag(1e-6 * np.maximum(np.diag(normal), 1e-6))
        step = np.linalg.solve(normal, np.einsum("in,n->i", rows, weights * -left))
        motion = Motion(motion.dy + step[0], motion.dx + step[1], motion.zoom + step[2], motion.turn + step[3])
        if max(np.abs(step[:2]).max(), np.abs(step[2:4]).max() * reach) < CLOSE:
            break
    return motion


def _centred(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels, from the middle."""
    y, x = np.indices(shape[:2], dtype=np.float64)
    return y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2
