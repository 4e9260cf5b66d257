"""A folder is sampled as its own stock pipeline samples it, whatever its scheduler does; recipe keys override."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImage21Pipeline
from PIL import Image
from stock_student import noise

from workbench.backbones import families
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import single_role
from workbench.backbones.qwen_image_21 import model as family
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.common.errors import UserError
from workbench.evaluation.models import overridden, teacher_sampling
from workbench.method.rollout import Sampling
from workbench.recipe.config import Evaluation
from workbench.sampling.sampler import NOISE_STREAM, Request, Sampler

DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "max_shift": 2.0}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shift": {"shift": 3.0},
    "dynamic": DYNAMIC,
    "dynamic, linear": {**DYNAMIC, "time_shift_type": "linear"},
    "terminal": {"shift": 2.0, "shift_terminal": 0.1},
    "dynamic and terminal": {**DYNAMIC, "shift_terminal": 0.02},
    "karras": {"use_karras_sigmas": True},
}
SIGMAS = [1.0, 0.8, 0.35]


def folder_with(source: Path, out: Path, scheduler: dict[str, Any], index: dict[str, Any] | None = None) -> Path:
    """The pipeline folder `source` under links, with other settings."""
    out.mkdir()
    for item in source.iterdir():
        (out / item.name).symlink_to(item)
    for name, changes in (("scheduler/scheduler_config.json", scheduler), ("model_index.json", index or {})):
        path = out / name
        part = out / name.split("/")[0]
        part.unlink()
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**json.loads((source / name).read_text()), **changes}))
    return out


def both(model: QwenImage21Model, request: Request, how: Sampling, **stock: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents by our sampler and by the stock pipeline's own call, from the same noise."""
    (ours,) = Sampler(model, RoleDenoiser(single_role(model), "teacher"))([request], how).latents
    width, height = request.sources[-1].size if request.sources else (request.width, request.height)
    start = noise(model, request, NOISE_STREAM, width * height // 256)
    theirs = model.pipeline(
        request.prompt,
        image=list(request.sources) or None,
        height=height,
        width=width,
        output_resolution=80 if request.sources else 64,
        latents=start,
        output_type="latent",
        **stock,
    ).images[0]
    return ours, theirs


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder: Path) -> QwenImage21Model:
    return QwenImage21Model.load(tiny_pipeline_folder)


@pytest.mark.parametrize("stored", [None, SIGMAS], ids=["steps", "sigmas"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_folder_is_sampled_as_its_own_pipeline_samples_it(
    name: str, stored: list[float] | None, tiny_pipeline_folder: Path, model: QwenImage21Model, tmp_path: Path
) -> None:
    """T2I and an edit of another size, which a dynamic shift samples at other times."""
    folder = folder_with(tiny_pipeline_folder, tmp_path / "teacher", SCHEDULERS[name], {"sample_sigmas": stored})
    kind = type(model.pipeline.scheduler)
    model.pipeline.scheduler = kind.from_pretrained(folder / "scheduler")
    model.pipeline.register_to_config(sample_sigmas=stored)
    steps = None if stored else 5
    how = families.sampling_of(str(folder), steps)
    if stored:
        assert how == model.default_sampling()
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    grids = []
    for request in (Request("a red house", seed=3, height=64, width=64), Request("make it blue", sources=(source,))):
        ours, theirs = both(model, request, how, **({} if stored else {"num_inference_steps": 5}))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        grids.append(how.grid(24 if request.sources else 16))
    plain = torch.tensor([*(stored or np.linspace(1, 0.2, 5).tolist()), 0.0])
    assert torch.allclose(grids[0], plain, atol=1e-6) == (name == "plain")
    assert torch.equal(*grids) == ("dynamic" not in name)


def test_defaults_are_those_of_the_stock_pipeline(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    stock = inspect.signature(QwenImage21Pipeline.__call__).parameters
    assert stock["num_inference_steps"].default == family.DEFAULT_SAMPLING.steps
    assert stock["true_cfg_scale"].default == 1.0
    how = families.sampling_of(str(folder_with(tiny_pipeline_folder, tmp_path / "teacher", DYNAMIC)))
    assert (how.steps, how.cfg_scale, how.nfe) == (40, 1.0, 40)


def test_sigmas_asked_for_go_through_the_scheduler_as_in_the_stock_call(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = folder_with(tiny_pipeline_folder, tmp_path / "teacher", {"shift": 3.0}, {"sample_sigmas": [1.0, 0.5]})
    loaded = QwenImage21Model.load(folder)
    how = families.sampling_of(str(folder), sigmas=SIGMAS)
    ours, theirs = both(loaded, Request("a fox", height=64, width=64), how, sigmas=SIGMAS)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert how.times == pytest.approx([1, 12 / 13, 1.05 / 1.7])


def test_one_step_has_nothing_to_stretch(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = str(folder_with(tiny_pipeline_folder, tmp_path / "teacher", {"shift_terminal": 0.1}))
    with pytest.raises(UserError, match="no finite times for 1 step"):
        families.sampling_of(folder, 1)


def test_recipe_keys_override_and_a_line_says_so(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = str(folder_with(tiny_pipeline_folder, tmp_path / "teacher", DYNAMIC, {"sample_sigmas": SIGMAS}))
    own = families.sampling_of(folder)
    assert teacher_sampling(Evaluation(), folder) == own and overridden(Evaluation(), folder) == ""
    guided = teacher_sampling(Evaluation(teacher_cfg_scale=3.0), folder)
    assert guided.sized_times == own.sized_times and guided.nfe == 6
    assert teacher_sampling(Evaluation(teacher_steps=8), folder) == families.sampling_of(folder, 8)
    assert teacher_sampling(Evaluation(teacher_shift=5.0), folder) == Sampling(3, 5.0)
    line = overridden(Evaluation(teacher_steps=8, teacher_shift=5.0), folder)
    assert "evaluation.teacher_steps=8, evaluation.teacher_shift=5, in place of its own" in line


def test_the_folder_that_ships_is_scored_as_before() -> None:
    assert teacher_sampling(Evaluation(), "tiny") == Sampling(40, 2.0, 1.5)
    assert teacher_sampling(Evaluation(teacher_steps=20, teacher_cfg_scale=3.0), "tiny") == Sampling(20, 2.0, 3.0)
    assert families.sampling_of("tiny") == Sampling(40)


@pytest.mark.parametrize(
    ("config", "index", "match"),
    [
        ({}, {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}, "not by UniPC"),
        ({"num_train_timesteps": 500}, {}, "num_train_timesteps must be 1000"),
        ({"time_shift_type": "cubic", "shift": 2.0}, {}, "time_shift_type"),
        ({"shift": "wide"}, {}, "scheduler_config"),
    ],
)
def test_a_scheduler_that_cannot_be_followed_is_named(
    config: dict[str, Any], index: dict[str, Any], match: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = str(folder_with(tiny_pipeline_folder, tmp_path / "teacher", config, index))
    with pytest.raises(UserError, match=match):
        families.sampling_of(folder)
    if index:
        assert teacher_sampling(Evaluation(teacher_steps=2, teacher_shift=1.0), folder) == Sampling(2)
