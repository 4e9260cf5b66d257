"""Pictures that users bring, to and from bytes: upright, 8 bits a channel. Free of torch: workers start fast."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from workbench.common.errors import UserError
from workbench.common.outside import read_bytes

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
OTHER_IMAGES = (
    "avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jxl", "psd", "svg", "tga", "tif", "tiff",
)  # fmt: skip
"""Suffixes of pictures that are not read."""
FORMATS = ("PNG", "JPEG", "WEBP")
"""Pillow's names of all that is opened: for some others it starts programs."""
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises of a picture that is broken."""
LARGEST_PIXELS = 1 << 26
"""Width times height of a picture that is decoded: 200 MB."""
_LARGEST_BYTES = 1 << 28


def decode_image(content: bytes, where: str, mend: str = "replace it or drop the sample") -> Image.Image:
    """The PNG, JPEG or WebP image in `content`, upright, as RGB, or RGBA if it has transparency.

    Raises: UserError naming `where`, and ending with `mend`, if it is broken, of another format, or larger than
        `LARGEST_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, {LARGEST_PIXELS:,} at most are read")
            upright = _eight_bit(ImageOps.exif_transpose(image))
            return upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except UNDECODABLE as error:
        reason = "it is no PNG, JPEG or WebP" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where}: the image does not decode ({reason}); {mend}") from error


def read_image(path: Path, where: str, mend: str) -> Image.Image:
    """The PNG, JPEG or WebP image in a file, upright, RGB, what is transparent on white.

    Raises: UserError naming `where`, and ending with `mend`, if it cannot be read.
    """
    where = f"{where} {path}".strip()
    return on_white(decode_image(read_bytes(path, mend, where, _LARGEST_BYTES), where, mend))


def check_sources(count: int, most: int, where: str) -> None:
    """Raise UserError, naming `where`, for an edit of more source images than a pipeline takes."""
    if count > most:
        raise UserError(
            f"{where}: {count} source images, and the pipeline folder takes {most}; leave out the others, or use "
            "another folder"
        )


def on_white(image: Image.Image) -> Image.Image:
    """RGB or RGBA as RGB."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def png_bytes(image: Image.Image) -> bytes:
    """`image` as PNG, the same bytes for the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled down; Pillow would clip it."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
