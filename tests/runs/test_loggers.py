"""A run that was killed with SIGKILL and goes on is one run in every logger, each step once."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
from distiller_fakes import CATEGORIES, denoiser, make_recipe, step_data
from quiet_trainer import quiet_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.data import DataLoader

from workbench.common.errors import UserError
from workbench.common.jsonl import read_scalars
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.metrics_file import Metrics as Scores
from workbench.evaluation.metrics_file import ModelMetrics
from workbench.modules.distiller import Distiller
from workbench.recipe.reading import from_mapping, to_yaml
from workbench.reporting.hparams import columns, log_run
from workbench.runs import loggers
from workbench.runs.callbacks import Averaging, Checkpointing, Milestones, Resuming, SampleGrid, Scored
from workbench.runs.continuing import one_line_where_full
from workbench.runs.loggers import loggers_of
from workbench.runs.scalars import DataWait, Metrics
from workbench.runs.updates_bar import UpdatesBar, pace_of

pytestmark = pytest.mark.filterwarnings("ignore")
UPDATES = 6
TABLES = {"default": [[1.0, 0.0], [0.5, 0.5]]}


class Kill(L.Callback):
    """Ends the process as nothing else does, after everything was logged of an update."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: L.Trainer, module: Distiller, *_: object) -> None:  # type: ignore[override]
        if module.num_updates == self.update:
            # What a service's own process has not written in its last hundredth of a second is lost.
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)


class Data:
    """A datamodule's counts, and the step at which a run goes on."""

    start_step = 0

    def realised(self, num_steps: int) -> dict[str, int]:
        return {"t2i/text": 8 * num_steps}


def train(folder: Path, names: list[str], start: int = 0, kill: int | None = None) -> None:
    """Six updates, all logged; checkpoints at 3 and 6, pictures at 2, 4 and 6, milestones at each."""
    made = make_recipe(UPDATES, TABLES)
    recipe = replace(made, trainer=replace(made.trainer, loggers=names, folder=str(folder)))
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    averaging, data = Averaging(0.5), Data()
    module = Distiller(denoiser(), recipe, CATEGORIES)
    path = folder / "checkpoints"
    callbacks: list[L.Callback] = [
        averaging,
        Resuming(path, averaging, data, loggers_of(recipe, folder)),
        Metrics(folder / "metrics.jsonl", 1, data, 8, DataWait()),
        SampleGrid(folder / "samples", 2, averaging, lambda _: np.zeros((8, 8, 3), np.uint8)),
        Milestones(
            folder / "milestones.jsonl", None, 1, averaging, lambda _: 0.5, lambda _: Scored({"score": 3.0}, {})
        ),
        Checkpointing(path, 3, averaging),
        *([Kill(kill)] if kill else []),
    ]
    trainer = quiet_trainer(*callbacks)
    steps = [step_data(step) for step in range(start, UPDATES)]
    with one_line_where_full(folder):
        trainer.fit(module, DataLoader(steps, batch_size=None, collate_fn=lambda item: item))  # type: ignore[arg-type]


