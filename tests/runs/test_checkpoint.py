"""Checkpoints: exact, atomic, and read without trusting them."""

from __future__ import annotations

import errno
import os
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from workbench.backbones.finite import tensors_of
from workbench.common.errors import UserError
from workbench.common.large_files import LargeFile
from workbench.runs import checkpoint
from workbench.runs.safe_reader import SafeReader


def a_trained_layer(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, dict]:
    torch.manual_seed(seed)
    layer = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(layer.parameters())
    checkpoint.prime(optimizer)
    layer(torch.randn(2, 3)).square().sum().backward()
    optimizer.step()
    average = {name: parameter.detach() + 1 for name, parameter in layer.named_parameters()}
    return layer, optimizer, checkpoint.training_state(dict(layer.named_parameters()), average, [optimizer])


def flat(state: dict) -> list[torch.Tensor]:
    moments = [tensor for moment in state["moments"].values() for tensor in moment.values()]
    return [*state["parameters"].values(), *state["average"].values(), *moments]


def test_round_trip_is_bit_exact_and_keeps_the_last_two(tmp_path: Path) -> None:
    _, _, saved = a_trained_layer(0)
    for update in (1, 2, 3):
        checkpoint.save(tmp_path, saved, checkpoint.Progress(update, 0))
    _, _, loaded = a_trained_layer(1)
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[1] == checkpoint.Progress(3, 0)
    checkpoint.load(found[0], loaded)
    assert all(torch.equal(left, right) for left, right in zip(flat(saved), flat(loaded), strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000002", "update-000003"]


def test_priming_changes_no_step() -> None:
    results = []
    for prime in (False, True):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(5))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1)
        if prime:
            checkpoint.prime(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            parameter.pow(3).sum().backward()
            optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_a_failing_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, state = a_trained_layer(0)
    checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(tmp_path, state, checkpoint.Progress(2, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["update-000001"]


def test_a_full_disk_is_called_so_whatever_torch_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says `unexpected pos 704 vs 598` of a write that failed."""
    _, _, state = a_trained_layer(0)
    write, written = LargeFile._write, []

    def full_later(self: LargeFile, view: memoryview) -> int:
        written.append(len(view))
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, view)

    monkeypatch.setattr(LargeFile, "_write", full_later)
    with pytest.raises(UserError, match=r"update-000001: No space left on device; free some disk"):
        checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))
    assert not list(tmp_path.iterdir())


def test_a_rank_that_ended_meanwhile_is_no_fault_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody shall free a disk that is not full, nor delete a checkpoint that is whole."""
    _, _, state = a_trained_layer(0)
    written = checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("[pair.cc:537] Connection closed by peer [127.0.0.1]:4711\nCheck the logs. GLHF!")

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for what in ("save", "load"):
            monkeypatch.setattr(checkpoint.dcp, what, fails)
        with pytest.raises(UserError, match="^another rank ended"):
            checkpoint.save(tmp_path, state, checkpoint.Progress(2, 0))
        with pytest.raises(UserError, match="^another rank ended"):
            checkpoint.load(written, state)
    finally:
        dist.destroy_process_group()
    assert [path.name for path in tmp_path.iterdir()] == ["update-000001"]


def test_a_killed_write_is_not_seen_and_goes_with_the_next(tmp_path: Path) -> None:
    _, _, state = a_trained_layer(0)
    checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))
    partial = tmp_path / ".update-000002.partial"
    partial.mkdir()
    (partial / "__0_0.distcp").write_bytes(b"half")
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[1].num_updates == 1
    checkpoint.save(tmp_path, state, checkpoint.Progress(3, 0))
    assert not partial.exists()


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    _, _, state = a_trained_layer(0)
    path = checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))
    witness = tmp_path / "witness"

    class Hostile:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {witness}",)

    (path / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        checkpoint.load(path, state)
    assert not witness.exists()


def test_a_checkpoint_cannot_change_a_class(tmp_path: Path) -> None:
    _, _, state = a_trained_layer(0)
    path = checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))
    # PosixPath, then a BUILD whose state sets `exists` of it.
    (path / ".metadata").write_bytes(b"\x80\x02cpathlib\nPosixPath\nN}X\x06\x00\x00\x00existsctorch\nSize\ns\x86b.")
    with pytest.raises(UserError, match="changes a class"):
        checkpoint.load(path, state)
    assert Path.exists(path)


