"""A trial's row in TensorBoard's HParams table; written with TensorBoard's own classes, since torch's take seconds to
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

from workbench.recipe import lambda_tables
from workbench.recipe.config import Recipe
from workbench.reporting.plots import lambda_picture

Rows = tuple[tuple[float, ...], ...]


def log_trial(folder: Path, recipe: Recipe, hparams: Mapping[str, str | float], metrics: Mapping[str, float]) -> None:
    """Write the row and the trial's lambda tables as a picture into `folder`, the trial's own TensorBoard folder, where
    its curves and samples are. metrics: empty for a trial that failed."""
    named = {f"search/{name}": value for name, value in metrics.items()}
    specialists = list(recipe.teachers.specialists)
    lambdas = lambda_tables.tables(recipe.guidance, num_steps=recipe.dmd.student_steps, specialists=specialists)
    summaries = [
        hparams_config_pb([HParam(name) for name in hparams], [Metric(name) for name in named]),
        # Trials without an id of their own would be one row if their values were equal.
        hparams_pb(hparams, trial_id=folder.parent.name),
        Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in named.items()]),
    ]
    if lambdas:
        rows = tuple((name, tuple(map(tuple, table))) for name, table in lambdas.items())
        summaries.append(_lambda_summary(rows, ("base", *specialists)))
    writer = EventFileWriter(str(folder), filename_suffix=".hparams")
    for summary in summaries:
        writer.add_event(Event(wall_time=time.time(), step=0, summary=summary))
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