def killed_and_resumed(folder: Path, names: list[str], kills: tuple[int, ...] = (2, 5)) -> None:
    """Killed before the first checkpoint and after update 5, each time in a process of its own, then to the end."""
    for start, kill in (*((0, kill) for kill in kills), (3, None)):
        child = os.fork()
        if child == 0:
            try:
                train(folder, names, start, kill)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended == (-signal.SIGKILL if kill else 0)
    assert [update for update, _ in read_scalars(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_has_every_step_once_and_the_lambda_tables(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed_and_resumed(folder, ["tensorboard"])
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("skipped_steps")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("milestone/score")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images("samples")] == [0, 2, 4, 6]
    assert [event.step for event in events.Images("lambda")] == [0]
    assert "student_lr" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_wandb_offline_has_one_run_and_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    killed_and_resumed(folder, ["wandb"], kills=(5,))
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and len({path.name for path in files}) == 1, "two processes, one run"
    rows = [row for path in files for row in history(path)]
    steps = {stream: [row["trainer/global_step"] for row in rows if key in row] for stream, key in (
        ("scalars", "skipped_steps"), ("milestones", "milestone/score"), ("samples", "samples")
    )}  # fmt: skip
    assert steps == {"scalars": [1, 2, 3, 4, 5, 6], "milestones": [1, 2, 3, 4, 5, 6], "samples": [0, 2, 4, 6]}
    numbers = [row["_step"] for row in rows]
    assert numbers == sorted(set(numbers)), "no two rows of one number, so that offline parts can be put together"
    assert sum("lambda" in row for row in rows) == 1
    assert all((path.parent / "files" / "recipe.yaml").exists() for path in files[:1])


def history(path: Path) -> list[dict[str, Any]]:
    """Rows of an offline run: records in blocks of 32 KiB, as LevelDB logs have them, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            if record.HasField("history"):
                # A picture's key has a part for each of its fields.
                items = [(item.key or item.nested_key[0], item.value_json) for item in record.history.item]
                rows.append({key: json.loads(value) for key, value in items})
    return rows


def test_mlflow_has_one_run_and_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    killed_and_resumed(folder, ["mlflow"])
    # MLflow itself opens such a store only where this is set.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{folder}/mlflow")
    (run,) = client.search_runs([of.experiment_id for of in client.search_experiments()])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    for key in ("skipped_steps", "milestone/score"):
        assert [of.step for of in client.get_metric_history(run.info.run_id, key)] == [1, 2, 3, 4, 5, 6]
    assert float(run.data.params["optim.student_lr"]) > 0
    files = {of.path for place in ("", "samples", "lambda") for of in client.list_artifacts(run.info.run_id, place)}
    assert {"recipe.yaml", "lambda/update-000000.png", "samples/update-000006.png"} <= files


def test_an_evaluated_run_has_a_row_of_hyper_parameters_and_its_scores(tmp_path: Path) -> None:
    """Once, however often it is evaluated; the same columns for every recipe."""
    run, bench = tmp_path / "run", {"mean": Interval(3.5, 3.0, 4.0, 8)}
    scored = {"report": Scores(models={"student": ModelMetrics(benches={"t2i_bench": bench})})}
    for learning_rate in (0.25, 0.5):
        recipe = from_mapping({"optim": {"student_lr": learning_rate}})
        log_run(run, recipe, scored, 7)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("report/t2i")] == [(7, 3.5)]
    assert events.Scalars("report/score")[0].value == 3.5
    started = HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info
    assert started.hparams["optim.student_lr"].number_value == 0.5 and started.group_name == "run"
    other = from_mapping({"guidance": {"schedules": {"default": {}}}, "trainer": {"loggers": []}})
    assert columns(other).keys() == columns(recipe).keys()
    assert {k: isinstance(v, str) for k, v in columns(other).items()} == {
        k: isinstance(v, str) for k, v in columns(recipe).items()
    }


class FakeService:
    """A service that keeps what it is told, and fails where asked to."""

    run_id = "id"

    def __init__(self, fails: tuple[int, ...] = ()) -> None:
        self.fails, self.told, self.closed = fails, [], 0

    def describe(self, values: Any, files: Any) -> None:
        self.told.append("recipe")

    def scalars(self, values: Any, step: int, stream: str) -> None:
        if step in self.fails:
            raise ConnectionError("no route\nto host")
        self.told.append((stream, step))

    def picture(self, name: str, picture: Any, step: int) -> None:
        self.told.append((name, step))

    def close(self, status: str) -> None:
        self.closed += 1


def test_a_service_that_fails_is_named_and_counted_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = FakeService(fails=(2, 4))
    monkeypatch.setattr(loggers, "open_service", lambda *_: service)
    train(tmp_path / "run", ["wandb"])
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: wandb did not take update 2: no route" in said and "did not take update 4" not in said
    assert "wandb lacks 4 log entries" in said and service.closed == 1
    assert [of for of in service.told if of[0] == "scalars"] == [("scalars", step) for step in (1, 3, 5, 6)]


def test_a_service_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise ConnectionError("api.wandb.ai does not answer")

    monkeypatch.setattr(loggers, "open_service", gone)
    with pytest.raises(
        UserError, match=r"wandb cannot be reached \(api.wandb.ai does not answer\): log in, use its off"
    ):
        train(tmp_path / "run", ["wandb"])


def test_scores_are_told_once_and_again_only_where_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService()
    monkeypatch.setattr(loggers, "open_service", lambda *_: service)
    for value in (3.0, 3.0, 3.5):
        loggers.ServiceLogger("mlflow", make_recipe(1), tmp_path).log_scores("report", {"t2i": value}, 6)
    assert service.told == ["recipe", ("scores", 6), ("scores", 6)]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "swanlab"])
def test_a_logger_that_is_not_installed_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    trainer = from_mapping({"trainer": {"loggers": ["tensorboard", name]}}).trainer
    with pytest.raises(UserError, match=rf"not installed: pip install 'few-step-workbench\[{name}\]'"):
        loggers.check(trainer)


def test_loggers_are_checked_when_the_recipe_is_read() -> None:
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        from_mapping({"trainer": {"loggers": ["wandbb"]}})
    with pytest.raises(UserError, match="names one twice"):
        from_mapping({}, ["trainer.loggers=[mlflow,mlflow]"])
    assert from_mapping({}, ["trainer.loggers=[]"]).trainer.loggers == []


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every event after the first few hits a full disk."""
    write, written = RecordWriter.write, [0]

    def fails(self: RecordWriter, data: bytes) -> None:
        written[0] += 1
        if written[0] > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", fails)
    yield


def test_a_full_disk_in_tensorboard_is_one_line_with_its_path(
    tmp_path: Path, full_disk: None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=rf"cannot write {folder}: the disk is full"):
        train(folder, ["tensorboard"])
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_disk_under_a_line_of_scalars_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr("workbench.runs.scalars.drop_lines_after", lambda *_: None)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        train(folder, [])


def test_the_bar_counts_updates_from_where_the_run_goes_on() -> None:
    module, bar = Distiller(denoiser(), make_recipe(UPDATES), CATEGORIES), UpdatesBar()
    trainer: Any = SimpleNamespace(is_global_zero=True)
    module.num_updates = 4
    bar.on_train_start(trainer, module)
    module.num_updates = 5
    bar.on_train_batch_end(trainer, module)
    bar.teardown(trainer, module, "fit")
    (task,) = bar._progress.tasks
    assert (task.completed, task.total) == (5, 6) and task.fields["pace"].endswith(":00 left")
    assert "poch" not in task.description


def test_the_pace_of_slow_and_of_fast_updates_can_be_read() -> None:
    assert pace_of(0, 10, 1.0) == ""
    assert pace_of(2, 100, 120.0) == "60.00 s an update, 1:40:00 left"
    assert pace_of(100, 50, 1.0) == "100 updates a second, 0:00:00 left"
