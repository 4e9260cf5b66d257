"""The exported folder and LoRA file, sampled by stock diffusers, against our own Euler over the stock transformer."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Pipeline, QwenImage21Transformer2DModel
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from workbench.backbones import folders, lora, lora_files, weight_files
from workbench.backbones.qwen_image_21 import export as exports
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.common.errors import UserError
from workbench.common.large_files import LargeFile
from workbench.evaluation.model_card import Origin, model_card
from workbench.method.rollout import Sampling, Velocity, sample, time_grid

PROMPT = "a red house under a clear sky"
TIMES = time_grid(4, 3.0)
SIGMAS = folders.sample_sigmas(TIMES)
ORIGIN = Origin(title="A student", recipe_hash="abc123", data="OpenMoji", licence="CC BY-SA 4.0")
CARD = model_card(ORIGIN, "QwenImage21Pipeline", Sampling(4, 3.0), [])


def finish(folder: Path) -> None:
    (folder / "README.md").write_text(CARD)


@pytest.fixture(scope="module")
def bent_teacher(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose scheduler bends every grid that it is given."""
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    shutil.copytree(tiny_pipeline_folder, folder)
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, shift_terminal=0.02).save_pretrained(
        folder / "scheduler"
    )
    return folder


def _student_state(folder: Path) -> dict[str, Tensor]:
    transformer = QwenImage21Transformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in transformer.state_dict().items()
    }


