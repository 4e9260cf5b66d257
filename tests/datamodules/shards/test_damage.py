"""Damage to shards is seen: no sample is lost, none changed, without a word; no server holds a run for ever."""

from __future__ import annotations

import io
import json
import random
import socket
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shard_fakes import COUNTS, make_encoded, members, write_raw, write_tar

from datamodules.shards import remote
from datamodules.shards.counts import INDEX
from datamodules.shards.encode_shard import _windows
from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.packed import FINISHED
from datamodules.shards.raw import read_raw
from workbench.common import files
from workbench.common.errors import UserError

BLOCK = tarfile.BLOCKSIZE


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Seven samples as other programs write them, without a `pack.json`."""
    return write_raw(tmp_path / "raw", COUNTS) / "000.tar"


def headers(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [member.offset for member in tar]


def test_every_header_counts(shard: Path) -> None:
    """Python's reader takes a damaged header for the end of the tar."""
    whole = shard.read_bytes()
    generator = random.Random(0)
    for start in headers(whole):
        for damage in ("bit", "zeros"):
            content = bytearray(whole)
            if damage == "bit":
                content[start + generator.randrange(345)] ^= 1 << generator.randrange(8)
            else:
                content[start : start + BLOCK] = bytes(BLOCK)
            shard.write_bytes(content)
            with pytest.raises(UserError, match=r"000\.tar"):
                list(read_raw(str(shard)))


