"""Tars as other programs write them: pictures of any size, names of any kind, samples that are broken."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from shard_fakes import fake_encoder, fake_latents, members, png, write_raw, write_tar
from torch import from_numpy

from datamodules.shards.counts import INDEX
from datamodules.shards.encode import encode_shards
from datamodules.shards.encode_batch import Encoder, FamilyLimits
from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.left_out import Tally
from datamodules.shards.packed import FINISHED
from datamodules.shards.raw import read_raw
from workbench.common import files
from workbench.common.errors import UserError
from workbench.recipe.config import Data

IMG2DATASET = {
    "caption": "a house", "url": "http://h/0.jpg", "key": "0", "status": "success", "error_message": None,
    "width": 500, "height": 375, "original_width": 4000, "original_height": 3000, "exif": "{}", "sha256": "0" * 64,
    "similarity": float("nan"), "category": None,
}  # fmt: skip


def jpg(size: tuple[int, int], seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(buffer, format="JPEG")
    return buffer.getvalue()


def data_for(folder: Path, **values) -> Data:
    places = {"raw": str(folder / "raw"), "encoded": str(folder / "encoded")}
    return Data(**{**places, "encode_batch_size": 4, "resolution": 128, **values})


def test_an_img2dataset_tar_is_encoded_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(500, 375), (375, 500), (640, 640), (1024, 300), (333, 334)]
    content: dict[str, bytes] = {}
    for i, size in enumerate(sizes):
        content |= {
            f"{i:05d}.jpg": jpg(size, i),
            f"{i:05d}.txt": b"a house",
            f"{i:05d}.json": json.dumps(IMG2DATASET).encode(),
        }
    write_tar(tmp_path / "raw" / "00000.tar", content)
    summary = encode_shards(data_for(tmp_path, keep_raw=True), fake_encoder, "f")
    dataset = EncodedDataset(str(tmp_path / "encoded"))
    assert (summary.num_samples, dataset.categories) == (5, ("t2i/custom",))
    found = [dataset.read_target(i) for i in range(5)]
    assert [image.size for image in found if image] == [(160, 96), (96, 160), (128, 128), (224, 64), (128, 128)]
    for i, image in enumerate(found):
        geometry = dataset.geometries[dataset.samples.geometry[i]]
        assert image is not None and (geometry.width * 16, geometry.height * 16) == image.size
        expected = fake_latents(from_numpy(np.array(image)[None]))[0]
        np.testing.assert_array_equal(dataset.read(i).latent, np.asarray(expected, dtype=np.float16))
    assert (dataset.resolution, dataset.left_out.broken, dataset.left_out.ignored) == (128, [], {})


@pytest.mark.parametrize(
    ("content", "key", "ignored"),
    [
        ({"0.JPG": jpg((64, 64)), "0.TXT": b"x"}, "0", {}),
        ({"22.05.png": png(1), "22.05.txt": b"x"}, "22_05", {}),
        ({"a.b/22.05.png": png(1), "a.b/22.05.txt": b"x"}, "a.b/22_05", {}),
        ({"./0.png": png(1), "./0.txt": b"x"}, "./0", {}),
        ({"._0.png": b"junk", "0.png": png(1), "._0.txt": b"\0", "0.txt": b"x"}, "0", {"hidden": 2}),
        ({"__MACOSX/._0.png": b"junk", "0.png": png(1), "0.txt": b"x", ".DS_Store": b""}, "0", {"hidden": 2}),
        ({"0.png": png(1), "0.cls": b"7", "0.txt": b"x"}, "0", {".cls": 1}),
        ({"0.png": png(1), "0.json": json.dumps(IMG2DATASET).encode()}, "0", {}),
        ({"README": b"r", "0.png": png(1), "0.txt": b"x", "0.pickle": b"p", "1.pyd": b""}, "0",
         {"without a suffix": 1, ".pickle": 1, ".pyd": 1}),
        ({"0.png": png(1), "0.txt": b"x", "0.source.txt": b"of the source"}, "0", {".txt": 1}),
    ],
)  # fmt: skip
def test_names_of_every_kind(
    tmp_path: Path, content: dict[str, bytes], key: str, ignored: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "raw" / "0.tar", content)
    print(encode_shards(data_for(tmp_path), fake_encoder, "f"))
    dataset = EncodedDataset(str(tmp_path / "encoded"))
    assert dataset.samples.keys == (key,) and dataset.has_target(0)
    assert json.loads((tmp_path / "encoded" / INDEX).read_text())["left_out"]["ignored"] == ignored
    said = capsys.readouterr().out
    assert all(f"{count} {kind}" in said for kind, count in ignored.items())
    (sample,) = wds.WebDataset([str(tmp_path / "encoded" / "000000.tar")], shardshuffle=False, empty_check=False)
    assert sample["__key__"] == key and "prompt.npy" in sample and sample["txt"]


def test_both_pictures_of_an_edit_go_to_one_bucket(tmp_path: Path) -> None:
    content = {"a.txt": b"x", "a.png": jpg((500, 375)), "a.source.jpg": jpg((1000, 750))}
    write_tar(tmp_path / "raw" / "0.tar", content)
    encode_shards(data_for(tmp_path, keep_raw=True), fake_encoder, "f")
    dataset = EncodedDataset(str(tmp_path / "encoded"))
    (source,), target = dataset.read_sources(0), dataset.read_target(0)
    assert target is not None and source.size == target.size == (160, 96)
    assert dataset.geometries[0].references[0].width == dataset.geometries[0].width == 10


def test_prompts_of_several_sizes_keep_them(tmp_path: Path) -> None:
    sizes = [(128, 128), (500, 375), (300, 600)]
    content = {}
    for i, (width, height) in enumerate(sizes):
        meta = {"width": width, "height": height}
        content |= {f"{i}.txt": b"a house", f"{i}.json": json.dumps(meta).encode()}
    write_tar(tmp_path / "raw" / "0.tar", content)
    encode_shards(data_for(tmp_path), fake_encoder, "f")
    dataset = EncodedDataset(str(tmp_path / "encoded"))
    shapes = [dataset.geometries[geometry] for geometry in dataset.samples.geometry]
    assert [(shape.width * 16, shape.height * 16) for shape in shapes] == [(128, 128), (160, 96), (96, 192)]


def broken_sample(kind: str) -> dict[str, bytes]:
    match kind:
        case "cut":
            return {"b.jpg": jpg((200, 200))[:300], "b.txt": b"x"}
        case "thin":
            return {"b.jpg": jpg((4000, 8)), "b.txt": b"x"}
        case "dot":
            return {"b.png": png(1, (1, 1)), "b.txt": b"x"}
        case "format":
            return {"b.gif": b"GIF89a", "b.txt": b"x"}
        case "no caption":
            return {"b.png": png(1)}
        case "empty caption":
            return {"b.png": png(1), "b.txt": b" "}
        case "long caption":
            return {"b.png": png(1), "b.txt": b"x" * 30_000}
        case "frames":
            return {"b.png": png(1, (64, 64)), "b.source.png": png(2, (192, 64)), "b.txt": b"x"}
        case "sources":
            return {"b.png": png(1), "b.source.png": png(2), "b.source_2.png": png(3), "b.txt": b"x"}
        case "size":
            return {"b.json": b'{"width": "wide"}', "b.txt": b"x"}
        case _:
            return {"b.png": png(1), "b.txt": b"<token> inside"}


def no_tokens(text: str) -> None:
    if "<token>" in text:
        raise UserError("the prompt holds the template token <token>")


KINDS = (
    "cut", "thin", "dot", "format", "no caption", "empty caption", "long caption", "frames", "sources", "size", "token",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_sample_stops_or_is_skipped_named_and_counted(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = members("a", 1, "t2i", "text") | members("c", 3, "edit", "own")
    write_tar(tmp_path / "raw" / "0.tar", {**members("a", 1, "t2i", "text"), **broken_sample(kind), **whole})
    encoder = Encoder(fake_encoder().prompts, fake_encoder().images, 16, FamilyLimits(32), no_tokens)
    with pytest.raises(UserError, match=r"(sample b|<token>).*data\.broken=skip"):
        encode_shards(data_for(tmp_path), lambda _: encoder, "f")
    assert not (tmp_path / "encoded" / INDEX).exists()
    with pytest.raises(UserError, match=r"1 broken samples, more than data\.max_broken=0"):
        encode_shards(data_for(tmp_path, broken="skip", max_broken=0), lambda _: encoder, "f")
    summary = encode_shards(data_for(tmp_path, broken="skip"), lambda _: encoder, "f")
    assert summary.num_samples == 2 and len(summary.left_out.broken) == 1
    assert "sample b" in summary.left_out.broken[0] or "<token>" in summary.left_out.broken[0]
    assert "1 broken samples left out, named in index.json" in str(summary)
    assert "left out: " in capsys.readouterr().out
    assert EncodedDataset(str(tmp_path / "encoded")).left_out == summary.left_out


def test_the_bound_on_broken_samples_counts_all_shards(tmp_path: Path) -> None:
    for shard in range(3):
        content = {f"{shard}.png": b"junk", f"{shard}.txt": b"x", **members(f"k{shard}", 1, "t2i", "text")}
        write_tar(tmp_path / "raw" / f"{shard}.tar", content)
    with pytest.raises(UserError, match=r"3 broken samples, more than data\.max_broken=2"):
        encode_shards(data_for(tmp_path, broken="skip", max_broken=2), fake_encoder, "f")
    # what was finished is kept, and what it left out is remembered
    summary = encode_shards(data_for(tmp_path, broken="skip", max_broken=3), fake_encoder, "f")
    assert (summary.num_samples, len(summary.left_out.broken)) == (3, 3)


def test_a_damaged_shard_is_never_skipped(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", {"t2i/text": 4})
    path = tmp_path / "raw" / "000.tar"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="truncated"):
        encode_shards(data_for(tmp_path, broken="skip"), fake_encoder, "f")


def test_many_kinds_of_ignored_files_take_no_room(tmp_path: Path) -> None:
    tally = Tally()
    write_tar(tmp_path / "0.tar", {"a.txt": b"x", **{f"a.{'k' * 90}{i}": b"" for i in range(200)}})
    (sample,) = read_raw(str(tmp_path / "0.tar"), tally)
    assert sample.text == "x" and sum(tally.ignored.values()) == 200 and len(tally.ignored) <= 51


def test_long_captions_are_counted(tmp_path: Path) -> None:
    content = {"a.txt": b"word " * 30, "b.txt": b"word", "c.txt": b"word " * 31, "c.source.png": png(1)}
    write_tar(tmp_path / "raw" / "0.tar", content)
    encoder = Encoder(fake_encoder().prompts, fake_encoder().images, 16, FamilyLimits(32), prompt_limit=20)
    summary = encode_shards(data_for(tmp_path), lambda _: encoder, "f")
    assert "warning: 2 samples have captions of more than 20 tokens" in str(summary)
    assert EncodedDataset(str(tmp_path / "encoded")).samples.length[0] == 33, "nothing is cut"


def test_shards_packed_at_another_resolution_are_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", {"t2i/text": 2})
    (tmp_path / "raw" / FINISHED).write_text(json.dumps({"resolution": 32, "shards": []}))
    with pytest.raises(UserError, match=r"was packed at data\.resolution=32, and this is 128"):
        encode_shards(data_for(tmp_path), fake_encoder, "f")


def test_remote_shards_are_checked_where_a_hash_is_known_and_named_where_none_is(
    tmp_path: Path, serve, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_raw(tmp_path / "raw", {"t2i/text": 2}) / "000.tar"
    url, _ = serve(shard.parent)
    data = data_for(tmp_path, resolution=32)
    encode_shards(Data(**{**vars(data), "raw": f"{url}/000.tar"}), fake_encoder, "f")
    assert capsys.readouterr().out.count("warning: no sha256 is known of 1 of the 1 shards") == 1
    encode_shards(Data(**{**vars(data), "raw": f"pipe:cat {shard}", "encoded": str(tmp_path / "b")}), fake_encoder, "f")
    assert capsys.readouterr().out.count("warning: no sha256 is known") == 1
    whole = shard.read_bytes()
    entry = {"name": shard.name, "bytes": len(whole), "sha256": files.sha256_of_file(shard), "counts": {}}
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / FINISHED).write_text(json.dumps({"shards": [entry]}))
    at = whole.index(b"caption")
    (tmp_path / "with" / shard.name).write_bytes(whole)
    url, _ = serve(tmp_path / "with")
    encode_shards(Data(**{**vars(data), "raw": f"{url}/000.tar", "encoded": str(tmp_path / "c")}), fake_encoder, "f")
    assert "no sha256" not in capsys.readouterr().out
    (tmp_path / "with" / shard.name).write_bytes(whole[:at] + b"C" + whole[at + 1 :])
    with pytest.raises(UserError, match=r"sha256 is not the one in pack\.json"):
        encode_shards(
            Data(**{**vars(data), "raw": f"{url}/000.tar", "encoded": str(tmp_path / "d")}), fake_encoder, "f"
        )
