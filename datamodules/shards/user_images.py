"""One's own images and captions, from a folder or a CSV file, as `workbench pack` reads them.

Folder: `x.png|jpg|webp` with its caption `x.txt`, `x.source.png|jpg|webp` for an edit; a caption alone is a prompt-only
sample; the first subfolder is the category, else `custom`. CSV: columns `caption` and, optional, `image`, `source`,
`category`; paths are relative to the CSV file. A file `ATTRIBUTION.txt` at the top says whose the images are.
"""

from __future__ import annotations

import csv
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from workbench.common.errors import UserError
from workbench.common.images import IMAGE_SUFFIXES, png_bytes, read_image
from workbench.recipe.config import Data

if TYPE_CHECKING:
    from workbench.batch import Task

CUSTOM = "custom"
ATTRIBUTION_FILE = "ATTRIBUTION.txt"
_OTHER_IMAGES = (
    "avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jxl", "psd", "svg", "tga", "tif", "tiff",
)  # fmt: skip
_COLUMNS = ("image", "caption", "source", "category")


@dataclass(frozen=True)
class OwnSample:
    """A sample of the user's, files still unread. origin: what error messages call it."""

    key: str
    category: str
    text: str
    image: Path | None
    source: Path | None
    origin: str

    @property
    def task(self) -> Task:
        return "t2i" if self.source is None else "edit"

    def stamp(self) -> list[Any]:
        """What identifies the sample's content: key, text, and size and date of change of its files."""
        stats = [path.stat() if path else None for path in (self.image, self.source)]
        return [self.key, self.category, self.text, *([s.st_size, s.st_mtime_ns] if s else None for s in stats)]


def list_own(data: Data) -> list[OwnSample]:
    """The samples behind `data.source`, in order.

    Raises:
        UserError: naming the file and the mend, for a source that is missing or empty, an image without a caption, an
            empty caption, two samples of one key, a CSV file without its columns.
    """
    source = Path(data.source)
    if source.is_dir():
        samples = _from_folder(source)
    elif source.is_file() and source.suffix.lower() == ".csv":
        samples = _from_csv(source)
    else:
        raise UserError(f"data.source={data.source} is neither `openmoji` nor a folder nor a CSV file; check the path")
    if not samples:
        raise UserError(f"no samples in {source}: put images x.png (or jpg, webp) with captions x.txt there")
    origins: dict[str, str] = {}
    for sample in samples:
        if sample.key in origins:
            raise UserError(f"{sample.origin} and {origins[sample.key]} have the same key {sample.key!r}; rename one")
        origins[sample.key] = sample.origin
    return samples


def attribution_of(source: str) -> str:
    """Text of the attribution file next to the images, or a sentence that there is none."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    path = folder / ATTRIBUTION_FILE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else f"own data; no {ATTRIBUTION_FILE} was given"


def _from_folder(folder: Path) -> list[OwnSample]:
    by_name: dict[tuple[str, str], Path] = {}
    for path in _files(folder):
        suffix = path.suffix.lower().lstrip(".")
        relative = path.relative_to(folder)
        if suffix not in (*IMAGE_SUFFIXES, "txt"):
            if suffix in _OTHER_IMAGES:
                raise UserError(f"{path} is none of {', '.join(IMAGE_SUFFIXES)}; convert it, or move it away")
            continue
        if not path.is_file():
            raise UserError(f"{path} is a link that leads nowhere; mend it or remove it")
        stem = str(relative)[: -len(path.suffix)]
        kind = "text" if suffix == "txt" else "image"
        if kind == "image" and stem.lower().endswith(".source"):
            stem, kind = stem[: -len(".source")], "source"
        other = by_name.setdefault((stem, kind), path)
        if other != path:
            raise UserError(f"{path} and {other} have the same key {stem!r}; rename or drop one of them")
    for (stem, _), path in by_name.items():
        if (stem, "text") not in by_name:
            raise UserError(f"{path} has no caption; write {folder / stem}.txt or move the image away")
    return [
        _from_files(folder, stem, path, by_name.get((stem, "image")), by_name.get((stem, "source")))
        for (stem, kind), path in by_name.items()
        if kind == "text"
    ]


def _files(folder: Path) -> list[Path]:
    """All files below `folder`, linked folders too, once each; hidden ones and the attribution aside."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [name for name in folders if not name.startswith(".")] if real not in seen else []
        if real not in seen:
            found += [Path(root) / name for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(path for path in found if path != folder / ATTRIBUTION_FILE)


def _from_files(folder: Path, stem: str, caption: Path, image: Path | None, source: Path | None) -> OwnSample:
    try:
        text = caption.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{caption} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    if not text:
        raise UserError(f"the caption {caption} is empty; write one or move the sample away")
    parents = Path(stem).parts[:-1]
    return OwnSample(_key(stem), parents[0] if parents else CUSTOM, text, image, source, str(folder / stem))


def _from_csv(path: Path) -> list[OwnSample]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            unknown = [name for name in columns if name not in _COLUMNS]
            if "caption" not in columns or unknown:
                raise UserError(
                    f"{path} has the columns {', '.join(columns) or '(none)'}; "
                    "it needs caption and may have image, source, category"
                )
            return [_from_row(path, reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a UTF-8 CSV file: {error}") from error


def _from_row(path: Path, line: int, row: dict[str, Any]) -> OwnSample:
    origin = f"{path}, line {line}"
    if None in row:
        raise UserError(f"{origin}: more fields than columns; put captions with commas in double quotes")
    values = {name: (row.get(name) or "").strip() for name in _COLUMNS}
    if not values["caption"]:
        raise UserError(f"{origin}: the caption is empty; write one or drop the line")
    image, source = (path.parent / values[name] if values[name] else None for name in ("image", "source"))
    for each in (image, source):
        if each is not None and not each.is_file():
            raise UserError(f"{origin}: there is no {each}; paths are relative to the CSV file")
    key = f"{line:08d}" + (f"-{_key(Path(values['image']).stem)}" if image else "")
    return OwnSample(key, values["category"] or CUSTOM, values["caption"], image, source, origin)


def _key(stem: str) -> str:
    """A key safe in a tar: webdataset splits names at the first dot."""
    return re.sub(r"[^\w-]", "_", stem)


def own_members(sample: OwnSample, resolution: int) -> tuple[str, dict[str, bytes]]:
    """Key and members of a raw sample, images scaled and centre-cropped to `resolution` pixels square, RGB."""
    meta = {"task": sample.task, "category": sample.category, "height": resolution, "width": resolution}
    members = {"txt": sample.text.encode(), "json": json.dumps(meta).encode()}
    for name, path in (("png", sample.image), ("source.png", sample.source)):
        if path is not None:
            members[name] = png_bytes(_square(path, resolution))
    return sample.key, members


def _square(path: Path, resolution: int) -> Image.Image:
    image = read_image(path, "", "check its rights, replace it or drop the sample")
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
