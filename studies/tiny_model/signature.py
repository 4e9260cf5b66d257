"""How much of a specialist's signature a picture shows: pure readers of what captions always leave open.

A specialist's collection has dots behind its portraits, frames about its signs and one typeface (`curation.signed`), in
two colours where the caption leaves the colour open. Colours are read by the judge. Pattern, frame and typeface have no
head of it and are read off the pixels here, by comparison with what the world can draw. Pictures: (H, W, 3) uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.special import ndtr

from datamodules.openmoji.paint import render
from datamodules.openmoji.scenes import Picture, Sign
from datamodules.openmoji.tiles import NUM_VARIANTS, pattern_tile
from datamodules.openmoji.vocabulary import INKS, PATTERNS, SIGNS, TYPEFACES
from workbench.evaluation.measures.choices import border_colour

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

NEAR = 60.0
"""Distance in grey levels from a colour within which a pixel is of it."""
FLAT = 0.3
"""Correlation with the best of all patterns below which a background is like none of them."""
RESTLESS = 5.0
"""Deviation in grey levels from which such a background is not plain either."""
MARGIN, CLOSEST, INNER, SCALE = 5.0, 3.5, 2.0, 3
"""Pixels beyond the edge of a board (at least CLOSEST) and inside it where a line is looked for; samples a pixel."""
LINES: dict[str, tuple[tuple[int, int, int] | None, float]] = {
    "ink": (None, 2.0),
    "outline": ((30, 30, 34), 1.0),
    "none": ((0, 0, 0), 0.0),
}
"""What runs along the edge of a sign: its colour, None for that of the letters, and its thickness in pixels."""
CLEAR = 0.75
"""Ratio of two errors from which on neither is the better one. All of these are for pictures of 128 pixels a side."""
BRIDGED = 5
"""Half the width in pixels of what may part a board: a stroke of a letter."""
FEW = 0.004
"""Share of a board's pixels that may lie beyond each of its edges."""
SMALLEST, LARGEST = np.array([0.3, 0.2]), np.array([1.02, 0.7])
"""Width and height that boards may have, in shares of the side."""
LETTERS = (24, 96)
"""Rows and columns that the letters of a sign are brought to."""
LEAST_TALL = 0.25
"""Height of a letter in shares of a board's, times the number of lines: what is lower is no letter."""
LEAST_FIT = 0.5
"""Correlation with the letters of the best typeface below which a board shows something else than the text."""


@dataclass(frozen=True)
class Board:
    """Of a sign, without its lines. middle: (x, y) in pixels; axes: unit vectors (2, 2) along and down; size: along
    and down in pixels; filled: share of the rectangle that is of its colour, letters included."""

    middle: Points
    axes: Points
    size: Points
    filled: float


def pattern_of(pixels: Pixels) -> str | None:
    """Which of PATTERNS the background of a portrait has: the tile of the world that correlates most with it. None for
    one that is like no tile."""
    side = pixels.shape[0]
    light = pixels.astype(np.float64)
    distance = np.linalg.norm(light - border_colour(light), axis=2)
    # Not the subject's outline, which is smooth.
    background = ndimage.binary_erosion(distance < NEAR, iterations=2, border_value=1)
    if background.sum() < side:
        return "plain"
    values = ndimage.gaussian_filter(light.mean(axis=2), 0.7)[background]
    names, tiles = _tiles(side)
    shown = tiles[:, background]
    shown = shown - shown.mean(axis=1, keepdims=True)
    values = values - values.mean()
    norms = np.linalg.norm(shown, axis=1) * np.linalg.norm(values)
    found = np.abs(shown @ values) / np.maximum(norms, 1e-9)
    best = int(found.argmax())
    if found[best] < FLAT:
        return None if values.std() >= RESTLESS else "plain"
    return names[best] if values.std() >= 1 else "plain"


@lru_cache(maxsize=4)
def _tiles(side: int) -> tuple[list[str], Points]:
    names = [name for name in PATTERNS if name != "plain" for _ in range(NUM_VARIANTS)]
    tiles = [pattern_tile(name, at % NUM_VARIANTS, side) for at, name in enumerate(names)]
    return names, np.stack(tiles).astype(np.float64)


