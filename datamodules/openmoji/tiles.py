"""Cached backdrops: skies, grounds and background patterns, drawn once per variant and resolution."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.openmoji.raster import Array, premultiplied
from datamodules.openmoji.vocabulary import Rgb

NUM_VARIANTS = 6
SUPERSAMPLING = 4

_SKY_GRADIENTS: dict[str, tuple[Rgb, ...]] = {
    "day": ((72, 150, 236), (150, 204, 250), (206, 232, 252)),
    "sunset": ((116, 44, 110), (226, 84, 64), (254, 176, 62)),
    "night": ((8, 10, 38), (18, 26, 70), (36, 48, 104)),
    "overcast": ((128, 132, 138), (162, 166, 170), (190, 192, 194)),
    "rain": ((56, 68, 84), (78, 94, 112), (104, 120, 136)),
    "dawn": ((178, 168, 222), (248, 196, 204), (254, 236, 176)),
}
_GROUND_GRADIENTS: dict[str, tuple[Rgb, ...]] = {
    "grass": ((112, 178, 76), (70, 148, 52)),
    "sand": ((240, 212, 146), (222, 184, 108)),
    "snow": ((236, 242, 250), (250, 252, 255)),
    "water": ((62, 140, 200), (26, 84, 158)),
    "road": ((116, 116, 120), (82, 82, 88)),
    "field": ((142, 92, 52), (104, 62, 32)),
}


def generator(*parts: object) -> np.random.Generator:
    """A generator that depends on `parts` alone: same parts, same draws, in any process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def gradient(stops: tuple[Rgb, ...], height: int, width: int) -> Array:
    """(height, width, 3) from the first colour at the top to the last at the bottom."""
    at = np.linspace(0, len(stops) - 1, height)
    columns = [np.interp(at, range(len(stops)), [stop[c] for stop in stops]) for c in range(3)]
    return np.repeat(np.stack(columns, axis=-1)[:, None], width, axis=1).round().astype(np.uint8)


@lru_cache(maxsize=256)
def sky_tile(sky: str, variant: int, resolution: int) -> Array:
    """(resolution, resolution, 3), to be cut at the horizon; what a sky always shows and nothing that is free."""
    rng = generator("sky", sky, variant)
    side = resolution * SUPERSAMPLING
    image = Image.fromarray(gradient(_SKY_GRADIENTS[sky], round(0.7 * side), side))
    canvas = Image.new("RGB", (side, side), _SKY_GRADIENTS[sky][-1])
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    match sky:
        case "night":
            for _ in range(int(rng.integers(10, 24))):
                x, y, r = rng.uniform(0, side), rng.uniform(0, 0.6 * side), rng.uniform(0.004, 0.009) * side
                draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 250, 214))
        case "overcast":
            _banks(draw, rng, side)
        case "rain":
            _streaks(draw, rng, side)
        case _:
            pass
    return np.asarray(canvas.resize((resolution, resolution), Image.Resampling.BOX))