def test_joined_tars_are_named(shard: Path) -> None:
    with pytest.raises(UserError, match="something follows its end-of-archive mark"):
        list(read_raw(f"pipe:cat {shard} {shard.with_name('001.tar')}"))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files_are_named(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.txt", "b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = kind, "a.png"
        tar.addfile(info)
    with pytest.raises(UserError, match=r"'b\.png' is no plain file"):
        list(read_raw(str(tmp_path / "x.tar")))


def test_names_that_the_reader_leaves_out_are_counted(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {"a.txt": b"x", "__of__/b.txt": b"x", "__c__": b"x"})
    with pytest.raises(UserError, match="of its 3 files have names that are left out"):
        list(read_raw(str(tar)))


def test_a_packed_shard_is_the_one_of_its_pack(shard: Path) -> None:
    """Where `pack.json` has the hash, a flipped bit of a caption is seen too."""
    whole = shard.read_bytes()
    entry = {"name": shard.name, "bytes": len(whole), "sha256": files.sha256_of_file(shard), "counts": {"t2i/x": 7}}
    (shard.parent / FINISHED).write_text(json.dumps({"settings": "", "counts": {}, "shards": [entry]}))
    assert len(list(read_raw(str(shard)))) == 7
    at = whole.index(b"caption")
    shard.write_bytes(whole[:at] + b"C" + whole[at + 1 :])
    with pytest.raises(UserError, match=r"sha256 is not the one in pack\.json"):
        list(read_raw(str(shard)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.txt": b"x" * 30_000}, "the caption has 30,000 characters"),
        ({"a.json": b'{"category": ["x"]}'}, "category .* must be a name"),
        ({"a.json": b'{"category": ""}'}, "category '' must be a name"),
        ({"a.json": json.dumps({"category": "x" * 70_000}).encode()}, "category .* must be a name"),
        ({"a.json": b'{"category": "\\ud800"}'}, "not valid JSON"),
        ({"a.json": b'{"task": ["t2i"]}'}, "task"),
    ],
)
def test_values_that_would_fail_late_are_named_early(change: dict[str, bytes], message: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {**members("a", 1, "t2i", "text"), **change})
    with pytest.raises(UserError, match=message) as raised:
        list(read_raw(str(tar)))
    assert len(str(raised.value)) < 1700


def test_few_large_pictures_are_held_at_once(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.shards.encode_shard._WINDOW_PIXELS", 2 * 32 * 32)
    samples = [replace(sample, sources=()) for sample in read_raw(str(shard))]
    assert [len(window) for window in _windows(samples, 3)] == [2, 2, 2, 1]
    monkeypatch.setattr("datamodules.shards.encode_shard._WINDOW_PIXELS", 1 << 28)
    assert [len(window) for window in _windows(samples, 3)] == [3, 3, 1]


def read_all(folder: Path) -> None:
    dataset = EncodedDataset(str(folder))
    for i in range(len(dataset)):
        dataset.read(i)
        dataset.read_text(i)


def test_every_byte_of_encoded_samples_counts(tmp_path: Path) -> None:
    folder = make_encoded(tmp_path)
    index = json.loads((folder / INDEX).read_text())
    generator = random.Random(0)
    paths = [folder / shard["name"] for shard in index["shards"]]
    for sample in generator.sample(index["samples"], 12):
        name = generator.choice([name for name in sample["members"] if name != "json"])
        shard, offset, size, _ = sample["members"][name]
        whole = paths[shard].read_bytes()
        content = bytearray(whole)
        content[offset + generator.randrange(size)] ^= 1 << generator.randrange(8)
        paths[shard].write_bytes(content)
        with pytest.raises(UserError, match=f"is damaged at {sample['key']}.{name}"):
            read_all(folder)
        paths[shard].write_bytes(whole)
    constant = folder / "uncond_t2i.npy"
    content = bytearray(constant.read_bytes())
    content[-1] ^= 1
    constant.write_bytes(content)
    with pytest.raises(UserError, match=r"uncond_t2i\.npy is damaged"):
        EncodedDataset(str(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 3), np.nan, np.float16), "not finite"),
        (np.full((4, 3), np.inf, np.float16), "not finite"),
        (np.ones((4, 3), np.float32), "float32 of shape"),
        (np.ones((4, 3, 1), np.float16), "of shape"),
        (np.ones((5, 3), np.float16), "5 rows, 4 in the index"),
    ],
)
def test_arrays_of_other_makers_are_checked(values: np.ndarray, message: str, tmp_path: Path) -> None:
    """Without a checksum, as other programs and earlier versions write the index."""
    folder = make_encoded(tmp_path)
    index = json.loads((folder / INDEX).read_text())
    buffer = io.BytesIO()
    np.save(buffer, values)
    path = folder / index["shards"][0]["name"]
    whole = path.read_bytes()
    index["samples"][0]["members"]["latent.npy"] = [0, len(whole), len(buffer.getvalue())]
    path.write_bytes(whole + buffer.getvalue())
    index["shards"][0]["bytes"] = path.stat().st_size
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"latent\.npy.*{message}"):
        EncodedDataset(str(folder)).read(0)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, bytes, float], str]:
    """A function that serves one head, then `body` over and over after pauses; returns the address."""
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    monkeypatch.setattr(remote, "SLOWEST_OVER_S", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def serve(connection: socket.socket, head: bytes, body: bytes, pause_s: float) -> None:
        connection.recv(1 << 16)
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
            while True:
                connection.sendall(body)
                time.sleep(pause_s)
        except OSError:
            connection.close()

    def start(head: bytes, body: bytes, pause_s: float) -> str:
        listening = socket.create_server(("127.0.0.1", 0))

        def accept() -> None:
            while True:
                one, _ = listening.accept()
                threading.Thread(target=serve, args=(one, head, body, pause_s), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/x.tar"

    return start


def test_servers_that_drip_or_never_end_are_left(
    answer: Callable[[bytes, bytes, float], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LARGEST_JSON_BYTES", 1 << 20)
    started = time.monotonic()
    drip, endless = answer(b"Content-Length: 999999\r\n", b"x", 0.02), answer(b"", bytes(1 << 16), 0)
    huge = answer(b"Content-Length: 1000000000000000\r\n", bytes(1 << 16), 0)
    for url, message in ((drip, "fewer than 1,024 bytes a second"), (endless, "more than"), (huge, "more than")):
        with pytest.raises(UserError, match=message):
            remote.fetch_bytes(url)
        with pytest.raises(UserError, match=message):
            base, _, name = url.rpartition("/")
            remote.cache_files(base, [(name, 1000, "a" * 64)], tmp_path / "cache")
    with pytest.raises(UserError, match="fewer than 1,024 bytes a second"):
        list(read_raw(drip))
    assert time.monotonic() - started < 10
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name != "lock"]
