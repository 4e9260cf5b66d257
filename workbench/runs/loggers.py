"""What a run logs to, as `trainer.loggers` says: TensorBoard, and services (`services.py`).

Each step stands once, however often a run is killed and goes on. TensorBoard drops what lies behind the checkpoint that
the run continues from. A service cannot: it is told nothing that it was told before, by `loggers.json` in the run
folder, which also has the id of the run there. Numbers after a resume are those of before, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from workbench.common.console import say
from workbench.common.errors import UserError
from workbench.common.files import settings_hash, write_json
from workbench.common.outside import Outside, read_json
from workbench.recipe import lambda_tables
from workbench.recipe.config import Recipe, Trainer
from workbench.recipe.reading import flat_values, to_yaml
from workbench.reporting.plots import lambda_picture
from workbench.runs.services import Service, open_service

LEDGER = "loggers.json"
TENSORBOARD = "tensorboard"


class _Entry(Outside):
    """What a service has of a run. logged: stream -> last step; described, scored: hashes of what else it has."""

    id: str
    logged: dict[str, int] = {}
    described: str = ""
    scored: dict[str, str] = {}


def check(trainer: Trainer) -> None:
    """Raises: UserError naming the extra of a logger that is not installed."""
    for name in trainer.loggers:
        if name != TENSORBOARD and find_spec(name) is None:
            raise UserError(
                f"trainer.loggers names {name}, which is not installed: pip install 'few-step-workbench[{name}]'"
            )


def loggers_of(recipe: Recipe, folder: Path) -> Callable[[int], list[Logger]]:
    """Makes the loggers of a run that goes on after so many updates."""

    def make(done: int) -> list[Logger]:
        return [
            _tensorboard(recipe, folder, done) if name == TENSORBOARD else ServiceLogger(name, recipe, folder)
            for name in recipe.trainer.loggers
        ]

    return make


def _tensorboard(recipe: Recipe, folder: Path, done: int) -> TensorBoardLogger:
    # A run that was killed before its first checkpoint begins again: what it logged is dropped too.
    logger = TensorBoardLogger(folder, name=TENSORBOARD, version="", purge_step=done + 1 if done else 0)
    if not done:
        _describe(logger, recipe)
    return logger


@rank_zero_only
def _describe(logger: TensorBoardLogger, recipe: Recipe) -> None:
    picture = tables_picture(recipe)
    if picture is not None:
        logger.experiment.add_image("lambda", picture, 0, dataformats="HWC")
    logger.experiment.add_text("recipe", f"```yaml\n{to_yaml(recipe)}```", 0)
    logger.experiment.flush()


def tables_picture(recipe: Recipe) -> np.ndarray | None:
    """The lambda tables as a picture (H, W, 3) uint8, None where the base teacher alone guides."""
    specialists = list(recipe.teachers.specialists)
    tables = lambda_tables.tables(recipe.guidance, num_steps=recipe.dmd.student_steps, specialists=specialists)
    return lambda_picture(tables, ["base", *specialists]) if tables else None


@rank_zero_only
def log_scalars(trainer: L.Trainer, values: Mapping[str, float], step: int, stream: str = "scalars") -> None:
    """Numbers of an update to all loggers. stream: one of `services.STREAMS`."""
    for logger in trainer.loggers:
        match logger:
            case TensorBoardLogger():
                logger.log_metrics(dict(values), step)
                # Else what a killed run had logged before its checkpoint might be lost for good.
                logger.experiment.flush()
            case ServiceLogger():
                logger.log(stream, step, lambda service: service.scalars(values, step, stream))


@rank_zero_only
def log_scores(recipe: Recipe, folder: Path, name: str, values: Mapping[str, float], step: int) -> None:
    """The student's scores in the evaluation `name`, to the services that the run was logged to."""
    for service in recipe.trainer.loggers:
        if service != TENSORBOARD:
            logger = ServiceLogger(service, recipe, folder)
            logger.log_scores(name, values, step)
            logger.finalize("success")


