"""What an edit does to all that had to stay: known shifts, zooms and casts, on the world's edits and on pictures like
photographs, of which nobody knows the right answer."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.measures.drift import LEAST_TEXTURE, drift, lab
from workbench.evaluation.measures.motion import texture

SHIFTS = (0.25, 1, 4, 8)
GRADES = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)


@cache
def edits() -> list[Case]:
    return world_cases("edit", "search", 3, categories=["object"])


def moved(image: np.ndarray, pixels: float, zoom: float = 0.0) -> np.ndarray:
    """Moved by (0.6, 0.8) of so many pixels and enlarged about the middle."""
    middle = (np.array(image.shape[:2])[:, None, None] - 1) / 2
    step = pixels * np.array([0.6, 0.8])[:, None, None]
    at = (np.indices(image.shape[:2]) - middle - step) / (1 + zoom) + middle
    planes = [ndimage.map_coordinates(image[..., c].astype(float), at, order=1, mode="nearest") for c in range(3)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def cast(image: np.ndarray, levels: float) -> np.ndarray:
    return np.clip(image + np.array([levels, -levels / 2, -levels]), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.array(Image.open(buffer))


@cache
def photo(seed: int, height: int = 96, width: int = 144) -> np.ndarray:
    """Texture with the spectrum of photographs, a gradient of light, and discs of other colours."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    grain = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency**1.2).real
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = (rng.uniform(90, 150) + 25 * grain / grain.std() + 60 * (x - y))[..., None] + rng.uniform(-20, 20, 3)
    for _ in range(10):
        disc = np.hypot(y - rng.random(), x - rng.random()) < rng.uniform(0.03, 0.1)
        image[disc] = 0.5 * image[disc] + 0.5 * rng.uniform(20, 235, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def pasted(image: np.ndarray, seed: int, share: float) -> np.ndarray:
    """Another picture over a disc in the middle, which holds about a share of the picture."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    disc = ((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2 < share / np.pi
    return np.where(disc[..., None], photo(seed + 50, height, width), image)


@pytest.mark.parametrize("guided", [True, False])
def test_the_right_answer_neither_moves_nor_changes_colour(guided: bool) -> None:
    found = [drift(case.target, case.source, case.target if guided else None) for case in edits()]
    assert np.max([of.displacement for of in found]) < 0.01
    assert np.max([of.colour for of in found]) < 0.01


def test_a_shift_is_measured_to_a_tenth_of_a_pixel() -> None:
    medians = []
    for pixels in SHIFTS:
        found = [drift(moved(case.target, pixels), case.source, case.target) for case in edits()]
        medians.append(np.median([of.displacement for of in found]) * 1.28)
        assert np.median([of.colour for of in found]) < 1, "a shift is no change of colour"
    assert medians == pytest.approx(SHIFTS, abs=0.1)


def test_without_a_right_answer_the_region_is_where_both_agree() -> None:
    found = [drift(moved(case.target, 4), case.source) for case in edits()]
    assert np.median([of.displacement for of in found]) * 1.28 == pytest.approx(4, abs=0.2)


def test_a_zoom_displaces() -> None:
    case = edits()[0]
    distance = np.hypot(*(np.indices((128, 128)) - 63.5)).mean() * 0.05
    found = drift(moved(case.target, 0, 0.05), case.source, case.target)
    assert found.displacement * 1.28 == pytest.approx(distance, rel=0.2)


@pytest.mark.parametrize("guided", [True, False])
def test_both_rise_with_damage_and_neither_with_that_of_the_other(guided: bool) -> None:
    case = edits()[1]
    source, target = (case.source, case.target) if guided else (photo(3), None)
    right, rows = source if target is None else target, []
    for grade in GRADES:
        redder, shifted = (drift(image, source, target) for image in (cast(right, 32 * grade), moved(right, 8 * grade)))
        rows.append([redder.colour, redder.displacement, shifted.displacement, shifted.colour])
    colour, unmoved, displacement, uncoloured = np.array(rows).T
    assert stats.spearmanr(GRADES, colour).statistic >= 0.95 and stats.spearmanr(GRADES, displacement).statistic >= 0.95
    assert unmoved.max() < 0.05 and uncoloured.max() < 1.5


@pytest.mark.parametrize(("height", "width"), [(96, 144), (400, 300), (61, 40)])
def test_photographs_of_any_size_are_measured_under_an_edit_and_compression(height: int, width: int) -> None:
    source, scale = photo(0, height, width), min(256, max(height, width)) / 100
    assert drift(jpeg(source), source).displacement < 0.05 and drift(jpeg(source), source).colour < 1.5
    for pixels in (1.0, 2.0):
        found = drift(jpeg(pasted(moved(source, pixels), 1, 0.25)), source)
        assert found.displacement * scale == pytest.approx(pixels * min(1, 256 / height), abs=0.15)
        assert found.colour < 2 and found.share < 0.85
    redder = drift(jpeg(cast(pasted(source, 1, 0.25), 16)), source)
    assert redder.displacement < 0.05 and 6 < redder.colour < 16


def test_a_photograph_answered_in_another_size_is_compared_and_in_another_shape_is_not() -> None:
    source = photo(0)
    smaller = np.asarray(Image.fromarray(source).resize((132, 88)))
    found = drift(smaller, source)
    assert found.displacement < 0.1 and found.colour < 1
    assert drift(source[:, :96], source) is None and drift(source[:12, :18], source[:12, :18]) is None


@pytest.mark.parametrize("seed", range(3))
def test_two_different_pictures_have_nothing_that_stayed(seed: int) -> None:
    source = photo(seed)
    noise = np.random.default_rng(seed).integers(0, 256, source.shape, dtype=np.uint8)
    flat = np.full_like(source, int(source.mean()))
    for other in (photo(seed + 20), noise, flat, source[:, ::-1].copy(), pasted(source, seed, 0.8)):
        assert drift(other, source) is None


def test_what_is_too_flat_to_show_a_motion_has_none() -> None:
    ramp = np.broadcast_to(50 + np.arange(96.0)[:, None, None], (96, 96, 3)).astype(np.uint8)
    assert texture(ramp[..., 0].astype(float), np.ones((96, 96), bool)) < LEAST_TEXTURE
    found = drift(ramp + 4, ramp)
    assert found.displacement is None and found.colour == pytest.approx(1.6, abs=0.3)
    # What shows no motion must not be moved back by one: that would pass for another colour.
    sky = np.full((96, 96, 3), (90, 140, 200), np.uint8)
    assert drift(jpeg(sky), sky, sky).displacement is None and drift(jpeg(sky), sky, sky).colour < 1


def test_lab_of_known_colours() -> None:
    known = {(255, 255, 255): (100, 0, 0), (255, 0, 0): (53.24, 80.09, 67.2), (0, 0, 255): (32.3, 79.19, -107.86)}
    assert lab(np.array([*known], float)) == pytest.approx(np.array([*known.values()], float), abs=0.03)
