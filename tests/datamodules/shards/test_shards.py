"""Raw and encoded shards: what is written is read back; what is broken is named; nothing half-written stays."""

from __future__ import annotations

import io
import json
import multiprocessing
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from shard_fakes import COUNTS, make_encoded, members, png, write_raw, write_tar

from datamodules.shards import remote
from datamodules.shards.arrays import npy_bytes
from datamodules.shards.counts import INDEX
from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.raw import raw_shards, read_raw
from datamodules.shards.writer import ShardWriter
from workbench.common import files
from workbench.common.errors import UserError


def test_raw_shards_are_read_back_in_order(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "raw", COUNTS)
    samples = [sample for shard in raw_shards(str(folder)) for sample in read_raw(shard)]
    assert [f"{s.task}/{s.category}" for s in samples] == [name for name, n in COUNTS.items() for _ in range(n)]
    for sample in samples:
        assert sample.target is not None and sample.target.size == (32, 32)
        assert len(sample.sources) == (sample.task == "edit")


def test_folder_braces_pipe_and_http_give_the_same_samples(tmp_path: Path, serve) -> None:
    folder = write_raw(tmp_path / "raw", COUNTS)
    url, _ = serve(folder)
    addresses = (
        str(folder),
        f"{folder}/{{000..003}}.tar",
        f"pipe:cat {folder}/{{000..003}}.tar",
        f"{url}/{{000..003}}.tar",
    )
    keys = [[s.key for shard in raw_shards(address) for s in read_raw(shard)] for address in addresses]
    assert len(keys[0]) == sum(COUNTS.values())
    assert keys[0] == keys[1] == keys[2] == keys[3]


def test_prompt_only_and_img2dataset_samples(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "x.tar",
        {
            **members("a", 1, "t2i", "text", prompt_only=True),
            "b.jpg": png(3),  # PNG content under another name still decodes
            "b.txt": b"a house",
            "b.json": json.dumps({"caption": "a house", "url": "http://h/b.jpg", "status": "success"}).encode(),
        },
    )
    first, second = read_raw(str(tar))
    assert first.target is None and (first.task, first.category) == ("t2i", "text")
    assert second.target is not None and (second.task, second.category) == ("t2i", "custom")


