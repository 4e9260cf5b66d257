"""From a scene description to pixels. Pure: the same picture and resolution give the same array in any process."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datamodules.openmoji.raster import Array, blend, sprite, text_mask
from datamodules.openmoji.scenes import Landscape, Picture, Placed, Portrait, Sign, Tint
from datamodules.openmoji.tiles import cloud, disc, generator, ground_tile, pattern_tile, sky_tile
from datamodules.openmoji.vocabulary import BACKGROUNDS, INKS, OBJECTS, SIGNS, SUBJECTS

_CLOUDED = ("day", "sunset", "dawn", "night")
_LUMA = np.array([77, 150, 29], np.uint16)
_DUOTONES = {"sepia": ((44, 24, 8), (255, 236, 200)), "blue": ((6, 10, 60), (206, 232, 255))}


def render(picture: Picture, resolution: int) -> Array:
    """(resolution, resolution, 3) uint8."""
    match picture.scene:
        case Landscape() as landscape:
            canvas = _landscape(landscape, resolution)
        case Portrait() as portrait:
            canvas = _portrait(portrait, resolution)
        case Sign() as sign:
            canvas = _sign(sign, resolution)
    return degrade(stylise(canvas, picture.style), picture.quality, picture.grain)


def _shifted(pixels: np.ndarray, tint: Tint) -> Array:
    return np.clip(pixels.astype(np.int16) + np.asarray(tint, np.int16), 0, 255).astype(np.uint8)


def _drawing(canvas: Array, item: Placed, code: str) -> None:
    side = canvas.shape[0]
    patch = sprite(code, max(4, 2 * round(item.size * side / 2)))
    left, top = round(item.x * side - patch.shape[1] / 2), round(item.y * side) - patch.shape[0]
    blend(canvas, patch, left, top, item.mirrored)


def _backdrop(scene: Landscape, side: int) -> Array:
    look = scene.look
    row = round(look.horizon * side)
    canvas = np.empty((side, side, 3), np.uint8)
    shift = int(look.roll * side)
    sky = np.roll(sky_tile(scene.sky, look.variant, side)[:row], shift, axis=1)
    ground = ground_tile(scene.ground, look.variant, side)[: side - row]
    canvas[:row], canvas[row:] = _shifted(sky, look.sky_tint), _shifted(ground, look.ground_tint)
    if look.flipped:
        canvas = np.ascontiguousarray(canvas[:, ::-1])
    if scene.sky in _CLOUDED:
        above = canvas[:row]
        if look.disc is not None:
            x, y, size = look.disc
            blend(above, disc(scene.sky, round(size * side)), round(x * side), round(y * side))
        for one in look.clouds if scene.sky != "night" else ():
            blend(above, cloud(one.variant, round(one.width * side)), round(one.x * side), round(one.y * side))
    return canvas


def _landscape(scene: Landscape, side: int) -> Array:
    canvas = _backdrop(scene, side)
    for item in sorted(scene.items, key=lambda item: item.y):
        _drawing(canvas, item, OBJECTS[item.name].code)
    if scene.subject is not None:
        _drawing(canvas, scene.subject, SUBJECTS[scene.subject.name].code)
    return canvas


def _patterned(colour: Tint, pattern: str, variant: int, amplitude: int, side: int) -> Array:
    change = pattern_tile(pattern, variant, side)[..., None] * np.int16(amplitude) // 64
    pixels: Array = np.clip(change + np.asarray(colour, np.int16), 0, 255).astype(np.uint8)
    return pixels


def _portrait(scene: Portrait, side: int) -> Array:
    red, green, blue = (base + tint for base, tint in zip(BACKGROUNDS[scene.background], scene.tint, strict=True))
    canvas = _patterned((red, green, blue), scene.pattern, scene.variant, scene.amplitude, side)
    _drawing(canvas, scene.subject, SUBJECTS[scene.subject.name].code)
    return canvas


def _sign(scene: Sign, side: int) -> Array:
    if isinstance(scene.backdrop, Landscape):
        canvas = _landscape(scene.backdrop, side)
    else:
        wall, pattern, variant = scene.backdrop
        canvas = _patterned(wall, pattern, variant, 12, side)
    if scene.post:
        half, middle = max(1, round(0.02 * side)), round(scene.x * side)
        canvas[round(scene.y * side) :, middle - half : middle + half] = (104, 84, 66)
    board = _board(scene, side)
    left, top = round(scene.x * side - board.shape[1] / 2), round(scene.y * side - board.shape[0] / 2)
    blend(canvas, board, left, top)
    return canvas


def _board(scene: Sign, side: int) -> Array:
    """The sign with its word, premultiplied (h, w, 4); drawn at twice the size, turned and reduced."""
    width, height = round(2 * scene.width * side), round(2 * scene.height * side)
    colour = tuple(int(v) for v in _shifted(np.asarray(SIGNS[scene.sign]), scene.tint))
    ink = INKS[scene.ink]
    board = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(board)
    line = max(2, round(0.03 * side))
    box = (0, 0, width - 1, height - 1)
    match scene.shape:
        case "rounded":
            draw.rounded_rectangle(
                box, radius=height // 5, fill=(*colour, 255), outline=(30, 30, 34, 255), width=line // 2
            )
        case "framed":
            draw.rectangle(box, fill=(*colour, 255), outline=(*ink, 255), width=line)
        case "banner":
            draw.rectangle(box, fill=(*colour, 255))
            draw.rectangle((0, 0, width, line), fill=(*ink, 255))
            draw.rectangle((0, height - line, width, height), fill=(*ink, 255))
        case _:
            draw.rectangle(box, fill=(*colour, 255), outline=(30, 30, 34, 255), width=line // 2)
    mask = text_mask(scene.lines, scene.typeface, width - 4 * line, height - 5 * line)
    at = ((width - mask.shape[1]) // 2, (height - mask.shape[0]) // 2)
    board.paste((*ink, 255), at, Image.fromarray(mask))
    board = board.convert("RGBa")
    if scene.angle:
        board = board.rotate(scene.angle, Image.Resampling.BILINEAR, expand=True)
    board = board.reduce(2)
    return np.frombuffer(board.tobytes(), np.uint8).reshape(board.height, board.width, 4)


def stylise(pixels: Array, style: str) -> Array:
    """Apply a style of `HEADS["style"]` to (H, W, 3) pixels."""
    match style:
        case "plain":
            return pixels
        case "inverted":
            return 255 - pixels
        case "pixelated":
            side = pixels.shape[0]
            small = Image.fromarray(pixels).resize((side // 5, side // 5), Image.Resampling.BOX)
            return np.asarray(small.resize((side, side), Image.Resampling.NEAREST))
    grey = (pixels.astype(np.uint16) @ _LUMA) >> 8
    if style == "grayscale":
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    dark, light = (np.asarray(colour) for colour in _DUOTONES[style])
    table = (dark + (light - dark) * np.linspace(0, 1, 256)[:, None]).round().astype(np.uint8)
    toned: Array = table[grey]
    return toned


def degrade(pixels: Array, quality: str, grain: int) -> Array:
    """Apply a defect of `HEADS["quality"]` to (H, W, 3) pixels; `grain` sets its strength and seeds its noise.

    Blotches and blocks are coarser than the patches of an autoencoder, which would take finer ones away by itself.
    """
    strength = (grain % 16) / 15
    side = pixels.shape[0]
    match quality:
        case "clean":
            return pixels
        case "blurry":
            return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur((2.2 + strength) * side / 128)))
        case "noisy":
            return _blotched(pixels, 34 + 16 * strength, grain)
        case "dark":
            return (pixels * (0.3 - 0.1 * strength)).astype(np.uint8)
        case "faded":
            return (pixels * (0.28 - 0.1 * strength) + 132).astype(np.uint8)
        case "blocky":
            return _blocked(pixels, 14 + 8 * strength, grain)
        case _:
            raise ValueError(f"quality {quality!r}")


def _blotched(pixels: Array, spread: float, grain: int) -> Array:
    """Coloured noise with a grain of 7 to 11 pixels of 128, `spread` grey levels strong, over (H, W, 3) pixels."""
    rng, side = generator("grain", grain), pixels.shape[0]
    cells = int(rng.integers(12, 18))
    noise = 0.7 * rng.standard_normal((cells, cells, 3)) + 0.7 * rng.standard_normal((cells, cells, 1))
    planes = [Image.fromarray(noise[..., c].astype(np.float32)) for c in range(3)]
    planes = [plane.resize((side, side), Image.Resampling.BICUBIC) for plane in planes]
    blotches = np.stack([np.asarray(plane) for plane in planes], axis=-1) * np.float32(1.1 * spread)
    return np.clip(pixels + blotches, 0, 255).astype(np.uint8)


def _blocked(pixels: Array, spread: float, grain: int) -> Array:
    """Blocks of 8 to 12 pixels of 128, each mostly its mean, a little lighter or darker, as of a starved codec."""
    rng, side = generator("grain", grain), pixels.shape[0]
    cells = int(rng.integers(11, 17))
    small = Image.fromarray(pixels).resize((cells, cells), Image.Resampling.BOX)
    levels = np.asarray(small, np.float32) + rng.normal(0, spread, (cells, cells, 1)).astype(np.float32)
    blocks = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    return (0.25 * pixels + 0.75 * np.asarray(blocks)).astype(np.uint8)
