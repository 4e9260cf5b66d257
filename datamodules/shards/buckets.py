"""How a picture of any size becomes one that a batch can hold: the one rule of `pack` and `encode`.

A picture goes to the bucket whose aspect is nearest to its own (by ratio), is scaled to cover it and cropped at the
centre. The buckets have about `resolution`^2 pixels, the aspects of RATIOS and their transposes, and sides rounded to
what the family takes; `data.max_buckets` leaves the longest ones out. Source and target of an edit show the same frame:
the bucket and the crop of the target are applied to both, in shares of the frame, so that they stay aligned where their
sizes differ.
"""

from __future__ import annotations

import math
from functools import cache

from PIL import Image

from workbench.common.errors import UserError
from workbench.recipe.config import Data

RATIOS = (1, 4 / 3, 3 / 2, 16 / 9, 2, 3, 4)
ALIKE = 1.1
"""Source and target whose aspects differ by more than this factor cannot show the same frame."""
Size = tuple[int, int]
"""Width and height in pixels."""


@cache
def buckets(resolution: int, multiple: int) -> tuple[Size, ...]:
    """Sizes that pictures are brought to, the square first; sides are multiples of `multiple`."""
    exact = [
        (resolution * math.sqrt(aspect), resolution / math.sqrt(aspect))
        for ratio in RATIOS
        for aspect in (ratio, 1 / ratio)
    ]
    found = [tuple(max(1, round(side / multiple)) * multiple for side in sides) for sides in exact]
    return tuple(dict.fromkeys(found))  # type: ignore[arg-type]


def buckets_of(data: Data, multiple: int) -> tuple[Size, ...]:
    """The buckets that a recipe leaves open."""
    return buckets(data.resolution, multiple)[: 1 if data.aspects == "square" else data.max_buckets]


def bucket_of(size: Size, data: Data, multiple: int, where: str) -> Size:
    """The bucket of a picture of `size`.

    Raises:
        UserError: naming `where`, for sides below `data.min_side` or an aspect beyond `data.max_aspect`.
    """
    width, height = size
    if min(size) < data.min_side:
        raise UserError(
            f"{where} is {width} x {height} pixels, a side below data.min_side={data.min_side}: replace it or drop it"
        )
    if max(size) > data.max_aspect * min(size):
        raise UserError(
            f"{where} is {width} x {height} pixels, an aspect of {max(size) / min(size):.3g} to 1, beyond "
            f"data.max_aspect={data.max_aspect:g}: crop it or drop it"
        )
    aspect = math.log(width / height)
    return min(buckets_of(data, multiple), key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - aspect))


def fitted(
    target: Image.Image | None, source: Image.Image | None, data: Data, multiple: int, where: str
) -> tuple[Image.Image | None, Image.Image | None]:
    """Target and source of one sample in the bucket of the target, or of the source where there is no target.

    Raises:
        UserError: naming `where`, as `bucket_of`, or for an edit whose pictures cannot show the same frame.
    """
    frame = target or source
    if frame is None:
        return None, None
    bucket = bucket_of(frame.size, data, multiple, where)
    if target is not None and source is not None:
        factor = (source.width * target.height) / (source.height * target.width)
        if not 1 / ALIKE <= factor <= ALIKE:
            raise UserError(
                f"{where}: the source is {source.width} x {source.height} and the target {target.width} x "
                f"{target.height} pixels: of different aspects, so nobody can tell what lies where; crop one like the "
                "other"
            )
    box = _crop(frame.size, bucket)
    return tuple(None if image is None else _cut(image, frame.size, box, bucket) for image in (target, source))  # type: ignore[return-value]


def _crop(size: Size, bucket: Size) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest centred part of `size` that has the aspect of `bucket`."""
    width, height = float(size[0]), float(size[1])
    aspect = bucket[0] / bucket[1]
    if width / height > aspect:
        width = aspect * height
    elif width / height < aspect:
        height = width / aspect
    left, top = (size[0] - width) * 0.5, (size[1] - height) * 0.5
    return left, top, left + width, top + height


def _cut(image: Image.Image, frame: Size, box: tuple[float, float, float, float], bucket: Size) -> Image.Image:
    """The part of `image` that `box` is of a picture of size `frame`, at the size of `bucket`."""
    if image.size != frame:
        across, down = image.width / frame[0], image.height / frame[1]
        right, bottom = min(box[2] * across, image.width), min(box[3] * down, image.height)
        box = (box[0] * across, box[1] * down, right, bottom)
    return image.resize(bucket, Image.Resampling.LANCZOS, box=box)
