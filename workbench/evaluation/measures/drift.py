"""What an edit did to all that had to stay: how far it moved, and how much its colour changed.

Where the right answer is known, what had to stay is where it equals the source; where nothing does (a new style), the
whole picture keeps its place and no colour is compared. Where no right answer is known, for photographs above all, it
is where source and answer still agree once the answer is moved back and one change of colour common to all of it is
taken off: pixels that differ by no more than a few robust standard deviations. There a motion counts only if it
explains the pixels clearly better than none, so that below half a pixel it may read 0.

- displacement: mean length of the motion (`motion`) that takes the reference's pixels to the answer's, in percent of
  the longer side.
- colour difference: mean CIE76 Delta E (2.3 is just noticeable) between the reference and the answer moved back,
  both smoothed within the region, so that texture and edges do not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from workbench.evaluation.measures.motion import (
    MAD_TO_DEVIATION,
    SURELY_BETTER,
    Motion,
    found_motion,
    moved_back,
    texture,
)

LONGEST = 256
"""Pixels: larger pictures are reduced to this longer side first."""
SAME_ASPECT = 0.05
"""By so much the aspect ratios of two pictures may differ; they are brought to one size."""
LEAST_SIDE = 16
"""Pixels of the shorter side, reduced, below which nothing is measured."""
SAME_LEVELS = 4
"""Grey levels by which source and right answer may differ where nothing was to change."""
LEAST_SHARE = 0.05
"""Of the picture that must have had to stay for its colour to be compared."""
LEAST_AGREEMENT, LEAST_CORRELATION = 0.5, 0.5
"""Of the picture on which source and answer must agree where no right answer is known, and of their brightness there:
less is chance."""
LEAST_TEXTURE = 1.0
"""Grey levels a pixel below which the noise of an answer passes for motion (see `texture`): above it, noise of 2.5
levels moves what is found by less than a tenth of a pixel."""
MOST_MOTION = 10.0
"""Percent of the longer side: where no right answer is known, pictures this far apart are two pictures."""
AGREE, AGREE_LEVELS = 3.0, (10.0, 24.0)
"""Robust standard deviations of colour beyond which a pixel does not agree, and the grey levels between which they are
kept: a picture that differs everywhere must not pass for one that agrees with itself."""
MOST_CAST = 40.0
"""Grey levels of a colour change common to the picture beyond which it passes for one that was asked for."""
COLOUR_BLUR = 3.0
"""Pixels of smoothing before colours are compared."""
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(1)


@dataclass(frozen=True)
class Drift:
    """Of one edit. displacement: None where what had to stay is too flat to show a motion. colour: None where nothing
    keeps its colour. share: of the picture that had to stay, by which both were measured."""

    displacement: float | None
    colour: float | None
    share: float


def drift(answer: np.ndarray, source: np.ndarray, target: np.ndarray | None = None) -> Drift | None:
    """What `answer` did to all that had to stay in `source`, (H, W, 3) uint8 each, of any sizes. target: the only right
    answer, where there is one. None where too little agrees, or the pictures are of different shapes or tiny."""
    size = _reduced_size(source)
    given = [answer, source] if target is None else [answer, source, target]
    if min(size) < LEAST_SIDE or not all(_same_aspect(picture, source) for picture in given):
        return None
    pictures = [_resized(picture, size) for picture in given]
    return _unguided(*pictures) if target is None else _guided(*pictures)


def _guided(answer: np.ndarray, source: np.ndarray, target: np.ndarray) -> Drift:
    """By where the right answer equals the source."""
    same = np.abs(target - source).max(axis=2) <= SAME_LEVELS
    stays = ndimage.binary_erosion(same, iterations=2, border_value=1)
    share = float(stays.mean())
    if share < LEAST_SHARE:
        everywhere = np.ones(stays.shape, bool)
        return Drift(_percent(_motion(target, answer, everywhere), everywhere), None, share)
    motion = _motion(source, answer, stays)
    colour = colour_difference(source, moved_back(answer, motion or Motion()), stays)
    return Drift(_percent(motion, stays), colour, share)


def _unguided(answer: np.ndarray, source: np.ndarray) -> Drift | None:
    """By where source and answer agree, which must show the motion itself: what changed must not pass for one."""
    a, b = source @ _LUMA, answer @ _LUMA
    motion = _motion(source, answer, np.ones(a.shape, bool))
    if motion and not (_believed(a, b, motion) and _is_textured(a, _agreement(source, moved_back(answer, motion))[0])):
        motion = Motion()
    back = moved_back(answer, motion or Motion())
    agree, cast = _agreement(source, back)
    displacement, share = _percent(motion if _is_textured(a, agree) else None, agree), float(agree.mean())
    if cast > MOST_CAST or share < LEAST_AGREEMENT or (displacement or 0) > MOST_MOTION:
        return None
    if motion and not _correlation(a[agree], (back @ _LUMA)[agree]) >= LEAST_CORRELATION:
        return None
    return Drift(displacement, colour_difference(source, back, agree), share)


def _agreement(source: np.ndarray, back: np.ndarray) -> tuple[np.ndarray, float]:
    """Where two pictures agree (H, W) but for one change of colour, and by how many grey levels that changes most."""
    difference = back - source
    # The commonest change of colour, by its median, then what is within reach of it.
    cast = np.median(difference, axis=(0, 1))
    left = ndimage.gaussian_filter(np.abs(difference - cast).max(axis=2), 1.0)
    level = float(np.clip(AGREE * MAD_TO_DEVIATION * np.median(left), *AGREE_LEVELS))
    return ndimage.binary_erosion(left <= level, border_value=1), float(np.abs(cast).max())


def _is_textured(brightness: np.ndarray, region: np.ndarray) -> bool:
    return bool(region.sum() > 2 and texture(brightness, region) >= LEAST_TEXTURE)


def _motion(reference: np.ndarray, moved: np.ndarray, region: np.ndarray) -> Motion | None:
    """See `found_motion`; None where the region is too flat to show one."""
    a, b = reference @ _LUMA, moved @ _LUMA
    return found_motion(a, b, region) if _is_textured(a, region) else None


def _believed(a: np.ndarray, b: np.ndarray, motion: Motion) -> bool:
    """Whether a motion explains better than none those pixels that either of them explains: over flat ones any fits."""
    a, b = (ndimage.gaussian_filter(picture, 1.0) for picture in (a, b))
    still, moved = (np.abs(left - np.median(left)) for left in (b - a, moved_back(b, motion) - a))
    explained = np.minimum(still, moved) < AGREE_LEVELS[0]
    return bool(explained.any() and moved[explained].mean() < SURELY_BETTER * still[explained].mean())


def colour_difference(a: np.ndarray, b: np.ndarray, region: np.ndarray) -> float:
    """Mean CIE76 Delta E over `region` (H, W) between pictures (H, W, 3) in grey levels of 255, smoothed within it."""
    weight = np.maximum(ndimage.gaussian_filter(region.astype(float), COLOUR_BLUR), 1e-6)[..., None]
    smooth = [
        ndimage.gaussian_filter(picture * region[..., None], (COLOUR_BLUR, COLOUR_BLUR, 0)) / weight
        for picture in (a, b)
    ]
    return float(np.linalg.norm(lab(smooth[0]) - lab(smooth[1]), axis=2)[region].mean())


def lab(image: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB (..., 3) in grey levels of 255 (CIE 15:2004; IEC 61966-2-1)."""
    share = np.clip(image / 255, 0, 1)
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, of values (n,); 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-9))


def _percent(motion: Motion | None, region: np.ndarray) -> float | None:
    """Mean length over the region in percent of the longer side."""
    if motion is None or not region.any():
        return None
    return 100 * float(motion.lengths(region.shape)[region].mean()) / max(region.shape)


def _reduced_size(image: np.ndarray) -> tuple[int, int]:
    """Height and width with a longer side of at most LONGEST."""
    factor = min(1.0, LONGEST / max(image.shape[:2]))
    return max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor))


def _same_aspect(a: np.ndarray, b: np.ndarray) -> bool:
    (height, width), (other_height, other_width) = a.shape[:2], b.shape[:2]
    return bool(abs(np.log(width / height) - np.log(other_width / other_height)) < SAME_ASPECT)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(*size, 3) float64."""
    if image.shape[:2] != size:
        reduces = image.shape[0] > size[0]
        how = Image.Resampling.BOX if reduces else Image.Resampling.BICUBIC
        image = np.asarray(Image.fromarray(image).resize(size[::-1], how))
    return image.astype(np.float64)
