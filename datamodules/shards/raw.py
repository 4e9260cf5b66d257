"""Raw shards: img2dataset-style tars of captions and images, streamed in.

A sample is KEY.txt (caption or instruction; else the `caption` of KEY.json), KEY.json, an optional target
KEY.png|jpg|webp and, for edits, KEY.source.png|jpg|webp, KEY.source_2.png and so on. Suffixes may be of any case, keys
may hold dots; hidden and unknown files are ignored and counted. The tar reading and grouping is webdataset's; decoding
is done here alone, because webdataset's default decoders unpickle.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

import braceexpand
from PIL import Image
from webdataset.gopen import Pipe, gopen
from webdataset.tariterators import group_by_keys, tar_file_expander

from datamodules.shards import remote
from datamodules.shards.left_out import Tally
from datamodules.shards.packed import FINISHED, Packed, packed_shard
from datamodules.shards.sources import in_order, source_name, source_number, split_source
from datamodules.shards.tar_stream import TarStream
from workbench.batch import TASKS, Task
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.images import IMAGE_SUFFIXES, OTHER_IMAGES, decode_image
from workbench.common.outside import LONGEST_TEXT, parse

_LONGEST_CATEGORY = 64
_TEXTS = ("txt", "json")


@dataclass(frozen=True)
class RawSample:
    """One sample as the user made it.

    target: PIL image (RGB or RGBA), or None for prompt-only data. sources: the images that an edit reads, in order.
    meta: KEY.json without `task` and `category`. members: the encoded files as they lie in the shard, by suffix in
    lower case, the caption among them. key: without dots, at which webdataset splits names.
    """

    key: str
    task: Task
    category: str
    text: str
    target: Image.Image | None
    sources: tuple[Image.Image, ...]
    meta: dict[str, Any]
    members: dict[str, bytes] = field(repr=False)


def raw_shards(address: str) -> list[str]:
    """Addresses of the shards behind `data.raw`.

    `address` is a folder of tars, one tar, an http(s) address of tars with braces (`http://h/x-{000..009}.tar`) or of
    a folder that `workbench pack` wrote, or a `pipe:` shell command that prints a tar (braces expand to several).

    Raises:
        UserError: nothing there.
    """
    try:
        expanded = list(braceexpand.braceexpand(address))
    except ValueError as error:
        raise UserError(f"data.raw={address} has unbalanced braces: {error}") from error
    if address.startswith("pipe:"):
        return expanded
    if remote.is_remote(address):
        return expanded if all(url.endswith(".tar") for url in expanded) else _packed_remote(address)
    if Path(address).is_dir():
        if (Path(address) / files.UNFINISHED).is_file():
            raise UserError(f"{address} is half packed: run `workbench pack` again to its end")
        expanded = sorted(str(path) for path in Path(address).glob("*.tar"))
    missing = [path for path in expanded if not Path(path).is_file()]
    if missing or not expanded:
        where = missing[0] if missing else address
        raise UserError(f"no raw shards at {where}; run `workbench pack` or change data.raw")
    return expanded


def _packed_remote(address: str) -> list[str]:
    url = f"{address.rstrip('/')}/{FINISHED}"
    try:
        content = remote.fetch_bytes(url)
    except UserError as error:
        raise UserError(
            f"data.raw={address} has no readable pack.json ({error}); name the tars themselves, as in "
            f"{address.rstrip('/')}/shard-{{000..009}}.tar"
        ) from error
    return [f"{address.rstrip('/')}/{shard.name}" for shard in parse(content, Packed, url, "pack again there").shards]


def _open(url: str) -> BinaryIO | Pipe | remote.Steady:
    match url.split(":", 1)[0]:
        case "http" | "https":
            return remote.open_url(url)
        case "pipe":
            return gopen(url)
        case _:
            return open(url, "rb")


def member_of(name: str) -> tuple[str, str] | None:
    """Key and suffix, in lower case, of a file of a tar: `a/22.05.JPG` gives `a/22.05` and `jpg`, `a.source2.png` gives
    `a` and `source_2.png`. None for a file that belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.rpartition(".")
    suffix, source = suffix.lower(), split_source(stem)
    if not stem or is_hidden(name) or suffix not in (*IMAGE_SUFFIXES, *OTHER_IMAGES, *(() if source else _TEXTS)):
        return None
    if source is None:
        return folder + slash + stem, suffix
    return folder + slash + source[0], f"{source_name(source[1])}.{suffix}"