@rank_zero_only
def log_picture(trainer: L.Trainer, name: str, picture: np.ndarray, step: int) -> None:
    """A picture (H, W, 3) uint8 of an update to all loggers."""
    for logger in trainer.loggers:
        match logger:
            case TensorBoardLogger():
                logger.experiment.add_image(name, picture, step, dataformats="HWC")
                logger.experiment.flush()
            case ServiceLogger():
                logger.log("samples", step, lambda service: service.picture(name, picture, step))


class ServiceLogger(Logger):
    """The run at one service: opened when it is first needed, told every step once."""

    def __init__(self, name: str, recipe: Recipe, folder: Path) -> None:
        super().__init__()
        self._name, self._recipe, self._folder = name, recipe, folder
        self._service: Service | None = None
        self._missed = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str | None:
        """Id of the run at the service."""
        entry = self._entries().get(self._name)
        return entry.id if entry else None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log("scalars", step or 0, lambda service: service.scalars(metrics, step or 0, "scalars"))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """The recipe is told when the run is opened."""

    @rank_zero_only
    def log(self, stream: str, step: int, tell: Callable[[Service], None]) -> None:
        """`tell` the service of a step, unless it knows the step. A service that fails does not end the run."""
        service, entry = self._opened(), self._entries()[self._name]
        if step <= entry.logged.get(stream, -1):
            return
        try:
            tell(service)
        except Exception as error:  # each service has kinds of its own
            if not self._missed:
                say(f"warning: {self._name} did not take update {step}: {_first_line(error)}")
            self._missed += 1
            return
        self._store(entry.model_copy(update={"logged": {**entry.logged, stream: step}}))

    @rank_zero_only
    def log_scores(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Scores of the student of update `step` in the evaluation `name`, unless the service has them."""
        service, entry, mark = self._opened(), self._entries()[self._name], settings_hash([dict(values), step])
        if entry.scored.get(name) != mark:
            service.scalars({f"{name}/{key}": value for key, value in values.items()}, step, "scores")
            self._store(entry.model_copy(update={"scored": {**entry.scored, name: mark}}))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._missed:
            say(f"warning: {self._name} lacks {self._missed} log entries of this run")
        if self._service is not None:
            self._service.close(status)
            self._service = None

    def _opened(self) -> Service:
        """Raises: UserError if the service cannot be reached."""
        if self._service is None:
            entry = self._entries().get(self._name)
            try:
                self._service = open_service(self._name, self._folder, entry.id if entry else None)
                self._store(entry or _Entry(id=self._service.run_id))
                self._describe(self._service)
            except Exception as error:
                raise UserError(
                    f"trainer.loggers: {self._name} cannot be reached ({_first_line(error)}): log in, use its offline "
                    "mode, or leave it out"
                ) from error
        return self._service

    def _describe(self, service: Service) -> None:
        """Recipe and lambda tables, where the service does not have these."""
        recipe, entry = to_yaml(self._recipe), self._entries()[self._name]
        mark = settings_hash(recipe)
        if entry.described == mark:
            return
        path = self._folder / "recipe.yaml"
        service.describe(flat_values(self._recipe), {"recipe.yaml": path} if path.is_file() else {})
        picture = tables_picture(self._recipe)
        if picture is not None and "lambda" not in entry.logged:
            service.picture("lambda", picture, 0)
        self._store(entry.model_copy(update={"described": mark, "logged": {**entry.logged, "lambda": 0}}))

    def _entries(self) -> dict[str, _Entry]:
        path = self._folder / LEDGER
        mend = "delete it, and the run is a new one at each service"
        return read_json(path, dict[str, _Entry], mend) if path.is_file() else {}

    def _store(self, entry: _Entry) -> None:
        entries = {**self._entries(), self._name: entry}
        write_json(self._folder / LEDGER, {name: of.model_dump() for name, of in entries.items()})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises: UserError that names `path` for an OSError of the block, which may lack it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some disk and run the same command again: it "
            "continues from the last checkpoint"
        ) from error