def _stock_velocity(pipeline: QwenImage21Pipeline, image: Image.Image | None, side: int) -> Velocity:
    """Velocity of the stock transformer, unpadded and without cache, under the stock pipeline's own encoding."""
    embeddings, mask, slots = pipeline.encode_prompt(PROMPT, image=[image] if image is not None else None)
    slots = torch.cat([slots, slots.new_ones(1, side * side // 4)], dim=1)
    shapes, references = [(1, side, side)], None
    if image is not None:
        pixels = pipeline.image_processor.preprocess(image.convert("RGBA")).unsqueeze(2)
        references = pipeline._encode_vae_image(pixels, None).flatten(2).transpose(1, 2)
        shapes = [(1, side, side), *shapes]

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        tokens = x_t if references is None else torch.cat([references, x_t], dim=1)
        output = pipeline.transformer(
            tokens, embeddings, t, [shapes], slots, encoder_hidden_states_mask=mask, return_dict=False
        )[0]
        return output[:, -x_t.shape[1] :]

    return velocity


@pytest.mark.parametrize("task", ["t2i", "edit"])
@torch.no_grad()
def test_stock_pipeline_samples_our_grid(bent_teacher: Path, tmp_path: Path, task: str) -> None:
    state, out, side = _student_state(bent_teacher), tmp_path / "student", 8
    exports.export(bent_teacher, state, SIGMAS, out, finish, dtype=torch.float32)
    pipeline = QwenImage21Model.load(out).pipeline
    image = None
    if task == "edit":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    noise = torch.randn(1, side * side, 8, generator=torch.Generator().manual_seed(0))
    stock = pipeline(PROMPT, image=image, output_resolution=128, latents=noise, output_type="latent").images

    pipeline.transformer.load_state_dict(state)
    ours = sample(_stock_velocity(pipeline, image, side), noise, TIMES)
    torch.testing.assert_close(stock, ours, atol=1e-4, rtol=1e-4)
    assert (stock - noise).abs().max() > 0.1


def test_the_rest_of_the_folder_is_the_teachers(bent_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    exports.export(bent_teacher, _student_state(bent_teacher), SIGMAS, out, finish)
    for name in ("vae", "text_encoder", "processor"):
        for file in (bent_teacher / name).iterdir():
            assert (out / name / file.name).read_bytes() == file.read_bytes()
    index = json.loads((out / "model_index.json").read_text())
    assert index["sample_sigmas"] == TIMES[:-1].tolist()
    card = (out / "README.md").read_text()
    assert all(text in card for text in ("abc123", "CC BY-SA 4.0", "OpenMoji", "**4**", "import QwenImage21Pipeline"))
    with safe_open(out / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert weights.get_tensor("img_in.weight").dtype == torch.bfloat16


def test_large_weights_come_in_several_files_that_both_read(
    bent_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "LARGEST_FILE", "10KB")
    state, out = _student_state(bent_teacher), tmp_path / "student"
    exports.export(bent_teacher, state, SIGMAS, out, finish, dtype=torch.float32)
    assert len(list((out / "transformer").glob("*.safetensors"))) > 1
    ours = QwenImage21Model.load(out, text_encoder=False).transformer
    stock = QwenImage21Transformer2DModel.from_pretrained(out / "transformer")
    for network in (ours, stock):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_export_replaces_pipelines_alone_and_whole(bent_teacher: Path, tmp_path: Path) -> None:
    state, out = _student_state(bent_teacher), tmp_path / "student"
    exports.export(bent_teacher, state, SIGMAS, out, finish)
    (out / "old").write_text("x")
    with pytest.raises(ValueError, match="img_in"):
        exports.export(bent_teacher, {**state, "img_in.weight": torch.zeros(1)}, SIGMAS, out, finish)
    assert (out / "old").is_file() and [path.name for path in tmp_path.iterdir()] == ["student"]
    exports.export(bent_teacher, state, SIGMAS, out, finish)
    assert not (out / "old").exists() and [path.name for path in tmp_path.iterdir()] == ["student"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="no pipeline folder"):
        exports.export(bent_teacher, state, SIGMAS, tmp_path / "thesis", finish)
    assert (tmp_path / "thesis" / "thesis.tex").is_file()


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "name", "error"),
    [(LargeFile, "write", FULL), (os, "fsync", FULL), (folders, "copy_parts", shutil.Error([("a", "b", str(FULL))]))],
    ids=["writing", "syncing", "copying"],
)
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    where: object, name: str, error: Exception, bent_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    state = _student_state(bent_teacher)
    monkeypatch.setattr(where, name, full)
    with pytest.raises(UserError, match=r"cannot write .*student: .*No space left on device.*; free space"):
        exports.export(bent_teacher, state, SIGMAS, tmp_path / "student", finish)
    assert list(tmp_path.iterdir()) == []


def test_the_index_is_the_students_however_long_copying_takes(
    bent_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_parts, out = folders.copy_parts, tmp_path / "student"

    def late(source: Path, part: Path, left_out: Sequence[str]) -> None:
        written.wait(5)
        copy_parts(source, part, left_out)

    written = threading.Event()
    monkeypatch.setattr(folders, "copy_parts", late)
    exports.export(bent_teacher, _student_state(bent_teacher), SIGMAS, out, lambda _: written.set())
    assert folders.read_index(out)["sample_sigmas"] == list(SIGMAS)


def test_what_killed_exports_left_goes_with_the_next_one(tmp_path: Path) -> None:
    out, gone = tmp_path / "student", 999_999_999
    names = [f".student.{gone}.part", f".student.{gone}.old", f".student.{os.getppid()}.part", f".other.{gone}.part"]
    for name in names:
        (tmp_path / name / "vae").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), folders.replaced_folder(out):
        assert not (tmp_path / names[0]).exists()
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    with folders.replaced_folder(out) as folder:
        (folder / "model_index.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[2:], "student"])


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_takes_the_place_of_another_which_is_never_missing(
    at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system can exchange two names; elsewhere the former one is put aside first."""
    out, renamed = tmp_path / "student", []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda one, other: (renamed.append(one), replace(one, other)))
    if not at_once:
        monkeypatch.setattr(folders, "_swapped", lambda *_: False)
    for content in ("first", "second"):
        with folders.replaced_folder(out) as folder:
            (folder / "model_index.json").write_text(content)
            if content == "second":
                renamed.clear()
    assert (out / "model_index.json").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (renamed == []) == (at_once and sys.platform == "linux")


def test_a_lora_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = {"layer": (torch.zeros(1, 2), torch.zeros(2, 1))}
    with pytest.raises(UserError, match="is a folder: name a .safetensors file"):
        lora_files.write(adapters, tmp_path, header={})

    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.safetensors: No space left"):
        lora_files.write(adapters, tmp_path / "a.safetensors", header={})
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_for_the_teachers_weights_is_not_passed_on(bent_teacher: Path, tmp_path: Path) -> None:
    source = tmp_path / "teacher"
    shutil.copytree(bent_teacher, source)
    for name in ("portrait.safetensors", "measured.json", "LICENSE.txt"):
        (source / name).write_text("x")
    exports.export(source, _student_state(bent_teacher), SIGMAS, tmp_path / "student", finish)
    found = {path.name for path in (tmp_path / "student").iterdir()}
    assert found.isdisjoint({"portrait.safetensors", "measured.json"})
    assert found >= {"LICENSE.txt", "README.md", "model_index.json", "vae", "processor"}


@pytest.mark.parametrize("times", [[0.9, 0.0], [1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [1.0], [1.0, math.nan, 0.0]])
def test_a_grid_that_is_none_is_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="falls strictly"):
        folders.sample_sigmas(times)


@torch.no_grad()
def test_stock_pipeline_loads_the_lora(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    pipeline, rank, alpha = QwenImage21Model.load(tiny_pipeline_folder).pipeline, 4, 10.0
    transformer, generator = pipeline.transformer, torch.Generator().manual_seed(0)
    expected = {name: value.clone() for name, value in transformer.state_dict().items()}
    lora.install(transformer)
    for name, layer in lora.role_linears(transformer):
        layer.add_adapter("student", rank, alpha, generator)
        up, down = layer.lora_B["student"].weight, layer.lora_A["student"].weight
        assert isinstance(up, Tensor) and isinstance(down, Tensor)
        up.copy_(0.1 * torch.randn(up.shape, generator=generator))
        expected[f"{name}.weight"] += alpha / rank * up @ down
    file = tmp_path / "lora" / "student.safetensors"
    header = {"sample_sigmas": json.dumps(SIGMAS)}
    lora_files.write(lora.role_adapters(transformer, "student"), file, header=header, dtype=torch.float32)
    with safe_open(file, "pt") as written:
        sigmas = json.loads(written.metadata()["sample_sigmas"])

    noise = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    settings = {"height": 64, "width": 64, "latents": noise, "sigmas": sigmas, "output_type": "latent"}
    adapted, merged = (QwenImage21Model.load(tiny_pipeline_folder).pipeline for _ in range(2))
    plain = adapted(PROMPT, **settings).images
    adapted.load_lora_weights(str(file.parent), weight_name=file.name)
    merged.transformer.load_state_dict(expected)
    images = adapted(PROMPT, **settings).images
    torch.testing.assert_close(images, merged(PROMPT, **settings).images, atol=1e-4, rtol=1e-4)
    assert (images - plain).abs().max() > 1e-2
