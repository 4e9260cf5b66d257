"""A sample of a user's images, files still unread, and what `pack` makes of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from datamodules.shards.buckets import bucket_of, fitted, frame_of
from datamodules.shards.own_parquet import Embedded, read_embedded
from datamodules.shards.sources import source_name
from workbench.common.errors import UserError
from workbench.common.images import decode_image, on_white, png_bytes, read_image
from workbench.common.outside import LONGEST_TEXT, read_bytes
from workbench.recipe.config import SIDE_MULTIPLE, Data

if TYPE_CHECKING:
    from workbench.batch import Task

CUSTOM = "custom"
_REPLACE = "check its rights, replace it or drop the sample"


Picture = Path | Embedded


@dataclass(frozen=True)
class OwnSample:
    """A sample of the user's, files still unread. sources: in order. origin: what error messages call it."""

    key: str
    category: str
    text: str
    image: Picture | None
    sources: tuple[Picture, ...]
    origin: str

    @property
    def task(self) -> Task:
        return "edit" if self.sources else "t2i"

    def stamp(self) -> list[Any]:
        """What identifies the sample's content: key, text, and size and date of change of its files."""
        stats = [None if each is None else _file_of(each).stat() for each in (self.image, *(self.sources or (None,)))]
        return [self.key, self.category, self.text, *([s.st_size, s.st_mtime_ns] if s else None for s in stats)]


def _file_of(picture: Picture) -> Path:
    return picture.file if isinstance(picture, Embedded) else picture


def read_text(path: Path) -> str:
    """The text of a file. Raises: UserError if it is not UTF-8."""
    try:
        return read_bytes(path, "write it again").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def checked_text(text: str, what: str) -> str:
    """`text` without blanks around it. Raises: UserError, naming `what`, if there is none or too much."""
    text = text.strip()
    if not text:
        raise UserError(f"{what} is empty; write one or move the sample away")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{what} has {len(text):,} characters, {LONGEST_TEXT:,} at most; shorten it")
    return text


def own_members(sample: OwnSample, data: Data) -> tuple[str, dict[str, bytes]]:
    """Key and members of a raw sample, images RGB and brought to a bucket.

    Raises:
        UserError: an image that does not decode, or that `buckets.fitted` refuses.
    """
    target = None if sample.image is None else _read(sample.image, sample.origin)
    sources = [_read(each, sample.origin) for each in sample.sources]
    target, fitted_sources = fitted(target, sources, data, SIDE_MULTIPLE, sample.origin)
    image = frame_of(target, fitted_sources)
    square = (data.resolution, data.resolution)
    width, height = image.size if image else bucket_of(square, data, SIDE_MULTIPLE, sample.origin)
    meta = {"task": sample.task, "category": sample.category, "height": height, "width": width}
    members = {"txt": sample.text.encode(), "json": json.dumps(meta).encode()}
    if target is not None:
        members["png"] = png_bytes(target)
    members |= {f"{source_name(i)}.png": png_bytes(source) for i, source in enumerate(fitted_sources, 1)}
    return sample.key, members


def _read(picture: Picture, origin: str) -> Image.Image:
    if isinstance(picture, Path):
        return read_image(picture, "", _REPLACE)
    return on_white(decode_image(read_embedded(picture), f"{origin}, {picture.column}"))


def safe_key(stem: str) -> str:
    """A key safe in a tar: webdataset splits names at the first dot."""
    return re.sub(r"[^\w-]", "_", stem)
