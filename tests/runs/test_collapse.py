"""The distance at milestones, the alarm, and what is kept of the best: through a real run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from distiller_fakes import CATEGORIES, denoiser, make_recipe, step_data
from lightning.pytorch.loggers import TensorBoardLogger
from quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from workbench.batch import StepData
from workbench.common.jsonl import read_lines
from workbench.modules.distiller import Distiller
from workbench.runs import checkpoint, scalars
from workbench.runs.callbacks import Averaging, Checkpointing, Milestones, Resuming, Scored
from workbench.runs.collapse import PATIENCE, CollapseMonitor, energy_distance
from workbench.runs.scalars import DataWait

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_distance_of_like_samples_is_nothing_and_grows_with_any_difference() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(count: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        return shift + scale * torch.randn(count, 64, generator=generator)

    reference = draw(400)
    assert energy_distance(draw(400), reference).abs() < 0.005
    shifted, wide, alike = draw(400, shift=1.0), draw(400, scale=1.5), draw(1).expand(400, -1)
    for different in (shifted, wide, alike):
        assert energy_distance(different, reference) > 0.03
    assert energy_distance(draw(400, shift=2.0), reference) > energy_distance(shifted, reference)


def test_in_one_dimension_it_is_twice_the_squared_distance_of_the_distribution_functions() -> None:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| = 2 int (F - G)^2: for uniforms on [0, 1] and [a, a + 1] by calculus
    2 (a^2 - a^3 / 3); E|Y - Y'| = 1/3."""
    grid, a = torch.linspace(0, 1, 2001)[:, None], 0.3
    expected = 2 * (a**2 - a**3 / 3) / (1 / 3)
    assert float(energy_distance(grid + a, grid)) == pytest.approx(expected, rel=0.01)


def monitor_of(*distances: float) -> CollapseMonitor:
    return CollapseMonitor(dict(enumerate(distances)))


def test_the_alarm_needs_patience_and_a_clear_loss() -> None:
    assert not monitor_of(0.5, 0.2, 0.4, 0.4).has_collapsed()
    assert monitor_of(0.5, 0.2, *[0.4] * PATIENCE).has_collapsed()
    assert not monitor_of(0.5, 0.2, *[0.21] * PATIENCE).has_collapsed()
    assert not monitor_of(0.5, 0.2, 0.4, 0.2, 0.4).has_collapsed()
    assert monitor_of(0.2, *[float("nan")] * PATIENCE).has_collapsed()


def test_the_best_is_kept_only_where_the_last_is_clearly_worse() -> None:
    assert monitor_of(0.5, 0.2, 0.4).best_to_keep() == 1
    assert monitor_of(0.5, 0.2, 0.21).best_to_keep() is None
    assert CollapseMonitor().best_to_keep() is None


def test_a_distance_that_is_no_number_is_never_the_best() -> None:
    nan = float("nan")
    assert monitor_of(nan, 0.5, 0.2).best() == 2
    assert monitor_of(nan, 0.2, 0.5).best_to_keep() == 1
    assert monitor_of(nan, nan).best() is None and monitor_of(nan, nan).best_to_keep() is None
    assert monitor_of(nan, 0.2, *[0.4] * PATIENCE).has_collapsed()
    assert not monitor_of(*[nan] * (PATIENCE + 1)).has_collapsed()


class Killed(Exception):
    pass


class KillAfter(L.Callback):
    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: L.Trainer, module: Distiller, *_: object) -> None:  # type: ignore[override]
        if module.num_updates == self.update:
            raise Killed


def run(
    folder: Path, distances: dict[int, float], start: int = 0, kill: int | None = None
) -> tuple[Milestones, Averaging]:
    """A run of 6 updates with a milestone and a checkpoint after each, which says these distances."""
    recipe, averaging = make_recipe(6), Averaging(0.5)
    module = Distiller(denoiser(), recipe, CATEGORIES)
    log = Milestones(
        folder / "milestones.jsonl",
        folder / "checkpoints",
        1,
        averaging,
        lambda module: distances[module.num_updates],
        lambda module: Scored({"score": 3.0}, {"t2i_bench": {"text": {"case-0": distances[module.num_updates]}}}),
    )
    resuming = Resuming(
        folder / "checkpoints",
        averaging,
        SimpleNamespace(start_step=0),
        lambda done: [TensorBoardLogger(folder, name="tensorboard", version="")],
    )
    callbacks: list[L.Callback] = [averaging, resuming, Checkpointing(folder / "checkpoints", 1, averaging)]
    callbacks += [KillAfter(kill)] if kill else []
    trainer = quiet_trainer(*callbacks, log)
    data = [step_data(step) for step in range(start, 6)]
    trainer.fit(module, DataLoader(data, batch_size=None, collate_fn=lambda item: item))  # type: ignore[arg-type]
    return log, averaging


FALLING = {1: 0.5, 2: 0.2, 3: 0.9, 4: 0.8, 5: 0.7, 6: 0.9}


