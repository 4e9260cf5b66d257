"""The file of a ranking: students by name, each a pipeline folder or a base with LoRA files, and how it is drawn.

    folder: runs/ranking                # where pictures, scores and report.html go
    reference: teacher                  # whom all are compared with; the first one if absent
    margin: 0.05                        # a difference in score below which two count as alike
    recipe:                             # sections of a recipe: which cases, judges, resolution
      evaluation: {t2i_cases: 60, editing_cases: 30}
    students:
      teacher: {folder: Qwen-Image-2.1}
      turbo: {folder: Qwen-Image-2.1-Turbo}
      mine: {folder: Qwen-Image-2.1, lora: mine.safetensors:0.8, sigmas: [1.0, 0.9, 0.75, 0.5]}

Paths are relative to the folder in which the command is run. See docs/ranking.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, ConfigDict, Field

from studies.analysis.decisions import MARGIN
from workbench.backbones import families
from workbench.backbones.provenance import stated_by
from workbench.common.errors import UserError, nearest
from workbench.common.outside import Outside, parse, read_bytes
from workbench.evaluation.models import LoraFile, lora_file, teacher_sampling
from workbench.method.rollout import Sampling
from workbench.recipe.config import Evaluation, Recipe
from workbench.recipe.reading import from_mapping

REMEDY = "see docs/ranking.md"
LARGEST_BYTES = 1 << 20
_NAME = re.compile(r"[^\W_][\w .+-]{0,39}")


def _several(value: Any) -> Any:
    """One LoRA file, or a list of them."""
    return value if isinstance(value, list) else [value]


class Student(Outside):
    """One entry. lora: FILE or FILE:strength, one or several. guidance: 1 is none. licence: where the folder and the
    files do not say it."""

    model_config = ConfigDict(**{**Outside.model_config, "extra": "forbid"})
    folder: str
    lora: Annotated[list[str], BeforeValidator(_several)] = []
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    shift: Annotated[float, Field(gt=0)] | None = None
    sigmas: list[Annotated[float, Field(gt=0, le=1)]] = []
    guidance: Annotated[float, Field(gt=0)] | None = None
    licence: str = ""

    @property
    def loras(self) -> list[LoraFile]:
        """Its LoRA files with their strengths. Raises: UserError for one that is not there."""
        return [lora_file(text) for text in self.lora]

    def sampling(self) -> Sampling:
        """As `workbench evaluate` samples a folder under the same keys. Raises: UserError."""
        chosen = Evaluation(
            teacher_steps=self.steps,
            teacher_shift=self.shift,
            teacher_cfg_scale=self.guidance,
            teacher_sigmas=list(self.sigmas),
        )
        return teacher_sampling(chosen, self.folder)

    def stated_licence(self) -> str:
        """What the file of the ranking says, or else the folder's card or licence file."""
        stated = stated_by(families.resolve(self.folder))
        name = stated.get("license_name") or stated.get("license") or ""
        return self.licence or str(name) or "not stated"


class Ranking(Outside):
    """The file. See the top of this module."""

    model_config = ConfigDict(**{**Outside.model_config, "extra": "forbid"})
    folder: str = "runs/ranking"
    reference: str = ""
    margin: Annotated[float, Field(ge=0)] = MARGIN
    recipe: dict[str, Any] = {}
    students: Annotated[dict[str, Student], Field(min_length=2)]

    @property
    def compared_with(self) -> str:
        """Name of the student that all others are compared with."""
        return self.reference or next(iter(self.students))


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[Ranking, Recipe]:
    """The ranking in a file, and the recipe of its evaluation with `key=value` overrides on top.

    Raises:
        UserError: naming the file and the entry that cannot be used: an unknown key, a folder or LoRA file that is not
            there, an impossible sampling.
    """
    content = read_bytes(path, REMEDY, largest=LARGEST_BYTES)
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}; {REMEDY}") from error
    _check_keys(values, path)
    found = parse(json.dumps(values, default=str), Ranking, str(path), REMEDY)
    if found.compared_with not in found.students:
        known = ", ".join(found.students)
        raise UserError(f"{path}: reference {found.reference!r} is no student; there are {known}")
    for name, student in found.students.items():
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{path}: {name!r} names files and columns: at most 40 letters, digits, spaces and _ . + -, beginning "
                "with a letter or digit"
            )
        try:
            _ = student.loras, student.sampling()
        except UserError as error:
            raise UserError(f"{path}: students.{name}: {error}") from error
    first = next(iter(found.students.values())).folder
    recipe = from_mapping({**found.recipe, "model": {"folder": first}}, overrides, origin=str(path))
    given = [key for key, value in vars(recipe.evaluation).items() if key.startswith("teacher_") and value]
    if given:
        raise UserError(
            f"{path}: evaluation.{given[0]} is not for rankings: give each student its steps, shift or sigmas"
        )
    return found, replace(recipe, trainer=replace(recipe.trainer, folder=found.folder))


def _check_keys(values: Any, path: Path) -> None:
    """Unknown keys by name, with the nearest known one."""
    if not isinstance(values, dict) or not isinstance(values.get("students"), dict):
        raise UserError(f"{path} must hold a mapping with `students`, a mapping of names; {REMEDY}")
    places: list[tuple[str, Any, Mapping[str, Any]]] = [("", values, Ranking.model_fields)]
    places += [(f"students.{name}.", entry, Student.model_fields) for name, entry in values["students"].items()]
    for place, given, known in places:
        if not isinstance(given, dict):
            raise UserError(f"{path}: {place.rstrip('.')} must be a mapping of {', '.join(known)}; {REMEDY}")
        for key in given:
            if key not in known:
                hint = nearest(str(key), known)
                raise UserError(f"{path}: unknown key {place}{key}{hint}; known here: {', '.join(known)}")