def _banks(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    for y in np.sort(rng.uniform(0.0, 0.55, 7)):
        tone = int(rng.integers(-22, 12) + 160)
        for x in rng.uniform(-0.1, 1.1, 5):
            w, h = rng.uniform(0.12, 0.25), rng.uniform(0.03, 0.06)
            draw.ellipse([round(v * side) for v in (x - w, y - h, x + w, y + h)], fill=(tone, tone + 2, tone + 6))


def _streaks(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    for _ in range(70):
        x, y, length = rng.uniform(0, 1.1), rng.uniform(-0.05, 0.75), rng.uniform(0.04, 0.08)
        line = [round(v * side) for v in (x, y, x - 0.35 * length, y + length)]
        draw.line(line, fill=(170, 190, 212), width=max(1, round(0.009 * side)))


@lru_cache(maxsize=256)
def ground_tile(ground: str, variant: int, resolution: int) -> Array:
    """(resolution // 2, resolution, 3): the ground from the horizon down, seen in perspective."""
    rng = generator("ground", ground, variant)
    width, height = resolution * SUPERSAMPLING, resolution * SUPERSAMPLING // 2
    image = Image.fromarray(gradient(_GROUND_GRADIENTS[ground], height, width))
    _GROUND_TEXTURES[ground](ImageDraw.Draw(image), rng, width, height)
    return np.asarray(image.resize((resolution, resolution // 2), Image.Resampling.BOX))


def _grass(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    for _ in range(90):
        x, depth = rng.uniform(0, width), rng.uniform(0.02, 1)
        y, blade = depth * height, (0.02 + 0.025 * depth) * width
        tone = (48, 116, 40) if rng.random() < 0.6 else (146, 204, 92)
        for lean in (-0.4, 0.0, 0.4):
            draw.line((x, y, x + lean * blade, y - blade), fill=tone, width=max(1, round(0.008 * width)))


def _sand(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    for _ in range(5):
        y, phase, bend = rng.uniform(0.08, 0.95) * height, rng.uniform(0, 6.3), rng.uniform(0.008, 0.016) * width
        points = [(x, y + bend * math.sin(phase + 9 * x / width)) for x in range(0, width + 1, 8)]
        draw.line(points, fill=(204, 164, 92), width=round(0.01 * width))
    for _ in range(70):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), 0.005 * width
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(190, 150, 84))


def _snow(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    for y in np.sort(rng.uniform(0.05, 0.95, 6)):
        x, w, h = rng.uniform(0, 1), rng.uniform(0.14, 0.3), rng.uniform(0.03, 0.05)
        box = [round(v) for v in ((x - w) * width, y * height, (x + w) * width, (y + 4 * h) * height)]
        draw.chord(box, 180, 360, fill=(252, 253, 255))
        draw.arc(box, 180, 360, fill=(186, 206, 232), width=round(0.012 * width))


def _water(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    for _ in range(26):
        x, depth = rng.uniform(-0.05, 1), rng.uniform(0.04, 1)
        step, y = (0.02 + 0.03 * depth) * width, depth * height
        points = [(x * width + i * step / 2, y + (0.22 * step if i % 2 else 0)) for i in range(5)]
        draw.line(points, fill=(164, 212, 242), width=max(1, round((0.006 + 0.006 * depth) * width)), joint="curve")


def _road(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    draw.rectangle((0, 0, width, 0.05 * height), fill=(206, 206, 204))
    y, offset = rng.uniform(0.45, 0.6) * height, rng.uniform(-0.2, 0)
    for i in range(6):
        x = (offset + 0.24 * i) * width
        draw.polygon(
            [(x + 0.02 * width, y), (x + 0.14 * width, y), (x + 0.12 * width, y + 0.1 * height), (x, y + 0.1 * height)],
            fill=(246, 246, 240),
        )
    draw.line((0, 0.95 * height, width, 0.95 * height), fill=(238, 196, 60), width=round(0.014 * width))


def _field(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    vanishing = rng.uniform(0.3, 0.7) * width
    for i in range(-9, 10):
        far, near = vanishing + 0.055 * i * width, vanishing + 0.2 * i * width
        half = 0.012 * width
        draw.polygon(
            [(far - half / 3, 0), (far + half / 3, 0), (near + half, height), (near - half, height)], (74, 42, 20)
        )
        for depth in (0.25, 0.5, 0.75, 1.0) if i % 2 else (0.15, 0.38, 0.63, 0.88):
            x, y, r = far + (near - far) * depth + 0.08 * depth * width, depth * height, 0.013 * depth * width
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(120, 164, 60))


_GROUND_TEXTURES = {"grass": _grass, "sand": _sand, "snow": _snow, "water": _water, "road": _road, "field": _field}


@lru_cache(maxsize=128)
def pattern_tile(pattern: str, variant: int, resolution: int) -> NDArray[np.int16]:
    """(resolution, resolution) int16 in [-64, 64]: how much lighter or darker the background is."""
    rng = generator("pattern", pattern, variant)
    side = resolution * 2
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    angle, period, px, py = rng.uniform(0, math.pi), rng.uniform(0.12, 0.25), *rng.uniform(0, 1, 2)
    u, v = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    match pattern:
        case "gradient":
            field = (u - u.mean()) / np.abs(u - u.mean()).max()
        case "stripes":
            field = np.where((u / period + px) % 1 < 0.5, 1.0, -1.0)
        case "dots":
            du, dv = (u / period + px) % 1 - 0.5, (v / period + py) % 1 - 0.5
            field = np.where(du**2 + dv**2 < 0.08, 1.0, -0.4)
        case "checks":
            field = np.where(((u / period + px) % 1 < 0.5) ^ ((v / period + py) % 1 < 0.5), 1.0, -1.0)
        case "rays":
            turn = np.arctan2(y - 0.3 - 0.4 * py, x - 0.3 - 0.4 * px) / (2 * math.pi)
            field = np.where((turn * rng.integers(7, 12)) % 1 < 0.5, 1.0, -1.0)
        case _:
            field = np.zeros_like(u)
    small = field.reshape(resolution, 2, resolution, 2).mean(axis=(1, 3))
    levels: NDArray[np.int16] = (64 * small).round().astype(np.int16)
    return levels


@lru_cache(maxsize=256)
def cloud(variant: int, width_px: int) -> Array:
    """A premultiplied white cloud, (h, w, 4)."""
    rng = generator("cloud", variant)
    side = 256
    image = Image.new("RGBA", (side, side // 2))
    draw = ImageDraw.Draw(image)
    for colour, drop in (((222, 230, 240, 255), 8), ((255, 255, 255, 255), 0)):
        draw.rounded_rectangle((10, 78 + drop, side - 11, 112 + drop), radius=17, fill=colour)
    for x in np.linspace(50, side - 50, 4):
        r = rng.uniform(26, 46)
        draw.ellipse((x - r, 84 - r, x + r, 84 + 0.6 * r), fill=(255, 255, 255, 255))
    image = image.crop(image.getchannel("A").getbbox())
    return premultiplied(image, width_px, round(image.height * width_px / image.width))


@lru_cache(maxsize=64)
def disc(sky: str, side_px: int) -> Array:
    """The sun or moon of a sky, premultiplied (h, w, 4)."""
    side = 256
    image = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(image)
    match sky:
        case "night":
            draw.ellipse((8, 8, side - 9, side - 9), fill=(250, 240, 186, 255))
            draw.ellipse((80, -6, side + 66, side - 60), fill=(0, 0, 0, 0))
        case "sunset":
            draw.ellipse((8, 8, side - 9, side - 9), fill=(255, 226, 120, 255))
        case "dawn":
            draw.ellipse((8, 8, side - 9, side - 9), fill=(255, 250, 222, 255))
        case _:
            draw.ellipse((8, 8, side - 9, side - 9), fill=(255, 214, 40, 255))
            draw.ellipse((40, 40, side - 41, side - 41), fill=(255, 232, 96, 255))
    return premultiplied(image, side_px, side_px)