def test_the_score_of_every_case_is_kept_at_every_milestone_once(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, FALLING, kill=3)
    with (tmp_path / "milestone_cases.jsonl").open("a") as file:
        # Killed before the milestone's own line; and half a line.
        file.write('{"update": 3, "t2i_bench": {"text": {"case-0": 0.9}}}\n{"update": 4, "t2i_be')
    run(tmp_path, FALLING, start=3)
    rows = read_lines(tmp_path / "milestone_cases.jsonl")
    assert rows == [(update, {"t2i_bench": {"text": {"case-0": value}}}) for update, value in FALLING.items()]
    assert [row["score"] for _, row in read_lines(tmp_path / "milestones.jsonl")] == [3.0] * 6


def test_a_falling_run_sounds_the_alarm_and_keeps_its_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, averaging = run(tmp_path, FALLING)
    said = capsys.readouterr().out
    assert "alarm at update 5" in said and "than at update 2 (distance 0.700 against 0.200)" in said
    assert "alarm at update 4" not in said
    rows = [row for _, row in read_lines(tmp_path / "milestones.jsonl")]
    assert [row["alarm"] for row in rows] == [0, 0, 0, 0, 1, 1]
    assert [row["distance"] for row in rows] == list(FALLING.values())
    best = log.monitor.best_to_keep()
    assert best == 2 and checkpoint.has_best(tmp_path / "checkpoints", 2)
    last = {name: tensor.clone() for name, tensor in averaging.average.average.items()}
    checkpoint.load_best(tmp_path / "checkpoints", averaging.average.average, best)
    with pytest.raises(Killed):
        run(tmp_path / "short", FALLING, kill=2)
    state = {"average": {name: torch.zeros_like(tensor) for name, tensor in last.items()}}
    checkpoint.load(tmp_path / "short" / "checkpoints" / "update-000002", state)
    assert all(torch.equal(state["average"][name], averaging.average.average[name]) for name in last)
    assert not all(torch.equal(last[name], averaging.average.average[name]) for name in last)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["best-000002", "update-000005", "update-000006"]


@pytest.mark.parametrize("at", [2, 4])
def test_a_killed_run_misses_no_milestone(tmp_path: Path, at: int) -> None:
    """Killed after the checkpoint of an update and before its milestone."""
    with pytest.raises(Killed):
        run(tmp_path, FALLING, kill=at)
    log, _ = run(tmp_path, FALLING, start=at)
    undisturbed, _ = run(tmp_path / "whole", FALLING)
    assert log.monitor == undisturbed.monitor
    kept, expected = (sorted(p.name for p in (f / "checkpoints").iterdir()) for f in (tmp_path, tmp_path / "whole"))
    assert kept == expected
    lines = [json.loads(line) for line in (tmp_path / "milestones.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(FALLING)


def test_a_half_written_best_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / ".best-000003.partial").mkdir()
    assert not checkpoint.has_best(tmp_path, 3)
    (tmp_path / "best-000003").mkdir()
    assert not checkpoint.has_best(tmp_path, 3)


class Slow:
    """Steps that take a while to come, the first one longest."""

    def __init__(self, waits_s: Sequence[float]) -> None:
        self.waits_s = waits_s

    def __iter__(self) -> Iterator[StepData]:
        for step, wait_s in enumerate(self.waits_s):
            time.sleep(wait_s)
            yield step_data(step)

    def __len__(self) -> int:
        return len(self.waits_s)


def test_waiting_for_data_is_clocked_and_the_first_batch_apart() -> None:
    module, wait = Distiller(denoiser(), make_recipe(3), CATEGORIES), DataWait()
    trainer = quiet_trainer(wait)
    trainer.fit(module, Slow([0.5, 0.2, 0.2]))
    assert wait.first_batch_s is not None and wait.first_batch_s >= 0.5
    assert wait.pop() >= 0.4 and wait.pop() == 0


@dataclass(frozen=True)
class DeviceMoment:
    """`at` ms, on a device that has come as far as `clock[0]` ms."""

    at: float
    clock: list[float]

    def query(self) -> bool:
        return self.clock[0] >= self.at

    def elapsed_time(self, later: DeviceMoment) -> float:
        return later.at - self.at


def test_a_device_that_is_behind_its_host_counts_when_it_gets_there(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, module, wait = [0.0], Distiller(denoiser(), make_recipe(3), CATEGORIES), DataWait()
    # Ends of updates at 100, 210 and 320 ms; the second update begins 10 ms after the first one's end, the third 30 ms.
    moments = iter([DeviceMoment(at, clock) for at in (100.0, 110.0, 210.0, 240.0, 320.0)])
    monkeypatch.setattr(scalars, "moment", lambda device: next(moments))
    quiet_trainer(wait).fit(module, Slow([0.0, 0.0, 0.0]))
    assert wait.pop() == 0
    clock[0] = 239.0
    assert wait.pop() == pytest.approx(0.010)
    clock[0] = 400.0
    assert wait.pop() == pytest.approx(0.030) and wait.pop() == 0
