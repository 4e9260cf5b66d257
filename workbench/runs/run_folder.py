"""The run folder: what is in it, and whether a recipe may continue it.

runs/NAME/  recipe.yaml  environment.json  data.json  metrics.jsonl  milestones.jsonl  milestone_cases.jsonl
            metrics.json  tensorboard/  checkpoints/  samples/  student/  report.html
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from workbench.common import files
from workbench.common.errors import UserError
from workbench.recipe.config import Evaluation, Recipe
from workbench.recipe.reading import flat_values, load, to_yaml

PACKAGES = (
    "few-step-workbench",
    "torch",
    "diffusers",
    "transformers",
    "lightning",
    "optuna",
    "omegaconf",
    "webdataset",
    "safetensors",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

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

    @contextmanager
    def begun(self, recipe: Recipe) -> Iterator[None]:
        """Claim the folder for `recipe` and hold it; a run of the same recipe in it continues.

        Raises:
            UserError: as `check`, or another process holds it.
        """
        self.check(recipe)
        # One rank holds the folder for all.
        with files.only_one(self.path, "trainer.folder") if _is_first_rank() else nullcontext():
            self._claim(recipe)
            yield

    def _claim(self, recipe: Recipe) -> None:
        files.write_bytes(self.recipe, to_yaml(recipe).encode())
        files.write_bytes(self.environment, (json.dumps(environment(), indent=1) + "\n").encode())

    def check(self, recipe: Recipe) -> None:
        """Whether `recipe` may begin or continue here; writes nothing.

        Raises:
            UserError: the folder holds another run, or something else.
        """
        if self.is_run():
            if not _continues(self.read_recipe(), recipe):
                raise UserError(
                    f"{self.path} holds a run of another recipe ({_difference(self.read_recipe(), recipe)}): choose "
                    "another trainer.folder, or delete that one"
                )
        elif self.path.exists() and not all(map(self._is_of_a_beginning, self.path.iterdir())):
            raise UserError(f"{self.path} is not empty and no run: choose another trainer.folder")

    def _is_of_a_beginning(self, path: Path) -> bool:
        """Whether a `begin` that was killed may have left it."""
        return path in (self.environment, self.path / files.LOCK) or path.match(".*.part")


_is_first_rank = rank_zero_only(lambda: True, default=False)


def environment() -> dict[str, object]:
    """Versions and machine, for `environment.json`."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": " ".join(["workbench", *sys.argv[1:]]),
        "cpu_threads": torch.get_num_threads(),
        "cuda_devices": devices,
        "packages": versions,
    }


def _continues(before: Recipe, now: Recipe) -> bool:
    """Whether two recipes train alike: how long, where and how often things are written may differ."""
    return _training(before) == _training(now)


def _difference(before: Recipe, now: Recipe) -> str:
    """The first keys that train otherwise, `section.key: before, now`."""
    flat = [flat_values(_training(recipe)) for recipe in (before, now)]
    keys = [key for key in flat[0].keys() | flat[1].keys() if flat[0].get(key) != flat[1].get(key)]
    changes = [f"{key} was {flat[0].get(key)}, is {flat[1].get(key)}" for key in sorted(keys)[:3]]
    return "; ".join(changes) + ("; ..." if len(keys) > 3 else "")


def _training(recipe: Recipe) -> Recipe:
    """The recipe with all that does not change what is trained set to one value."""
    kept = {"updates": 1, "folder": "", "log_every": 1, "checkpoint_every": 1, "sample_every": 1}
    neutral = {
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "accelerator": "auto",
        "max_skipped_updates": 0,
        "task_gradients_every": 0,
        "cuda_graphs": "auto",
        "deterministic": False,
        "keep": "last",
    }

    trainer = replace(recipe.trainer, **kept, **neutral)  # type: ignore[arg-type]
    data = replace(recipe.data, num_workers=0, raw="", encode_batch_size=1)
    pretraining = replace(recipe.pretrain, steps=1)
    model = replace(recipe.model, license="", base_model="")
    return replace(recipe, model=model, trainer=trainer, pretrain=pretraining, evaluation=Evaluation(), data=data)