@pytest.mark.parametrize("module", [b"pathlib", b"pathlib._local"])
def test_paths_are_read_that_any_python_wrote(tmp_path: Path, module: bytes) -> None:
    _, _, state = a_trained_layer(0)
    path = checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))
    pickled = pickle.dumps(Metadata({}, planner_data=Path("a")), protocol=2)
    (path / ".metadata").write_bytes(re.sub(rb"cpathlib(\._local)?\n", b"c" + module + b"\n", pickled))
    assert SafeReader(path).read_metadata().planner_data == Path("a")


@pytest.mark.parametrize(
    "progress",
    [
        '{"num_updates": -1, "num_skipped": 0}',
        '{"num_updates": "2", "num_skipped": 0}',
        '{"num_updates": null, "num_skipped": 0}',
        '{"num_updates": NaN, "num_skipped": 0}',
        '{"num_updates": 2.0, "num_skipped": 0}',
        '{"num_updates": true, "num_skipped": 0}',
        '{"num_updates": 3, "num_skipped": 0}',
        '{"num_updates": 2, "num_skipped": -1}',
        '{"num_updates": 2}',
        "[]",
        "",
        "[" * 10_000,
    ],
)
def test_counters_that_are_none_are_passed_over(
    progress: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, state = a_trained_layer(0)
    for update in (1, 2):
        path = checkpoint.save(tmp_path, state, checkpoint.Progress(update, 0))
    (path / checkpoint.PROGRESS).write_text(progress)
    for find in (checkpoint.newest, checkpoint.newest_whole):
        found = find(tmp_path)
        assert found is not None and found[1] == checkpoint.Progress(1, 0)
    assert "update-000002 is damaged" in capsys.readouterr().out


def test_every_byte_of_a_checkpoint_counts(tmp_path: Path) -> None:
    _, _, state = a_trained_layer(0)
    path = checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))
    assert checkpoint.fault(path) == ""
    generator = random.Random(0)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for _ in range(20 if file.name != checkpoint.PROGRESS else 0):
            content = bytearray(whole)
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.write_bytes(content)
            assert checkpoint.fault(path) == f"{file.name} is gone or has changed"
        file.write_bytes(whole)
    next(path.glob("*.distcp")).unlink()
    with pytest.raises(UserError, match="all checkpoints in .* are damaged"):
        checkpoint.newest_whole(tmp_path)


def test_checkpoints_of_before_they_had_checksums_are_read(tmp_path: Path) -> None:
    _, _, state = a_trained_layer(0)
    path = checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))
    (path / checkpoint.PROGRESS).write_text('{"num_updates": 1, "num_skipped": 0}')
    assert checkpoint.newest_whole(tmp_path) == (path, checkpoint.Progress(1, 0))


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    _, _, state = a_trained_layer(0)
    path = checkpoint.save(tmp_path, state, checkpoint.Progress(1, 0))
    shard = next(path.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match="delete that folder"):
        checkpoint.load(path, state)


@pytest.mark.parametrize("part", ["parameters", "average", "moments"])
def test_a_value_that_is_not_finite_is_named(part: str, tmp_path: Path) -> None:
    _, _, saved = a_trained_layer(0)
    name, tensor = next((n, t) for n, t in tensors_of(saved) if n.startswith(part) and t.numel() > 1)
    tensor.view(-1)[-1] = float("inf")
    written = checkpoint.save(tmp_path, saved, checkpoint.Progress(1, 0))
    with pytest.raises(UserError, match=rf"update-000001: {re.escape(name)} holds values that are not finite"):
        checkpoint.load(written, a_trained_layer(1)[2])
