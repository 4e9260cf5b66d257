"""Neither CUDA graphs nor a kill change a bit of the student; compiled blocks change it by rounding alone."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from gpu_runs import Bench, assert_same_bits, finish, losses

pytestmark = pytest.mark.gpu

LOSSES = tuple(f"loss/{role}/{task}" for role in ("student", "fake_score") for task in ("t2i", "edit"))


def test_graphs_replay_what_eager_steps_compute(bench: Bench, replayed: Path, tmp_path: Path) -> None:
    eager = tmp_path / "eager"
    bench.run("distill", "trainer.updates=30", "trainer.cuda_graphs=off", f"trainer.folder={eager}")
    assert_same_bits(replayed, eager)
    assert [row["loss/student/t2i"] for row in losses(replayed)] == [row["loss/student/t2i"] for row in losses(eager)]


def test_so_do_graphs_of_the_adversarial_term_and_looks_at_the_tasks(bench: Bench, tmp_path: Path) -> None:
    options = ("trainer.updates=16", "dmd.adversarial_weight=0.005", "trainer.task_gradients_every=2")
    for graphs in ("on", "off"):
        bench.run("distill", *options, f"trainer.cuda_graphs={graphs}", f"trainer.folder={tmp_path / graphs}")
    assert_same_bits(tmp_path / "on", tmp_path / "off")
    for on, off in zip(losses(tmp_path / "on"), losses(tmp_path / "off"), strict=True):
        for name in (
            "loss/classifier/edit",
            "loss/adversarial/t2i",
            "task_gradients/norm/t2i",
            "task_gradients/norm/edit",
        ):
            assert on.get(name) == off.get(name), name
        assert ("task_gradients/norm/edit" in on) == (on["update"] % 2 == 0)


def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(bench: Bench, replayed: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    words = ("trainer.updates=30", f"trainer.folder={killed}")
    process = bench.start("distill", *words)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "update-000020").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "student").exists()
    finish(bench.start("distill", *words))
    assert_same_bits(replayed, killed)


def test_compiled_blocks_compute_what_eager_ones_do(bench: Bench, replayed: Path, tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    bench.run("distill", "trainer.updates=1", "trainer.compile=blocks", f"trainer.folder={compiled}")
    for name in LOSSES:
        # Later updates start from weights that AdamW's first steps, which are signs, have set apart.
        assert losses(compiled)[0][name] == pytest.approx(losses(replayed)[0][name], rel=1e-3), name