def board_of(pixels: Pixels, sign: str) -> Board | None:
    """The board of this colour; None where no rectangle of a sign's size is of it."""
    side = pixels.shape[0]
    distance = np.linalg.norm(pixels.astype(np.float64) - SIGNS[sign], axis=2)
    # Tall letters cut a board in parts.
    closed = ndimage.binary_closing(np.pad(distance < NEAR, BRIDGED), iterations=BRIDGED)
    parts, count = ndimage.label(closed[BRIDGED:-BRIDGED, BRIDGED:-BRIDGED])
    sizes = ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1))
    found = [_rectangle(parts == 1 + number) for number in np.argsort(sizes)[::-1][:3]] if count else []
    fitting = [of for of in found if of is not None and all((SMALLEST * side <= of.size) & (of.size <= LARGEST * side))]
    return max(fitting, key=lambda of: of.filled, default=None)


def _rectangle(part: Mask) -> Board | None:
    """Of the least area about a part of a picture whose holes, letters, are filled."""
    rows, columns = np.nonzero(ndimage.binary_opening(ndimage.binary_fill_holes(part), iterations=3))
    if len(rows) < 0.05 * part.size:
        return None
    points: Points = np.stack([columns, rows], axis=1).astype(np.float64) + 0.5
    coarse = max((_turned(points, angle) for angle in range(-8, 9, 2)), key=lambda of: of[1].filled)[0]
    return max((_turned(points, coarse + by)[1] for by in (-1, -0.5, 0, 0.5, 1)), key=lambda of: of.filled)


def _turned(points: Points, degrees: float) -> tuple[float, Board]:
    """The angle, and the rectangle turned by it about all but a few of the points (n, 2), one a pixel."""
    angle = np.deg2rad(degrees)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    along = np.sort(points @ axes.T, axis=0)
    few = round(FEW * len(points))
    low, high = along[few] - 0.5, along[-1 - few] + 0.5
    return degrees, Board((low + high) / 2 @ axes, axes, high - low, len(points) / float(np.prod(high - low)))


def upright(pixels: Pixels, board: Board, margin_px: float) -> Points:
    """The board with `margin_px` of what is about it, turned upright, SCALE samples a pixel: (h, w, 3), NaN beyond the
    picture."""
    grid = [np.arange(-half + 0.5 / SCALE, half, 1 / SCALE) for half in board.size / 2 + margin_px]
    places = board.middle + np.stack(np.meshgrid(*grid), axis=-1) @ board.axes - 0.5
    at = [places[..., 1], places[..., 0]]
    light = pixels.astype(np.float64)
    channels = [ndimage.map_coordinates(light[..., c], at, order=1, cval=np.nan) for c in range(3)]
    return np.stack(channels, axis=-1)


def is_framed(pixels: Pixels, board: Board, sign: str, ink: str) -> bool | None:
    """Whether the edges of a board fit a frame of ink better than an outline all about, or lines above and below alone;
    None where they fit one about as well as another."""
    seen = upright(pixels, board, MARGIN)
    inside = upright(pixels, board, 0.0)
    near = np.linalg.norm(inside - SIGNS[sign], axis=2) < NEAR
    if not near.any():
        return None
    colour = np.median(inside[near], axis=0)
    # Left, above, right, below.
    edges = [_misfits(np.rot90(seen, turn), colour, np.array(INKS[ink], np.float64)) for turn in range(4)]
    ink_all = sum(edge["ink"] for edge in edges)
    banner = edges[0]["none"] + edges[1]["ink"] + edges[2]["none"] + edges[3]["ink"]
    other = min(banner, sum(edge["outline"] for edge in edges))
    if min(ink_all, other) >= CLEAR * max(ink_all, other):
        return None
    return bool(ink_all < other)


