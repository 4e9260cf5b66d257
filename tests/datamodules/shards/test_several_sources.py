"""Edits of several sources in every form that users bring: one sample, its sources in the order of their numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shard_fakes import png

from datamodules.shards.pack import pack
from datamodules.shards.raw import raw_shards, read_raw
from workbench.recipe.config import Data, Recipe

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


def parquet_of(row: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([row]), buffer)
    return buffer.getvalue()


INSIDE = [{"bytes": None, "path": "one.png"}, {"bytes": png(1, (60, 60)), "path": "another.png"}]
SEVERAL: dict[str, dict[str, bytes]] = {
    "files": {f"a{name}": png(i, (90 - 30 * i, 60)) for i, name in enumerate((".source.png", ".source-2.png"))},
    "more files": {f"a{name}": png(i, (90 - 30 * i, 60)) for i, name in enumerate((".source1.png", ".Source.2.png"))},
    "a list": {"x.jsonl": b'{"text": "put both together", "image": "t.png", "edit_image": ["one.png", "two.png"]}'},
    "a list in a csv": {"x.csv": b'prompt,target,source\nput both together,t.png,"[""one.png"", ""two.png""]"\n'},
    "inside Parquet": {"x.parquet": parquet_of({"text": "put both together", "target": "t.png", "source": INSIDE})},
    "columns": {"x.csv": b"prompt,target,edit_image2,edit_image\nput both together,t.png,two.png,one.png\n"},
}


@pytest.mark.parametrize("form", SEVERAL)
def test_several_sources_in_every_form(form: str, tmp_path: Path) -> None:
    """Each goes to the size of its own aspect, and their order is that of the numbers."""
    own = tmp_path / "own"
    content = {"t.png": png(7, (60, 60)), "one.png": png(0, (90, 60)), "two.png": png(1, (60, 60))}
    if "files" in form:
        content = {"a.txt": b"put both together", "a.png": content["t.png"]}
    own.mkdir()
    for name, value in (content | SEVERAL[form]).items():
        (own / name).write_bytes(value)
    data = Data(source=str(own), raw=str(tmp_path / "raw"), resolution=64, num_workers=0)
    summary = pack(Recipe(data=data))
    (sample,) = read_raw(raw_shards(str(tmp_path / "raw"))[0])
    unused = {".png": 1} if form == "inside Parquet" else {}
    assert (sample.task, sample.text, summary.left_out.ignored) == ("edit", "put both together", unused)
    assert [source.size for source in sample.sources] == [(96, 64), (64, 64)]
    colours = [image.getpixel((0, 0)) for image in sample.sources]
    assert colours == [Image.open(io.BytesIO(png(seed))).getpixel((0, 0)) for seed in (0, 1)]
    assert sorted(sample.members) == ["json", "png", "source.png", "source_2.png", "txt"]
