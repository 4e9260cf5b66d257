"""The run folder: what is in it, and whether a recipe may continue it. Imports no torch.

runs/NAME/  recipe.yaml  run.json  environment.json  data.json  metrics.jsonl  milestones.jsonl  metrics.json
            milestone_cases.jsonl  tensorboard/  checkpoints/  samples/  student/  report.html
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.outside import Count, Outside, read_json
from workbench.recipe.config import Recipe
from workbench.recipe.effects import Command, differences
from workbench.recipe.reading import load, to_yaml
from workbench.runs import environment

_CHECKPOINT = re.compile(r"update-(\d{6,})")
PROGRESS = "progress.json"
"""The file in a checkpoint with its counters and the hashes of all others."""


@dataclass(frozen=True)
class Beginning:
    """A command that begins a run or goes on with it.

    inputs: key of the recipe -> hash of the data or weights that it names.
    """

    recipe: Recipe
    command: Command = "distill"
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Updates of the whole run."""
        return self.recipe.trainer.updates if self.command == "distill" else self.recipe.pretrain.steps

    @property
    def total_key(self) -> str:
        return "trainer.updates" if self.command == "distill" else "pretrain.steps"


class Record(Outside):
    """The content of `run.json`. finished: updates of the student (or teacher) that was delivered, None until then."""

    command: Command = "distill"
    inputs: dict[str, str] = {}
    finished: Count | None = None


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def scalars(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def milestones(self) -> Path:
        return self.path / "milestones.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def teacher(self) -> Path:
        return self.path / "teacher"

    @property
    def data(self) -> Path:
        """What the model card says of the data."""
        return self.path / "data.json"

    @property
    def specialist(self) -> Path:
        """Adapter of a specialist, by the name of the run."""
        return self.path / f"{self.path.name}.safetensors"

    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe.is_file()

    def read_recipe(self, overrides: list[str] | None = None) -> Recipe:
        """The resolved recipe of the run, with overrides on top.

        Raises:
            UserError: no run here, or overrides that make no recipe.
        """
        if not self.is_run():
            raise UserError(f"{self.path} is no run folder: it has no recipe.yaml")
        return load(self.recipe, overrides or [])

    def read_record(self) -> Record:
        """What is known of the run besides its recipe; nothing for runs of before there was a `run.json`."""
        try:
            return read_json(self.record, Record, "")
        except UserError:
            return Record()

    def checkpoint_updates(self) -> list[int]:
        """Updates of the checkpoints that are there, damaged ones too, in order."""
        found = (_CHECKPOINT.fullmatch(path.name) for path in self.checkpoints.glob("update-*"))
        return sorted(int(match[1]) for match in found if match)

    def delivered(self) -> Path | None:
        """The student, or what pretraining made, if a run has ended here."""
        return next((path for path in (self.student, self.teacher, self.specialist) if path.exists()), None)

    def finished(self) -> int | None:
        """Updates of the finished run, None while there is something left to do."""
        if self.delivered() is None:
            return None
        saved = self.checkpoint_updates()
        if not self.record.is_file():
            # Of before there was a `run.json`.
            recipe = self.read_recipe()
            total = recipe.trainer.updates if self.student.exists() else recipe.pretrain.steps
            return total if not saved or saved[-1] == total else None
        finished = self.read_record().finished
        return finished if finished is not None and (not saved or saved[-1] <= finished) else None

    @contextmanager
    def begun(self, beginning: Beginning, update: int = 0) -> Iterator[None]:
        """Claim the folder and hold it; a run whose numbers the recipe does not alter continues, at `update`, and one
        that made no update gives way.

        Raises:
            UserError: as `check`, or another process holds it.
        """
        self.check(beginning)
        first = is_first_rank()
        # One rank holds the folder for all.
        with files.only_one(self.path, "trainer.folder") if first else nullcontext():
            if first:
                # Whoever held it until now may have made updates since.
                self.check(beginning)
                self._claim(beginning, update)
            yield
            if first:
                self._record(beginning, beginning.total)

    def _claim(self, beginning: Beginning, update: int) -> None:
        if self.is_run() and self._is_unstarted() and self._is_other(beginning):
            self._give_way()
        # Before the recipe: without it this is no run yet.
        environment.record(self.environment, update)
        self._record(beginning, None)
        files.write_bytes(self.recipe, to_yaml(beginning.recipe).encode())

    def _record(self, beginning: Beginning, finished: int | None) -> None:
        inputs = {**(self.read_record().inputs if self.is_run() else {}), **beginning.inputs}
        record = Record(command=beginning.command, inputs=inputs, finished=finished)
        files.write_bytes(self.record, record.model_dump_json().encode())

    def _is_unstarted(self) -> bool:
        """Whether the run that was begun here has come to nothing: no update that is logged, nothing to go on from."""
        logged = any(path.is_file() and path.stat().st_size > 0 for path in (self.scalars, self.milestones))
        return not (logged or self.checkpoint_updates() or self.delivered())

    def _give_way(self) -> None:
        """Delete what a run wrote before its first update."""
        from workbench.common.console import say

        for folder in (self.path / "tensorboard", self.samples, self.checkpoints):
            shutil.rmtree(folder, ignore_errors=True)
        self.data.unlink(missing_ok=True)
        # Last: without it the rest would be in the way of any run.
        self.recipe.unlink()
        say(f"{self.path} held another run, which came to nothing: this one takes its place")

    def check(self, beginning: Beginning) -> None:
        """Whether a command may begin or continue here; writes nothing. A run that made no update is in nobody's way.

        Raises:
            UserError: the folder holds a run of other numbers, one that is finished and cannot go on, or something
                else.
        """
        if self.is_run():
            if self._is_unstarted():
                return
            if conflict := self._conflict(beginning):
                raise UserError(f"{self.path} holds a run of {conflict}")
            done = self.delivered()
            if done is not None and not self.checkpoint_updates():
                raise UserError(
                    f"{self.path} is finished and its checkpoints are deleted, so it cannot go on; {done} is kept: "
                    f"choose another trainer.folder{self._start_from_student(beginning)}"
                )
        elif self.path.exists() and not all(map(self._is_of_a_beginning, self.path.iterdir())):
            raise UserError(f"{self.path} is not empty and no run: choose another trainer.folder")

    def _is_other(self, beginning: Beginning) -> bool:
        try:
            return bool(self._conflict(beginning))
        except UserError:  # a recipe that cannot be read any more
            return True

    def _conflict(self, beginning: Beginning) -> str:
        """What a command cannot continue about the run here, and what to do; empty where it can."""
        record = self.read_record()
        if self.record.is_file() and record.command != beginning.command:
            return f"`workbench {record.command}`: choose another trainer.folder"
        inputs = (record.inputs, beginning.inputs)
        changed = differences(self.read_recipe(), beginning.recipe, beginning.command, inputs)
        if not changed:
            return ""
        fork = f", with trainer.start={self.path} to start from this one" if beginning.command == "distill" else ""
        return f"another recipe ({'; '.join(changed)}): choose another trainer.folder{fork}, or delete that run"

    def _start_from_student(self, beginning: Beginning) -> str:
        full = beginning.command == "distill" and beginning.recipe.model.roles == "full"
        return f" (model.student={self.student} starts from its student)" if full and self.student.exists() else ""

    def _is_of_a_beginning(self, path: Path) -> bool:
        """Whether a `begin` that was killed may have left it."""
        return path in (self.environment, self.record, self.path / files.LOCK) or path.match(".*.part")


def is_first_rank() -> bool:
    """Whether this process is the first of the run's ranks, or the only one."""
    from lightning.pytorch.utilities import rank_zero_only

    return bool(rank_zero_only(lambda: True, default=False)())