def is_hidden(name: str) -> bool:
    """Whether a file is one of those that systems leave between others: `._0.png`, `.DS_Store`, `__MACOSX/0.png`."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def _members(url: str, tally: Tally) -> Iterator[dict[str, Any]]:
    """Files of one shard that belong to samples, as webdataset has them, and once all have been read the check that it
    was whole."""
    stream = TarStream(_open(url))
    try:
        num_read = 0
        for member in tar_file_expander([{"url": url, "stream": stream}]):
            num_read += bool(member)
            name = member.get("fname")
            if name is None or member_of(name):
                yield member
            else:
                tally.ignore(kind_of(name))
        stream.finish(num_read, packed_shard(url))
    finally:
        with suppress(OSError):  # a command that is stopped early complains of its broken pipe
            stream.stream.close()


def kind_of(name: str) -> str:
    """How the count of ignored files calls one: `hidden`, or its suffix."""
    return "hidden" if is_hidden(name) else (Path(name).suffix.lower() or "without a suffix")


def read_raw(url: str, tally: Tally | None = None) -> Iterator[RawSample]:
    """The samples of one shard in order, read as a stream.

    tally: counts the files that are ignored, and says whether samples that cannot be used end the reading.

    Raises:
        UserError: naming the shard, the sample and what to do, for a shard that is missing, truncated or answers with
            an error, an image or JSON that does not decode, a missing or empty caption, sources with a gap.
    """
    tally = tally or Tally()
    try:
        for grouped in group_by_keys(_members(url, tally), keys=member_of):
            decoded: RawSample | None = None
            with tally.sample():
                decoded = _decode(url, grouped)
            if decoded is not None:
                yield decoded
    except tarfile.TarError as error:
        raise UserError(f"shard {url} is truncated or no tar: {_first(error)}; fetch or write it again") from error
    except (OSError, HTTPException) as error:
        raise UserError(f"cannot read shard {url}: {_first(error)}; check the address and its rights") from error
    except ValueError as error:
        raise UserError(f"shard {url} has a member twice: {_first(error)}; keys must be unique") from error


def _first(error: Exception) -> str:
    # webdataset appends streams and addresses to the arguments; OSError keeps its text apart from them
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error.args[0]).split(" @ <")[0] if error.args else type(error).__name__


def _decode(url: str, grouped: dict[str, Any]) -> RawSample:
    key = grouped["__key__"]
    where = f"shard {url}, sample {key}"
    members = {name: content for name, content in grouped.items() if not name.startswith("__")}
    meta: dict[str, Any] = parse(members.get("json", b"{}"), dict, f"{where}, {key}.json", "write it again")
    text = _caption(members, meta.get("caption"), where, key)
    members.setdefault("txt", text.encode())
    target = _image(members, "", where)
    sources = in_order(_sources(members, where), where)
    task = meta.pop("task", "edit" if sources else "t2i")
    if task not in TASKS or (task == "edit") != bool(sources):
        have = "has a source image" if sources else "has no source image"
        raise UserError(f"{where}: task {task!r}, but the sample {have}; edits (`edit`) have one, `t2i` has none")
    category = meta.pop("category", None)
    category = "custom" if category is None else category
    if not isinstance(category, str | int) or not 0 < len(str(category)) <= _LONGEST_CATEGORY:
        raise UserError(f"{where}: category {category!r} must be a name of at most {_LONGEST_CATEGORY} characters")
    folder, slash, base = key.rpartition("/")
    safe = folder + slash + base.replace(".", "_")
    return RawSample(safe, task, str(category), text, target, sources, meta, members)


def _sources(members: dict[str, bytes], where: str) -> dict[int, Image.Image]:
    """Source images by their numbers."""
    numbers = [source_number(name.rpartition(".")[0]) for name in members]
    images = {number: _image(members, f"{source_name(number)}.", where) for number in numbers if number is not None}
    return {number: image for number, image in images.items() if image is not None}


def _caption(members: dict[str, bytes], of_json: Any, where: str, key: str) -> str:
    """KEY.txt, or the caption of KEY.json where there is none."""
    if "txt" in members:
        try:
            text = members["txt"].decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: {key}.txt is not UTF-8 ({error.reason}); save it as UTF-8") from error
        if not text:
            raise UserError(f"{where}: the caption {key}.txt is empty; write one or drop the sample")
    elif isinstance(of_json, str) and of_json.strip():
        text = of_json.strip()
    else:
        raise UserError(f"{where}: {key}.txt is missing; every sample needs a caption, there or in {key}.json")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{where}: the caption has {len(text):,} characters, {LONGEST_TEXT:,} at most; shorten it")
    return text


def _image(members: dict[str, bytes], prefix: str, where: str) -> Image.Image | None:
    other = [suffix for suffix in OTHER_IMAGES if prefix + suffix in members]
    if other:
        raise UserError(f"{where}: {prefix}{other[0]} is none of {', '.join(IMAGE_SUFFIXES)}; convert it or drop it")
    found = [suffix for suffix in IMAGE_SUFFIXES if prefix + suffix in members]
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"{where}: has {' and '.join(prefix + suffix for suffix in found)}; keep one of them")
    return decode_image(members[prefix + found[0]], f"{where}, {prefix}{found[0]}")
