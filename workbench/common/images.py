"""Pictures that users bring, to and from bytes: upright, 8 bits a channel. Free of torch: workers start fast."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from workbench.common.errors import UserError

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_FORMATS = ("PNG", "JPEG", "WEBP")


def decode_image(
    content: bytes, where: str, mend: str = "replace it or drop the sample", formats: tuple[str, ...] | None = _FORMATS
) -> Image.Image:
    """The image in `content`, upright, as RGB, or RGBA if it has transparency.

    formats: Pillow's names of those that may be; any when None.

    Raises: UserError naming `where`, and ending with `mend`, if it is broken.
    """
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            upright = _eight_bit(ImageOps.exif_transpose(image))
            return upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "of no format that may be here" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where}: the image does not decode ({reason}); {mend}") from error


def read_image(path: Path, where: str, mend: str) -> Image.Image:
    """The image in a file of any format that Pillow reads, upright, RGB, what is transparent on white.

    Raises: UserError naming `where`, and ending with `mend`, if it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where} {path}: cannot be read ({error.strerror}); {mend}") from error
    return on_white(decode_image(content, f"{where} {path}", mend, formats=None))


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
