"""What prompts leave open, against the world: does a model choose as freely as the world does?

A free choice is an attribute that a case's scene has, that its prompt does not name, and that a judge can see: the
colours of signs, letters and backgrounds, skies, grounds. Place and size of the subject of a portrait are read off the
pixels. For each of them the total variation between the model's choices and those of the targets to the same prompts,
(1/2) sum |p - q| in [0, 1] (Levin, Peres & Wilmer 2017, section 4.1), counts how many of the answers would have to
choose otherwise.

With it stand what two independent draws of so many choices from the world differ by, on average, and what a model gets
that always chooses what is commonest in the world.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from workbench.evaluation.metrics_file import Bounded

COLOURS = ("sign", "ink", "background", "sky", "ground")
"""Attributes of which a scene has one value."""
PLACES = ("left-right", "up-down", "size")
BINS = 3
"""So many equally frequent bins of the world's places and sizes."""
BORDER = 0.04
"""Share of the side of the frame that surely shows background."""
FOREGROUND = 40.0
"""Distance in grey levels from the border's median colour beyond which a pixel is the subject's."""
MIN_CHOICES = 2
"""Fewer make no distribution. What so few cases are worth, two draws of the world say: 20 differ by some .2."""
RESAMPLES = 400


def free_choices(named: Sequence[str], scene: Mapping[str, object], seen: Mapping[str, object]) -> dict[str, str]:
    """Choices that were free in an answer to a prompt that names `named`, by what a judge sees in it."""
    return {name: str(seen[name]) for name in COLOURS if name in scene and name not in named and name in seen}


def border_colour(pixels: np.ndarray) -> np.ndarray:
    """Median colour (3,) of the frame of an image (H, W, 3) that surely shows background."""
    height, width = pixels.shape[:2]
    edge = max(1, round(BORDER * min(height, width)))
    frame = np.ones((height, width), bool)
    frame[edge:-edge, edge:-edge] = False
    colour: np.ndarray = np.median(pixels[frame], axis=0)
    return colour


def placement(image: np.ndarray) -> tuple[float, float, float] | None:
    """Middle (x, y) and size of what stands out from the border's colour in an image (H, W, 3) uint8, in shares of its
    sides; None where nothing does."""
    height, width = image.shape[:2]
    pixels = scipy.ndimage.uniform_filter(image.astype(np.float32), (3, 3, 1))
    distance = np.linalg.norm(pixels - border_colour(pixels), axis=2)
    parts, count = scipy.ndimage.label(distance > FOREGROUND)
    if not count:
        return None
    sizes = scipy.ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1))
    # Parts of one drawing may not touch; specks do not count.
    rows, columns = np.nonzero(np.isin(parts, 1 + np.flatnonzero(sizes >= 0.05 * sizes.max())))
    (top, bottom), (left, right) = np.quantile(rows, (0.01, 0.99)), np.quantile(columns, (0.01, 0.99))
    extent = max((bottom - top + 1) / height, (right - left + 1) / width)
    return float(left + right + 1) / 2 / width, float(top + bottom + 1) / 2 / height, float(extent)


def binned(values: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Bin (0 to BINS - 1) of every value, the bins holding equal shares of the `real` ones."""
    return np.searchsorted(np.quantile(real, np.arange(1, BINS) / BINS), values, side="right")


def total_variation(drawn: Sequence[str], real: Sequence[str]) -> float:
    """Between the shares of each choice in two samples."""
    p, q = Counter(drawn), Counter(real)
    return sum(abs(p[name] / len(drawn) - q[name] / len(real)) for name in p | q) / 2


def compared_choices(drawn: Sequence[Sequence[str]], real: Sequence[str], seed: int = 0) -> Bounded | None:
    """Total variation of the choices `drawn` (cases, seeds) from the world's, `real` (cases), with its interval over
    cases redrawn; None for fewer than MIN_CHOICES cases."""
    n = len(real)
    if n < MIN_CHOICES:
        return None
    names = sorted({*real, *(choice for of_case in drawn for choice in of_case)})
    at = {name: column for column, name in enumerate(names)}
    ours, world = np.zeros((n, len(names))), np.zeros((n, len(names)))
    for row, (of_case, choice) in enumerate(zip(drawn, real, strict=True)):
        world[row, at[choice]] = 1
        for one in of_case:
            ours[row, at[one]] += 1 / len(of_case)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    redrawn = np.abs(weights @ (ours - world)).sum(1) / 2
    value = float(np.abs((ours - world).mean(0)).sum() / 2)
    shares = world.mean(0)
    pairs = generator.multinomial(n, shares, size=(RESAMPLES, 2)) / n
    # Redrawn values lie too high, by the noise of one more sample: their spread counts, not where they lie.
    half = float(np.quantile(np.abs(redrawn - redrawn.mean()), 0.95))
    return Bounded(
        value=value,
        low=max(0.0, value - half),
        high=min(1.0, value + half),
        real=float(np.abs(pairs[:, 0] - pairs[:, 1]).sum(1).mean() / 2),
        collapsed=float(1 - shares.max()),
        n=n,
    )


def variety(found: Mapping[str, Bounded]) -> Bounded | None:
    """1 - mean total variation over all free choices, in [0, 1], higher being freer; None without any. Its interval has
    the mean of their widths, as if all erred together."""
    if not found:
        return None
    columns = np.array([[of.value, of.low, of.high, of.real, of.collapsed] for of in found.values()], float)
    value, low, high, real, collapsed = (1 - columns.mean(0)).tolist()
    return Bounded(value, low=high, high=low, real=real, collapsed=collapsed, n=min(of.n for of in found.values()))
