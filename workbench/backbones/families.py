"""The families of pipeline folders that can be used, and the family of a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from workbench.backbones.family import PipelineModel
from workbench.backbones.folders import INDEX_FILE, read_index
from workbench.backbones.measured import Measured
from workbench.backbones.qwen_image.model import QwenImageModel
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.method.rollout import Sampling

FAMILIES: tuple[type[PipelineModel], ...] = (QwenImage21Model, QwenImageModel)
RESOLUTION = "_resolution"
"""Key of a folder's index, which diffusers passes over."""
LARGEST_SIDE = 1 << 13
"""Of a picture that is drawn, in pixels."""
SHIPPED = {"tiny": Path(__file__).parents[1] / "assets" / "tiny"}
SHIPPED_EVALUATION = Sampling(40, 2.0, 1.5)
"""How folders that ship are scored as teachers: at the shift that they were trained at, guided."""


def resolve(folder: str) -> Path:
    """Path of the pipeline folder that `folder` names; `tiny` is the one that ships.

    Raises:
        UserError: there is none, no family knows it, or a component is missing.
    """
    path = SHIPPED.get(folder, Path(folder))
    family_of(path).check(path)
    return path


def family_of(path: Path) -> type[PipelineModel]:
    """The family of a pipeline folder.

    Raises:
        UserError: no pipeline folder, or of no family that is known here.
    """
    return of_class(class_of(path), f"{path} is a ")


def of_class(name: str, where: str = "") -> type[PipelineModel]:
    """The family of a class of pipelines in diffusers. where: what an error begins with.

    Raises:
        UserError: of no family that is known here.
    """
    for family in FAMILIES:
        if name in family.class_names:
            return family
    known = ", ".join(known for family in FAMILIES for known in family.class_names)
    raise UserError(f"{where}{name}, which cannot be used here: name a folder of {known}")


def measured(name: str) -> Measured:
    """How the family of a class of pipelines is measured.

    Raises:
        UserError: of no family that is known here, or it brings nothing to measure it with.
    """
    found = of_class(name).measured
    if found is None:
        raise UserError(f"a {name} cannot be measured here: its family makes no networks of random weights")
    return found


def class_of(path: Path) -> str:
    """Class of a pipeline folder in diffusers."""
    return str(read_index(path).get("_class_name"))


def sampling_of(folder: str, steps: int | None = None, sigmas: Sequence[float] = ()) -> Sampling:
    """How a folder's own pipeline samples it; see `PipelineModel.sampling_of`.

    Raises:
        UserError: see `resolve`; or a scheduler that cannot be followed.
    """
    path = resolve(folder)
    return family_of(path).sampling_of(path, steps, sigmas)


def resolution_of(path: Path) -> int:
    """What a pipeline folder draws at where nothing else is asked for: as its index says, else as its family does."""
    stored = read_index(path).get(RESOLUTION)
    return stored if type(stored) is int and 0 < stored <= LARGEST_SIDE else family_of(path).default_resolution


def state_resolution(path: Path, resolution: int) -> None:
    """Write into a pipeline folder what it draws at."""
    write_bytes(path / INDEX_FILE, (json.dumps({**read_index(path), RESOLUTION: resolution}, indent=2) + "\n").encode())


def load(
    folder: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    transformer_dtype: torch.dtype | None = None,
    transformer: bool = True,
    text_encoder: bool = True,
    empty: bool = False,
) -> PipelineModel:
    """The model of a folder; see `PipelineModel.load`.

    Raises:
        UserError: see `resolve`; or the files do not fit the classes.
    """
    path = resolve(folder)
    return family_of(path).load(
        path,
        device,
        dtype,
        transformer_dtype=transformer_dtype,
        transformer=transformer,
        text_encoder=text_encoder,
        empty=empty,
    )