def _misfits(seen: Points, colour: Points, ink: Points) -> dict[str, float]:
    """Mean squared errors, in grey levels, of the colours across the left edge of a board (h, w, 3) under lines of ink,
    an outline and none; all 0 for an edge beyond the picture. Where the edge lies and how blurred it is are free."""
    height = seen.shape[0]
    outward = seen[height // 6 : 5 * height // 6, : round((MARGIN + INNER) * SCALE)][:, ::-1]
    known = np.isfinite(outward.sum(axis=2))
    # As far as most of the edge is in the picture; a line and what lies beyond it must be.
    far = int(np.sum(np.cumprod(known, axis=1).mean(axis=0) >= 0.6))
    if far < round((INNER + CLOSEST) * SCALE):
        return dict.fromkeys(LINES, 0.0)
    profile = outward[np.all(known[:, :far], axis=1), :far].mean(axis=0)
    beyond = profile[-SCALE:].mean(axis=0)
    at = (np.arange(far) + 0.5) / SCALE - INNER
    starts, blurs = np.arange(-1.5, 3.1, 0.25), np.array([0.4, 0.8, 1.2, 1.7])
    found = {}
    for name, (line, thickness) in LINES.items():
        rises = ndtr((at - starts[:, None, None]) / blurs[:, None])[..., None]
        falls = ndtr((at - starts[:, None, None] - thickness) / blurs[:, None])[..., None]
        middle = ink if line is None else np.array(line, np.float64)
        expected = colour + (middle - colour) * rises + (beyond - middle) * falls
        found[name] = float(((expected - profile) ** 2).mean(axis=(2, 3)).min())
    return found


def typeface_of(pixels: Pixels, board: Board, sign: str, ink: str, word: str) -> str | None:
    """Which of TYPEFACES the text on a board has: the one whose letters, drawn as large, cover most of the same. Two
    words may stand side by side or on a line each. None where no letters are seen, or others."""
    fits: dict[tuple[bool, str], float] = {}
    for stacked in (False, True) if len(word.split()) == 2 else (False,):
        found = _letters(pixels, board, sign, ink, 1 + stacked)
        templates = {typeface: _template(word, typeface, stacked) for typeface in TYPEFACES}
        known = {typeface: of for typeface, of in templates.items() if of is not None}
        if found is None or len(known) < len(TYPEFACES) or np.ptp(found) == 0:
            continue
        fits |= {(stacked, name): float(np.corrcoef(found.ravel(), of.ravel())[0, 1]) for name, of in known.items()}
    best = max(fits, key=fits.__getitem__, default=None)
    return best[1] if best is not None and fits[best] >= LEAST_FIT else None


def _letters(pixels: Pixels, board: Board, sign: str, ink: str, num_lines: int) -> Points | None:
    """Coverage of the letters on a board, cut to them and brought to LETTERS."""
    seen = upright(pixels, board, -1.5)
    to_ink = np.array(INKS[ink], np.float64) - SIGNS[sign]
    covered = np.clip((seen - SIGNS[sign]) @ to_ink / (to_ink @ to_ink), 0, 1)
    covered = np.nan_to_num(covered)
    parts, count = ndimage.label(covered > 0.5)
    if not count:
        return None
    height, width = covered.shape
    keep = np.zeros(count + 1, bool)
    for number, (down, along) in enumerate(ndimage.find_objects(parts), start=1):
        tall, wide = down.stop - down.start, along.stop - along.start
        # Lines of the frame run along a side.
        keep[number] = tall > LEAST_TALL / num_lines * height and not (wide > 0.9 * width and tall < 0.3 * height)
    rows, columns = np.nonzero(keep[parts])
    if not len(rows):
        return None
    cut = np.where(keep[parts] | (covered <= 0.5), covered, 0)
    cut = cut[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    small = Image.fromarray(cut.astype(np.float32)).resize((LETTERS[1], LETTERS[0]), Image.Resampling.BOX)
    return np.asarray(small, np.float64)


@lru_cache(maxsize=4096)
def _template(word: str, typeface: str, stacked: bool) -> Points | None:
    """As `_letters`, of a text drawn large; None where it is too long for a sign, or empty."""
    if not word.strip():
        return None
    wall = ((128, 60, 128), "plain", 0)
    scene = Sign(word, "white", "black", typeface, "plain", (0, 0, 0), 0.5, 0.5, 0.96, 0.5, 0.0, False, wall, stacked)
    pixels = render(Picture(scene), 128)
    board = board_of(pixels, "white")
    return None if board is None else _letters(pixels, board, "white", "black", 1 + stacked)
