"""Measures of one answer, one number where its case defines one; none of them is part of a score.

- word: 1 if the local judge reads the word that was asked for, letter by letter, else 0.
- residual noise: standard deviation of what is left on flat areas when the picture's own 5 x 5 mean is taken off, in
  grey levels of 255; from the median, so that the few edges in a flat area do not count.
- target distance (edits with one right answer): mean absolute difference to the exact target, in [0, 1].
- defect (edits that repair): what the source suffers from, so that each defect has a mean of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from workbench.evaluation.cases.case import Case

FLAT_SHARE = 0.25
"""The flattest quarter of a picture counts as flat."""
SMOOTHING, WINDOW = 2.0, 5
"""In pixels: blur before flatness is measured, so that noise hides no flat area; side of the local mean."""

MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""


@dataclass(frozen=True)
class Measures:
    """See above; None where a case defines none, or where nobody recognised what is in the answer."""

    noise: float
    word: float | None = None
    target_distance: float | None = None
    defect: str | None = None


def residual_noise(image: np.ndarray) -> float:
    """Spread of image (H, W, 3) uint8 about its local mean over its flattest quarter, in grey levels."""
    pixels = image.astype(np.float32)
    smooth = ndimage.gaussian_filter(pixels.mean(axis=2), SMOOTHING)
    slope = np.hypot(ndimage.sobel(smooth, axis=0), ndimage.sobel(smooth, axis=1))
    steepest = ndimage.maximum_filter(slope, WINDOW)
    flat = steepest <= np.quantile(steepest, FLAT_SHARE)
    rest = pixels - ndimage.uniform_filter(pixels, (WINDOW, WINDOW, 1))
    return float(MAD_TO_DEVIATION * np.median(np.abs(rest[flat])))


def target_distance(image: np.ndarray, target: np.ndarray) -> float | None:
    """Mean absolute difference of (H, W, 3) uint8 images, 1 being black against white; None for other sizes."""
    if image.shape != target.shape:
        return None
    return float(np.abs(image.astype(np.float32) - target.astype(np.float32)).mean()) / 255


def measure(case: Case, image: np.ndarray, seen: Mapping[str, Any] | None) -> Measures:
    """The measures of an answer (H, W, 3) uint8. seen: attributes that the local judge recognised in it, if it did."""
    asks_word = "word" in case.named and "word" in case.scene
    return Measures(
        noise=residual_noise(image),
        word=float(seen.get("word") == case.scene["word"]) if seen is not None and asks_word else None,
        target_distance=target_distance(image, case.target)
        if case.task == "edit" and case.exact and case.target is not None
        else None,
        defect=case.source_scene.get("quality") if "quality" in case.named else None,
    )
