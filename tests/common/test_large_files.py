"""Large files: their bytes and digest, the disk waited for, and weights as the library writes them."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from workbench.backbones import weight_files
from workbench.common import files, large_files
from workbench.common.large_files import LargeFile, copy_large, sync_tree


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_files, "WINDOW_BYTES", 1000)
    monkeypatch.setattr(large_files, "COPIED_BYTES", 700)


def test_content_and_digest(tmp_path: Path) -> None:
    parts = [os.urandom(count) for count in (0, 1, 999, 1000, 1001, 5003)]
    with closing(LargeFile(tmp_path / "a", hashed=True)) as file:
        assert [file.write(part) for part in parts] == [*map(len, parts)]
        assert file.tell() == 8004
    content = b"".join(parts)
    assert (tmp_path / "a").read_bytes() == content and file.sha256 == hashlib.sha256(content).hexdigest()
    file.close()
    copy_large(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_all_of_it_is_on_the_disk_when_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more than two windows wait for the disk meanwhile."""
    synced, fsync = [0], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with closing(LargeFile(tmp_path / "a")) as file:
        for _ in range(50):
            file.write(os.urandom(333))
            assert file.tell() - synced[-1] <= 2 * large_files.WINDOW_BYTES + 333
    assert synced[-1] == 50 * 333


def test_a_disk_that_fills_later_is_told_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    file = LargeFile(tmp_path / "a")
    file.write(b"x" * 10)
    with pytest.raises(OSError, match="No space left"):
        file.close()
    file.close()
    with pytest.raises(OSError, match="No space left"):
        sync_tree(tmp_path)


def test_weights_are_those_that_the_library_writes(tmp_path: Path) -> None:
    """Every type, a scalar, an empty tensor, a transposed one: read by safetensors, and again written by it."""
    state = {"transposed": torch.randn(7, 9).t(), "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4)}
    state |= {str(dtype): torch.ones(3, 5).to(dtype) for dtype in weight_files._TYPES}
    like = {name: values.to("meta") for name, values in state.items()}
    weight_files.write(tmp_path / "ours", state, like)
    (ours,) = (tmp_path / "ours").iterdir()
    save_file({name: values.contiguous() for name, values in state.items()}, tmp_path / "theirs", {"format": "pt"})
    with safe_open(ours, "pt") as left, safe_open(tmp_path / "theirs", "pt") as right:
        assert left.metadata() == right.metadata() and {*left.keys()} == {*right.keys()}
    assert ours.stat().st_size == pytest.approx((tmp_path / "theirs").stat().st_size, abs=8)
    read = load_file(ours)
    assert all(torch.equal(read[name], values) and read[name].dtype == values.dtype for name, values in state.items())


def test_samples_tell_large_files_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are hashed whole; of large ones size, ends and every stretch of them count."""
    content = bytearray(os.urandom(40_000))
    path = tmp_path / "a"
    path.write_bytes(content)
    assert files.sampled_sha256_of_file(path) == files.sha256_of_file(path)
    for name, value in (("WHOLE_BYTES", 1000), ("SAMPLED_BLOCKS", 5), ("BLOCK_BYTES", 100)):
        monkeypatch.setattr(files, name, value)
    first = files.sampled_sha256_of_file(path)
    assert first == files.sampled_sha256_of_file(path) != files.sha256_of_file(path)
    for at, counts in ((0, True), (39_999, True), (20_000, True), (5_000, False)):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert (files.sampled_sha256_of_file(path) != first) == counts, at
    path.write_bytes(content + b"x")
    assert files.sampled_sha256_of_file(path) != first
