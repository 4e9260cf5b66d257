"""Work shared among ranks, each played in turn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import cli
from workbench.common import ranks
from workbench.common.errors import UserError


@pytest.mark.parametrize("num_items", [0, 1, 4, 5])
def test_equal_shares_are_of_equal_length_and_give_every_item_once(
    num_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, parts = 2, dict[int, list[int]]()
    monkeypatch.setattr(ranks, "world_size", lambda: world)

    def play(rank: int) -> list[int]:
        def gathered(part: list[int]) -> list[list[int]]:
            parts[rank] = part
            return [parts.get(other, part) for other in range(world)]

        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "gathered", gathered)
        return ranks.in_equal_shares([*range(num_items)], lambda item: 10 * item)

    play(0)
    assert play(1) == [10 * item for item in range(num_items)]
    assert len(parts[0]) == len(parts[1]) == -(-num_items // world)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_all_ranks_raise_together_is_printed_once(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> None:
        ranks.require_no_fault("the disk is full")

    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(ranks, "gathered", lambda fault: ["", fault])
    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["report", "anything"]) == 2
    assert capsys.readouterr().err == ("" if rank else "error: the disk is full\n")
    with pytest.raises(UserError, match="the disk is full"):
        fails(None)


LEAVING = "import sys; from workbench.common import ranks; ranks.world_size = lambda: 2; {}; ranks.leave(2, True)"


@pytest.mark.parametrize("before", ["print('line')", "sys.stdout = None", "sys.stdout.close()"])
def test_a_process_leaves_though_nobody_reads_its_output(before: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", LEAVING.format(before)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
