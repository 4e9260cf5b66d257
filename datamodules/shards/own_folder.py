"""A folder of a user's images: captions as text files next to them, or tables that name them.

Captions: `x.png|jpg|webp` with `x.txt`, `x.source.png|jpg|webp` for an edit, then `x.source_2.png` and so on; a caption
alone is a prompt-only sample; the first subfolder is the category, else `custom`. Tables: `metadata.csv|jsonl|parquet`
in any subfolder, as Hugging Face has them, or where no picture has a caption of its own all tables that there are.
"""

from __future__ import annotations

import os
from pathlib import Path

from datamodules.shards.left_out import Tally
from datamodules.shards.own_sample import CUSTOM, OwnSample, checked_text, read_text, safe_key
from datamodules.shards.own_table import TABLES, read_prompts, read_table
from datamodules.shards.raw import kind_of
from datamodules.shards.sources import in_order, source_name, source_number, split_source
from workbench.common.errors import UserError
from workbench.common.images import IMAGE_SUFFIXES, OTHER_IMAGES

ATTRIBUTION_FILE = "ATTRIBUTION.txt"
METADATA = tuple(f"metadata{suffix}" for suffix in TABLES)
Files = dict[str, dict[str, Path]]
"""Stem -> `text` or `image` or the name of a source -> file."""


def read_folder(folder: Path, tally: Tally) -> list[OwnSample]:
    """The samples in a folder, in order. tally: counts the files that are ignored.

    Raises:
        UserError: naming the file, for an image without a caption, an empty caption, two samples of one key, sources
            with a gap, a text file that could be one prompt or many.
    """
    paths = _files(folder, tally)
    metadata = [path for path in paths if path.name.lower() in METADATA]
    tables = metadata or [path for path in paths if path.suffix.lower() in TABLES]
    captions = [path for path in paths if path.suffix.lower() == ".txt"]
    if metadata or (tables and not captions):
        return _from_tables(paths, tables, tally)
    if len(captions) == 1 and not _pictures(paths) and len(_lines(read_text(captions[0]))) > 1:
        _ignore(tally, [path for path in paths if path not in captions])
        return read_prompts(captions[0], tally)
    return _from_captions(folder, paths, tally)


def _pictures(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.suffix[1:].lower() in (*IMAGE_SUFFIXES, *OTHER_IMAGES)]


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _from_tables(paths: list[Path], tables: list[Path], tally: Tally) -> list[OwnSample]:
    samples: list[OwnSample] = []
    for number, table in enumerate(tables):
        samples += read_table(table, tally, f"{number:04d}-" if len(tables) > 1 else "")
    used = {each for sample in samples for each in (sample.image, *sample.sources) if isinstance(each, Path)}
    used |= {*tables}
    _ignore(tally, [path for path in paths if path not in used])
    return samples


def _from_captions(folder: Path, paths: list[Path], tally: Tally) -> list[OwnSample]:
    files = _by_name(folder, paths, tally)
    samples: list[OwnSample] = []
    for stem, of_one in files.items():
        with tally.sample():
            if "text" not in of_one:
                path = next(iter(of_one.values()))
                raise UserError(f"{path} has no caption; write {folder / stem}.txt or move the image away")
            samples.append(_sample(folder, stem, of_one))
    return samples


def _by_name(folder: Path, paths: list[Path], tally: Tally) -> Files:
    """Captions and images by the stem of their names."""
    found: Files = {}
    for path in paths:
        suffix = path.suffix.lower().lstrip(".")
        if suffix not in (*IMAGE_SUFFIXES, *OTHER_IMAGES, "txt"):
            _ignore(tally, [path])
            continue
        with tally.sample():
            if suffix in OTHER_IMAGES:
                raise UserError(f"{path} is none of {', '.join(IMAGE_SUFFIXES)}; convert it, or move it away")
            if not path.is_file():
                raise UserError(f"{path} is a link that leads nowhere; mend it or remove it")
            stem = str(path.relative_to(folder))[: -len(path.suffix)]
            kind = "text" if suffix == "txt" else "image"
            if kind == "image" and (source := split_source(stem)):
                stem, kind = source[0], source_name(source[1])
            other = found.setdefault(stem, {}).setdefault(kind, path)
            if other != path:
                raise UserError(f"{path} and {other} have the same key {stem!r}; rename or drop one of them")
    return found


def _sample(folder: Path, stem: str, of_one: dict[str, Path]) -> OwnSample:
    """The sample of the files with one stem."""
    caption = of_one["text"]
    text = checked_text(read_text(caption), f"the caption {caption}")
    if len(of_one) == 1 and len(_lines(text)) > 1:
        raise UserError(
            f"{caption} has {len(_lines(text)):,} lines and no picture: for a list of prompts, one a line, name the "
            "file itself as data.source; a prompt alone stands on one line"
        )
    parents = Path(stem).parts[:-1]
    category = parents[0] if parents else CUSTOM
    numbered = {number: path for kind, path in of_one.items() if (number := source_number(kind)) is not None}
    origin = str(folder / stem)
    return OwnSample(safe_key(stem), category, text, of_one.get("image"), in_order(numbered, origin), origin)


def _files(folder: Path, tally: Tally) -> list[Path]:
    """All files below `folder`, linked folders too, once each; hidden ones and the attribution aside."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [name for name in folders if not name.startswith(".")] if real not in seen else []
        if real not in seen:
            found += [Path(root) / name for name in names if not name.startswith(".")]
            _ignore(tally, [Path(root) / name for name in names if name.startswith(".")])
        seen.add(real)
    return sorted(path for path in found if path != folder / ATTRIBUTION_FILE)


def _ignore(tally: Tally, paths: list[Path]) -> None:
    for path in paths:
        tally.ignore(path.name if path.suffix.lower() in TABLES else kind_of(path.name))
