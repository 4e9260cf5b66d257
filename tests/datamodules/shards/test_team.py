"""Several processes encode what one does, whichever of them is killed whenever."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import lightning.fabric.plugins.environments  # noqa: F401 (so that no forked rank has to)
import pytest
from shard_fakes import fake_encoder, fake_latents, fake_prompts, write_raw

from datamodules.shards import encode_jobs, team
from datamodules.shards.counts import INDEX
from datamodules.shards.encode import encode_shards, encode_shards_among_ranks
from datamodules.shards.encode_batch import Encoder, FamilyLimits
from workbench.common.errors import UserError
from workbench.common.files import UNFINISHED
from workbench.recipe.config import Data

COUNTS = {"t2i/text": 30, "edit/scene": 12}
CALL_S = 0.02


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Encoded by one process; 14 shards."""
    folder = tmp_path_factory.mktemp("team")
    raw = str(write_raw(folder / "raw", COUNTS, per_shard=3))
    made = Data(raw=raw, encoded=str(folder / "encoded"), encode_batch_size=1, resolution=32)
    encode_shards(made, fake_encoder, "f")
    return made


def slow_encoder(_: int) -> Encoder:
    def prompts(texts, images):
        time.sleep(CALL_S)
        return fake_prompts(texts, images)

    return Encoder(prompts, fake_latents, 16, FamilyLimits(32))  # type: ignore[arg-type]


def failing_encoder(number: int) -> Encoder:
    """The second rank's does not work."""
    if number == 1:
        raise UserError("no such GPU")
    return slow_encoder(number)


def fail(*_: object) -> None:
    raise UserError("a picture cannot be read")


def run_rank(rank: int, world: int, port: int, data: Data, load: Callable[[int], Encoder]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "x"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    joined = team.join()
    assert joined is not None and (joined.rank, joined.world) == (rank, world)
    encode_shards_among_ranks(data, load, lambda: "f", "", joined)
    joined.leave()


def start(world: int, data: Data, load: Callable[[int], Encoder] = slow_encoder) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked: ranks that import torch once more would take longer than all they do.
    context = multiprocessing.get_context("fork")
    ranks: list[BaseProcess] = [
        context.Process(target=run_rank, args=(rank, world, port, data, load)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def exit_codes(ranks: list[BaseProcess]) -> list[int | None]:
    for process in ranks:
        process.join(30)
    return [process.exitcode for process in ranks]


def assert_same(folder: str, expected: str) -> None:
    """Every file, byte for byte, and no other."""
    found, wanted = ({path.name: path.read_bytes() for path in Path(each).iterdir()} for each in (folder, expected))
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_ranks_write_the_bytes_of_one_process(data: Data, tmp_path: Path) -> None:
    mine = replace(data, encoded=str(tmp_path / "encoded"))
    assert exit_codes(start(2, mine)) == [0, 0]
    assert_same(mine.encoded, data.encoded)
    assert exit_codes(start(2, mine)) == [0, 0], "the second time there is nothing to do"


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_rank_leaves_whole_shards_and_any_number_of_processes_goes_on(
    data: Data, seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    mine = replace(data, encoded=str(tmp_path / "encoded"))
    ranks, victim = start(2, mine), draw.randrange(2)
    until = time.monotonic() + 20
    while not list(tmp_path.glob("encoded/*.tar")) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 10 * CALL_S))
    os.kill(ranks[victim].pid, signal.SIGKILL)  # type: ignore[arg-type]
    codes = exit_codes(ranks)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, None), "the other one gives up"
    assert not (tmp_path / "encoded" / INDEX).exists()
    whole = {path: path.stat().st_mtime_ns for path in tmp_path.glob("encoded/*.tar")}
    assert all(path.read_bytes() == (Path(data.encoded) / path.name).read_bytes() for path in whole)
    if draw.random() < 0.5:
        assert exit_codes(start(3, mine)) == [0, 0, 0]
    else:
        encode_shards(mine, fake_encoder, "f")
    assert_same(mine.encoded, data.encoded)
    recorded = {path for path in whole if path.stat().st_mtime_ns == whole[path]}
    assert len(whole) - len(recorded) <= 1, "a shard without its record is encoded again, and no other"


def test_all_ranks_end_with_the_error_of_one(data: Data, tmp_path: Path) -> None:
    mine = replace(data, encoded=str(tmp_path / "encoded"))
    assert exit_codes(start(2, mine, failing_encoder)) == [2, 1], "forked children have no command line"
    assert not (tmp_path / "encoded" / INDEX).exists()


def test_ranks_that_failed_before_the_first_shard_leave_the_folder_to_other_inputs(data: Data, tmp_path: Path) -> None:
    other = replace(data, encoded=str(tmp_path / "encoded"), keep_raw=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_jobs.ShardEncoder, "encode", fail)
        assert not {0, None} & {*exit_codes(start(2, other))}
    assert (tmp_path / "encoded" / UNFINISHED).exists()
    mine = replace(data, encoded=other.encoded)
    assert exit_codes(start(2, mine)) == [0, 0]
    assert_same(mine.encoded, data.encoded)


@pytest.mark.parametrize("late_s", [0.0, 0.5])
def test_what_stops_the_first_rank_stops_the_others(
    late_s: float, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that come to hear of it late."""
    plan = team.Team.plan

    def late(of: team.Team) -> object:
        time.sleep(late_s)
        return plan(of)

    monkeypatch.setattr(team.Team, "plan", late)
    (tmp_path / "encoded").mkdir()
    (tmp_path / "encoded" / "foreign.tar").write_bytes(b"")
    mine = replace(data, encoded=str(tmp_path / "encoded"))
    assert exit_codes(start(2, mine)) == [1, 2]