BROKEN = {
    "another format": ({"a.txt": b"x", "a.gif": b"x"}, "sample a: gif is none of png"),
    "another format of the source": ({"a.txt": b"x", "a.source.TIF": b"x"}, r"sample a: source\.tif is none of png"),
    "sources from 2 on": ({"a.txt": b"x", "a.source.2.png": png(1)}, "sample a: has source_2: sources are numbered"),
    "a gap": ({"a.txt": b"x", "a.source.png": png(1), "a.source3.png": png(1)}, "has source, source_3: sources are"),
    "two forms": (
        {"a.txt": b"x", "a.source.png": png(1), "a.source.jpg": png(1)},
        r"source\.png and source\.jpg; keep",
    ),
    "image": ({"a.txt": b"x", "a.png": b"not an image"}, "sample a, png: the image does not decode"),
    "cut image": ({"a.txt": b"x", "a.png": png(1)[:60]}, "sample a, png: the image does not decode"),
    "empty caption": ({"a.txt": b"  \n", "a.png": png(1)}, "a.txt is empty"),
    "no caption": ({"a.png": png(1)}, "a.txt is missing"),
    "latin-1 caption": ({"a.txt": "é".encode("latin-1")}, "not UTF-8"),
    "json": ({"a.txt": b"x", "a.json": b"{"}, r"sample a, a\.json: not valid JSON"),
    "json list": ({"a.txt": b"x", "a.json": b"[]"}, "must be an object"),
    "edit without source": ({"a.txt": b"x", "a.json": b'{"task": "edit"}'}, "has no source image"),
    "generation with source": (
        {"a.txt": b"x", "a.source.png": png(1), "a.json": b'{"task": "t2i"}'},
        "has a source image",
    ),
    "two targets": ({"a.txt": b"x", "a.png": png(1), "a.jpg": png(1)}, "png and jpg"),
    "twice": ({"a.txt": b"x", "a.TXT": b"y"}, "twice|a.TXT"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_raw_samples_are_named(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    tar = write_tar(tmp_path / "broken.tar", content)
    with pytest.raises(UserError, match=message) as error:
        list(read_raw(str(tar)))
    assert "broken.tar" in str(error.value)


@pytest.mark.parametrize("cut", [0, 100, 700, 1024, 2048, -1600, -1024, -512])
def test_a_truncated_raw_shard_is_named(tmp_path: Path, cut: int) -> None:
    content = {f"{i}.txt": b"x" * 512 for i in range(4)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, value in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    whole = 4 * 1024
    path = tmp_path / "cut.tar"
    path.write_bytes(buffer.getvalue()[: cut if cut >= 0 else whole + cut])
    with pytest.raises(UserError, match=r"cut\.tar"):
        list(read_raw(str(path)))


def test_raw_addresses_that_lead_nowhere(tmp_path: Path, serve) -> None:
    url, handler = serve(write_raw(tmp_path / "raw", COUNTS))
    for address in (
        str(tmp_path),
        str(tmp_path / "none.tar"),
        str(tmp_path / "x-{0..2}.tar"),
        f"{url}/",
        f"{url}/{{0.tar",
    ):
        with pytest.raises(UserError):
            raw_shards(address)
    with pytest.raises(UserError, match="404"):
        list(read_raw(f"{url}/none.tar"))
    with pytest.raises(UserError, match="exit 3"):
        list(read_raw("pipe:exit 3"))
    with pytest.raises(UserError, match="cannot read|refused"):
        list(read_raw("http://127.0.0.1:9/x.tar"))
    handler.failures["/000.tar"] = [500] * 10
    with pytest.raises(UserError, match="500"):
        list(read_raw(f"{url}/000.tar"))
    handler.failures["/000.tar"] = [503, 500]
    assert len(list(read_raw(f"{url}/000.tar"))) == 7
    handler.failures["/000.tar"] = ["cut"]
    with pytest.raises(UserError, match=r"000\.tar"):
        list(read_raw(f"{url}/000.tar"))


def test_writing_is_deterministic_atomic_and_gives_true_offsets(tmp_path: Path) -> None:
    content = {f"{'ü' * i}{'long' * 40 * i}.txt": bytes(range(i, i + 70)) for i in range(4)}
    for name in ("a.tar", "b.tar"):
        with ShardWriter(tmp_path / name) as shard:
            places = {member: shard.add(member, value) for member, value in content.items()}
    raw = (tmp_path / "a.tar").read_bytes()
    assert raw == (tmp_path / "b.tar").read_bytes()
    assert (shard.num_bytes, shard.sha256) == (len(raw), files.sha256_of_file(tmp_path / "a.tar"))
    assert {member: raw[offset : offset + size] for member, (offset, size, _) in places.items()} == content
    assert {member: crc for member, (_, _, crc) in places.items()} == {k: zlib.crc32(v) for k, v in content.items()}

    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "c.tar") as shard:
        shard.add("x.txt", b"x")
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_too_small_a_disk_is_said_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="free space"):
        files.require_space(tmp_path / "not" / "yet", 1 << 60, "encoding")


def test_encoded_shards_are_valid_webdatasets_with_the_indexed_members(encoded_folder: Path) -> None:
    index = json.loads((encoded_folder / INDEX).read_text())
    stored = {}
    urls = [str(encoded_folder / shard["name"]) for shard in index["shards"]]
    for sample in wds.WebDataset(urls, shardshuffle=False, empty_check=False):
        stored[sample["__key__"]] = {name: value for name, value in sample.items() if not name.startswith("__")}
    assert list(stored) == [sample["key"] for sample in index["samples"]]
    for sample in index["samples"]:
        assert set(stored[sample["key"]]) == set(sample["members"])
        for name, (shard, offset, size, _) in sample["members"].items():
            with open(urls[shard], "rb") as file:
                file.seek(offset)
                assert file.read(size) == stored[sample["key"]][name]
        assert json.loads(stored[sample["key"]]["json"])["length"] == sample["length"]


def read_in_child(dataset: EncodedDataset, queue) -> None:
    queue.put([dataset.read(i).prompt.tobytes() for i in range(len(dataset))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_any_process_reads_the_same(dataset: EncodedDataset, method: str) -> None:
    expected = [dataset.read(i).prompt.tobytes() for i in range(len(dataset))]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(dataset, queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
    assert [dataset.read(i).prompt.tobytes() for i in range(len(dataset))] == expected


def test_a_shard_that_goes_while_it_is_in_use_is_named(tmp_path: Path) -> None:
    folder = make_encoded(tmp_path)
    dataset = EncodedDataset(str(folder))
    dataset.read(0)
    shard = folder / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=r"000000\.tar is truncated"):
        dataset.read(0)
    shard.unlink()
    with pytest.raises(UserError, match=r"cannot read shard .*000000\.tar: No such file"):
        dataset.read(0)


def test_damaged_encoded_folders_are_named(tmp_path: Path) -> None:
    folder = make_encoded(tmp_path)
    with pytest.raises(UserError, match=r"index\.json is missing"):
        EncodedDataset(str(tmp_path / "none"))
    shard, whole = folder / "000000.tar", (folder / "000000.tar").read_bytes()
    shard.write_bytes(whole[:1000])
    with pytest.raises(UserError, match=rf"truncated: 1000 bytes of {len(whole)}"):
        EncodedDataset(str(folder))
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        EncodedDataset(str(folder))
    shard.write_bytes(whole)
    index = json.loads((folder / INDEX).read_text())
    for change in (
        {"version": 99},
        {"samples": []},
        {"samples": [{**index["samples"][0], "members": {"prompt.npy": [0, 10**9, 10]}}]},
        {"samples": [{**index["samples"][0], "geometry": 17}]},
        {"shards": [{**index["shards"][0], "name": "../000000.tar"}]},
    ):
        (folder / INDEX).write_text(json.dumps({**index, **change}))
        with pytest.raises(UserError):
            EncodedDataset(str(folder))
    (folder / INDEX).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        EncodedDataset(str(folder))


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    folder = make_encoded(tmp_path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    index = json.loads((folder / INDEX).read_text())
    shard, offset, size, _ = index["samples"][0]["members"]["prompt.npy"]
    index["samples"][0]["members"]["prompt.npy"] = [shard, offset, size]
    (folder / INDEX).write_text(json.dumps(index))
    content = bytearray((folder / index["shards"][shard]["name"]).read_bytes())
    content[offset : offset + size] = buffer.getvalue()[:size].ljust(size, b"x")
    (folder / index["shards"][shard]["name"]).write_bytes(content)
    with pytest.raises(UserError, match=r"prompt\.npy: not a plain array"):
        EncodedDataset(str(folder)).read(0)


def test_values_beyond_float16_are_named() -> None:
    with pytest.raises(UserError, match="sample x.*70000"):
        npy_bytes(np.array([[7e4]]), "sample x")


def test_remote_shards_are_cached_whole_once(encoded_folder: Path, dataset: EncodedDataset, serve) -> None:
    url, handler = serve(encoded_folder)
    handler.failures |= {"/000000.tar": [500, "cut"], "/000001.tar": ["cut", 503], "/index.json": [502]}
    remote_dataset = EncodedDataset(url)
    for i in range(len(dataset)):
        local, cached = dataset.read(i), remote_dataset.read(i)
        np.testing.assert_array_equal(local.prompt, cached.prompt)
        np.testing.assert_array_equal(local.uncond, cached.uncond)
    handler.requests.clear()
    EncodedDataset(url + "")
    assert handler.requests == ["/index.json"]


def test_a_server_that_keeps_failing_leaves_finished_shards_and_no_broken_ones(
    encoded_folder: Path, serve, tmp_path: Path
) -> None:
    url, handler = serve(encoded_folder)
    handler.failures["/000001.tar"] = ["cut"] * 4
    with pytest.raises(UserError, match=r"000001\.tar after 4 attempts"):
        EncodedDataset(url)
    cached = [path.name for path in (tmp_path / "cache").rglob("*.tar")]
    assert len(cached) == 1 and cached[0].endswith("000000.tar")
    assert not list((tmp_path / "cache").rglob("*.part"))
    handler.requests.clear()
    EncodedDataset(url)
    assert "/000000.tar" not in handler.requests and "/000001.tar" in handler.requests


def test_a_server_that_knows_no_head_is_read_all_the_same(tmp_path: Path, serve) -> None:
    url, site = serve(write_raw(tmp_path / "raw", {"t2i/text": 2}))
    whole = remote.describe(f"{url}/000.tar")
    site.do_HEAD = lambda self: self.send_error(405)
    assert remote.describe(f"{url}/000.tar") == whole and whole["Content-Length"]


def test_a_wrong_content_is_not_cached(tmp_path: Path, serve) -> None:
    folder = make_encoded(tmp_path)
    shard = folder / "000000.tar"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    url, _ = serve(folder)
    with pytest.raises(UserError, match="sha256"):
        EncodedDataset(url)
