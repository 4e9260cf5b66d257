"""How a picture of any size becomes one that a batch can hold: the one rule of `pack` and `encode`.

A picture goes to the bucket whose aspect is nearest to its own (by ratio), is scaled to cover it and cropped at the
centre. The buckets have about `resolution`^2 pixels, the aspects of RATIOS and their transposes, and sides rounded to
what the family takes; `data.max_buckets` leaves the longest ones out. Source and target of an edit show the same frame:
the bucket and the crop of the target are applied to both, in shares of the frame, so that they stay aligned where their
sizes differ. Of several sources those of the target's aspect are treated so, and each other one goes to its own bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from PIL import Image

from workbench.common.errors import UserError
from workbench.recipe.config import Data

RATIOS = (1, 4 / 3, 3 / 2, 16 / 9, 2, 3, 4)
ALIKE = 1.1
"""Pictures whose aspects differ by more than this factor cannot show the same frame."""
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


def frame_of(target: Image.Image | None, sources: Sequence[Image.Image]) -> Image.Image | None:
    """The picture whose frame is drawn: the target, else the last source, which editing pipelines go by."""
    return target or (sources[-1] if sources else None)


def fitted(
    target: Image.Image | None, sources: Sequence[Image.Image], data: Data, multiple: int, where: str
) -> tuple[Image.Image | None, tuple[Image.Image, ...]]:
    """Target and sources of one sample, in the bucket of its frame (`frame_of`), sources of other aspects in their own.

    Raises:
        UserError: naming `where`, as `bucket_of`, or for an edit whose one source cannot show the target's frame.
    """
    frame = frame_of(target, sources)
    if frame is None:
        return None, ()
    bucket = bucket_of(frame.size, data, multiple, where)
    if target is not None and len(sources) == 1 and not _are_alike(sources[0].size, target.size):
        raise UserError(
            f"{where}: the source is {sources[0].width} x {sources[0].height} and the target {target.width} x "
            f"{target.height} pixels: of different aspects, so nobody can tell what lies where; crop one like the other"
        )
    box = _crop(frame.size, bucket)

    def placed(number: int, source: Image.Image) -> Image.Image:
        if _are_alike(source.size, frame.size):
            return _cut(source, frame.size, box, bucket)
        own = bucket_of(source.size, data, multiple, f"{where}, source {number}")
        return _cut(source, source.size, _crop(source.size, own), own)

    cut = None if target is None else _cut(target, frame.size, box, bucket)
    return cut, tuple(placed(number, source) for number, source in enumerate(sources, 1))


def _are_alike(first: Size, second: Size) -> bool:
    factor = (first[0] * second[1]) / (first[1] * second[0])
    return 1 / ALIKE <= factor <= ALIKE


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
