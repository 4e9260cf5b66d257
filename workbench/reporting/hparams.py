"""A run's row in TensorBoard's HParams table; written with TensorBoard's own classes, since torch's take seconds to
import."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.metrics_file import Metrics, mean_of
from workbench.recipe import lambda_tables
from workbench.recipe.config import Recipe
from workbench.recipe.reading import flat_values
from workbench.reporting.plots import lambda_picture

SUFFIX = ".hparams"
Rows = tuple[tuple[float, ...], ...]


def log_trial(folder: Path, recipe: Recipe, hparams: Mapping[str, str | float], metrics: Mapping[str, float]) -> None:
    """Write the row and the trial's lambda tables as a picture into `folder`, the trial's own TensorBoard folder, where
    its curves and samples are. metrics: empty for a trial that failed."""
    specialists = list(recipe.teachers.specialists)
    lambdas = lambda_tables.tables(recipe.guidance, num_steps=recipe.dmd.student_steps, specialists=specialists)
    pictures = []
    if lambdas:
        rows = tuple((name, tuple(map(tuple, table))) for name, table in lambdas.items())
        pictures.append(_lambda_summary(rows, ("base", *specialists)))
    _write(folder, hparams, {f"search/{name}": value for name, value in metrics.items()}, pictures)


def log_run(run: Path, recipe: Recipe, scored: Mapping[str, Metrics], update: int) -> None:
    """Write the row of an ordinary run, in the place of a former one: every value of the recipe that each recipe has,
    and the scores of the student of `update` in every evaluation, by its name."""
    folder = run / "tensorboard"
    former = list(folder.glob(f"*{SUFFIX}"))
    scores = {f"{name}/{key}": value for name, of in scored.items() for key, value in student_scores(of).items()}
    _write(folder, columns(recipe), scores, [], update)
    for path in former:
        path.unlink()


def columns(recipe: Recipe) -> dict[str, str | float]:
    """TensorBoard takes its columns, and their types, from one run alone: the same for every recipe."""
    values = flat_values(recipe)
    return {
        key: values[key] if isinstance(default, int | float) else str(values[key])
        for key, default in flat_values(Recipe()).items()
        if key in values and key != "trainer.folder"
    }


def student_scores(metrics: Metrics) -> dict[str, float]:
    """The student's benchmark means, `t2i` and `editing`, and `score`, the mean of both."""
    student = metrics.models.get("student")
    means = [mean_of(student.benches, bench) for bench in BENCHES.values()] if student else []
    known = {name: mean.mean for name, mean in zip(("t2i", "editing"), means, strict=False) if mean is not None}
    return {**known, "score": sum(known.values()) / len(known)} if known else {}


def _write(
    folder: Path,
    hparams: Mapping[str, str | float],
    metrics: Mapping[str, float],
    pictures: list[Summary],
    step: int = 0,
) -> None:
    summaries = [
        hparams_config_pb([HParam(name) for name in hparams], [Metric(name) for name in metrics]),
        # Runs without an id of their own would be one row if their values were equal.
        hparams_pb(dict(hparams), trial_id=folder.resolve().parent.name),
        Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]),
        *pictures,
    ]
    writer = EventFileWriter(str(folder), filename_suffix=SUFFIX)
    for summary in summaries:
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()


@lru_cache(maxsize=64)
def _lambda_summary(tables: tuple[tuple[str, Rows], ...], teachers: tuple[str, ...]) -> Summary:
    """Drawn once for all trials that share their tables, as the seeds of an arm do."""
    image, content = Image.fromarray(lambda_picture(dict(tables), teachers)), io.BytesIO()
    image.save(content, "PNG")
    picture = Summary.Image(
        height=image.height, width=image.width, colorspace=3, encoded_image_string=content.getvalue()
    )
    return Summary(value=[Summary.Value(tag="lambda", image=picture)])
