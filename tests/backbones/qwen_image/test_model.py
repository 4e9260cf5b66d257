"""Prompts, images, sampling and students of both pipelines, as the stock pipelines treat them."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from PIL import Image
from stock_student import noise, renoised_by
from torch import Tensor

from workbench.backbones import families, stored_weights
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import single_role
from workbench.backbones.qwen_image.export import export
from workbench.backbones.qwen_image.images import pack, unpack
from workbench.backbones.qwen_image.model import QwenImageModel
from workbench.backbones.qwen_image.prompts import encode_edits
from workbench.backbones.stored_weights import WeightSource
from workbench.common.errors import UserError
from workbench.method.rollout import Sampling
from workbench.sampling.sampler import NOISE_STREAM, Request, Sampler, fit

PROMPTS = ("a red house", "", 'a blue fox under a starry sky, with a sign that says "HELLO"')


@pytest.fixture(scope="module", autouse=True)
def _small_images() -> Iterator[None]:
    """The editing pipeline reads its sources at one size for the encoder and at another for the autoencoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock, "CONDITION_IMAGE_SIZE", 96 * 96)
        patch.setattr(stock, "VAE_IMAGE_SIZE", 64 * 64)
        yield


@pytest.fixture(scope="module")
def models(qwen_image_folders: dict[str, Path]) -> dict[str, QwenImageModel]:
    return {name: QwenImageModel.load(folder) for name, folder in qwen_image_folders.items()}


def editing(models: dict[str, QwenImageModel]) -> QwenImageEditPlusPipeline:
    """The stock pipeline of the editing folder."""
    pipeline = models["edit"].edits
    assert pipeline is not None
    return pipeline


def image(seed: int, width: int = 64, height: int = 64, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_folder_says_which_family_it_is_of(qwen_image_folders: dict[str, Path], tmp_path: Path) -> None:
    for folder in qwen_image_folders.values():
        assert families.family_of(families.resolve(str(folder))) is QwenImageModel
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImageLayeredPipeline"}))
    known = "QwenImage21Pipeline, QwenImagePipeline, QwenImageEditPlusPipeline"
    with pytest.raises(UserError, match=f"is a QwenImageLayeredPipeline, .*: name a folder of {known}"):
        families.resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["t2i", "edit"])
def test_text_equals_the_generating_pipeline_sample_by_sample(name: str, models: dict[str, QwenImageModel]) -> None:
    for prompt, ours in zip(PROMPTS, models[name].encode_prompts(PROMPTS), strict=True):
        theirs, mask = models["t2i"].pipeline.encode_prompt(prompt or " ")
        assert mask is None and ours.references == ()
        torch.testing.assert_close(ours.embeddings, theirs[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sides", [[(64, 64)], [(64, 96), (96, 32), (64, 64)]], ids=["one", "three"])
def test_edits_equal_the_editing_pipeline(sides: list[tuple[int, int]], models: dict[str, QwenImageModel]) -> None:
    """Slots are where the image tokens are, of a number that only the encoder's size decides."""
    model, pipeline = models["edit"], editing(models)
    groups = [[image(10 * row + i, *size) for i, size in enumerate(sides)] for row in range(2)]
    read = [[pipeline.image_processor.resize(item, *condition_size(item)) for item in group] for group in groups]
    encoded = model.encode_prompts(PROMPTS[:2], groups)
    for prompt, group, seen, ours in zip(PROMPTS[:2], groups, read, encoded, strict=True):
        theirs, _ = pipeline.encode_prompt(prompt or " ", seen)
        torch.testing.assert_close(ours.embeddings, theirs[0], atol=1e-5, rtol=1e-5)
        (alone,) = model.encode_prompts([prompt], [group])
        assert torch.equal(alone.embeddings, theirs[0]) and alone.references == ours.references
        assert [(item.height, item.width) for item in ours.references] == [(h // 16, w // 16) for w, h in sides]
        empty = "".join(f"Picture {i + 1}: <|vision_start|><|image_pad|><|vision_end|>" for i in range(len(group)))
        texts = [pipeline.prompt_template_encode.format(empty + (prompt or " "))]
        ids = pipeline.processor(text=texts, images=seen, return_tensors="pt")["input_ids"][0]
        slots = (ids == pipeline.processor.image_token_id)[pipeline.prompt_template_encode_start_idx :]
        expected = torch.zeros_like(slots)
        for item in ours.references:
            expected[item.slot : item.end] = True
        assert torch.equal(slots, expected) and len(slots) == len(ours.embeddings)


def condition_size(item: Image.Image) -> tuple[int, int]:
    """Height and width."""
    width, height = stock.calculate_dimensions(stock.CONDITION_IMAGE_SIZE, item.width / item.height)
    return height, width


def test_image_tokens_have_the_positions_of_their_grid(models: dict[str, QwenImageModel]) -> None:
    """What diffusers leaves out (its issue 14194): without token types, an image is a line of text to the encoder."""
    pipeline, seen = editing(models), []
    language = pipeline.text_encoder.model.language_model
    handle = language.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    reference = encode_edits(pipeline, ["a fox"], [[image(0, 64, 96)]])[0].references[0]
    handle.remove()
    positions = seen[0]["position_ids"][-3:, 0, pipeline.prompt_template_encode_start_idx :]
    rows, columns = (positions[axis, reference.slot : reference.end] for axis in (1, 2))
    assert len(set(rows.tolist())) * len(set(columns.tolist())) == reference.num_slots
    assert len(set(positions[0, reference.slot : reference.end].tolist())) == 1


def test_what_a_folder_cannot_encode_is_refused(models: dict[str, QwenImageModel]) -> None:
    with pytest.raises(UserError, match="takes no images: name a folder of QwenImageEditPlusPipeline"):
        models["t2i"].encode_prompts(["a fox"], [[image(0)]])
    with pytest.raises(UserError, match="at most 3 reference images, not 4"):
        models["edit"].encode_prompts(["a fox"], [[image(i) for i in range(4)]])
    for model in models.values():
        with pytest.raises(UserError, match="reads as a token of its template"):
            model.encode_prompts(["a fox<|im_end|>"])
        assert model.prompt_limit == 512


def test_image_latents_equal_stock_and_come_back(models: dict[str, QwenImageModel]) -> None:
    model, pipeline = models["edit"], editing(models)
    pictures = [image(seed, 64, 96) for seed in range(2)]
    pixels = torch.from_numpy(np.stack([np.asarray(item) for item in pictures]))
    ours = model.encode_images(pixels)
    for item, latents in zip(pictures, ours, strict=True):
        preprocessed = pipeline.image_processor.preprocess(item, 96, 64).unsqueeze(2)
        with torch.no_grad():
            theirs = pipeline._encode_vae_image(preprocessed, None)
        packed = pipeline._pack_latents(theirs, 1, 16, 12, 8)
        torch.testing.assert_close(latents[None], packed, atol=1e-5, rtol=1e-5)
    assert torch.equal(pack(unpack(ours, 6, 4)), ours)
    opaque = torch.cat([pixels, pixels.new_full((*pixels.shape[:3], 1), 255)], dim=-1)
    assert torch.equal(model.encode_images(opaque), ours)
    clear = torch.cat([pixels, torch.zeros_like(opaque[..., :1])], dim=-1)
    torch.testing.assert_close(model.encode_images(clear), model.encode_images(torch.full_like(pixels, 255)))


@torch.no_grad()
def drawn(model: QwenImageModel, request: Request, how: Sampling, **stock_call: Any) -> tuple[Tensor, Tensor]:
    """Latents by this project's sampler and by the stock pipeline's own call, from the same noise."""
    (ours,) = Sampler(model, RoleDenoiser(single_role(model), "teacher"))([request], how).latents
    width, height = request.sources[-1].size if request.sources else (request.width, request.height)
    latents = noise(model, request, NOISE_STREAM, width * height // 256)
    given = {"prompt": request.prompt, "height": height, "width": width, "latents": latents, "output_type": "latent"}
    pipeline = model.pipeline
    if request.sources:
        given["image"], pipeline = list(request.sources), model.edits
    return ours, pipeline(**given, **stock_call).images[0]


REQUESTS = {
    "t2i": Request("a red house", seed=3, height=64, width=96),
    "edit": Request("make it blue", seed=4, sources=(image(5, 96, 32),)),
}


NUM_TOKENS = {"t2i": 24, "edit": 12}


@pytest.mark.parametrize("task", REQUESTS)
@pytest.mark.parametrize("steps", [4, 40])
@pytest.mark.parametrize("guided", [False, True])
def test_a_folder_is_sampled_as_its_own_pipeline_samples_it(
    task: str, steps: int, guided: bool, models: dict[str, QwenImageModel], qwen_image_folders: dict[str, Path]
) -> None:
    """Times shifted by size and stretched to a terminal one, guidance rescaled."""
    how = families.sampling_of(str(qwen_image_folders[task]), steps)
    assert (how.cfg_scale, how.cfg_rescale, how.nfe) == (4.0, 1.0, 2 * steps)
    if not guided:
        how = Sampling(how.steps, sized_times=how.sized_times)
    call = {"num_inference_steps": steps, "negative_prompt": " " if guided else None}
    ours, theirs = drawn(models[task], REQUESTS[task], how, **call)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    grid = how.grid(24)
    assert math.isclose(grid[-2], 0.02, rel_tol=1e-4) and not torch.equal(grid, how.grid(4096))


@pytest.mark.parametrize("count", [2, 3])
def test_several_sources_are_drawn_as_the_editing_pipeline_draws_them(
    count: int, models: dict[str, QwenImageModel], qwen_image_folders: dict[str, Path]
) -> None:
    pictures = (image(6), image(7, 96, 32), image(8, 32, 96))
    request = Request("put the fox into the house", seed=5, sources=pictures[:count])
    how = families.sampling_of(str(qwen_image_folders["edit"]), 4)
    ours, theirs = drawn(models["edit"], request, how, num_inference_steps=4, negative_prompt=" ")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_defaults_are_those_of_the_stock_pipelines(qwen_image_folders: dict[str, Path]) -> None:
    for name, kind in (("t2i", QwenImagePipeline), ("edit", QwenImageEditPlusPipeline)):
        call = inspect.signature(kind.__call__).parameters
        how = families.sampling_of(str(qwen_image_folders[name]))
        assert (how.steps, how.cfg_scale) == (call["num_inference_steps"].default, call["true_cfg_scale"].default)
        assert call["max_sequence_length"].default == 512


def test_sources_are_fitted_as_the_editing_pipeline_fits_them() -> None:
    for size in ((640, 480), (333, 1000), (1024, 1024), (97, 61)):
        ours = fit(Image.new("RGB", size), 64, QwenImageModel.side_multiple)
        assert ours.size == stock.calculate_dimensions(64 * 64, size[0] / size[1])


def student_state(model: QwenImageModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = model.transformer.state_dict()
    return {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in state.items()}


@pytest.mark.parametrize("task", REQUESTS)
@pytest.mark.parametrize(
    "how",
    [Sampling(4, 3.0), Sampling(3, times=(1.0, 0.8, 0.3)), Sampling(4, 3.0, stochastic=True)],
    ids=["shifted", "explicit", "noised again"],
)
@torch.no_grad()
def test_an_exported_student_in_the_stock_pipeline(
    task: str,
    how: Sampling,
    models: dict[str, QwenImageModel],
    qwen_image_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    """A shifted grid needs no sigmas in the call, only the number of steps."""
    state = student_state(models["edit"])
    export(qwen_image_folders["edit"], state, how, tmp_path / "student", lambda _: None, torch.float32)
    student = families.load(str(tmp_path / "student"))
    assert isinstance(student, QwenImageModel)
    own = student.default_sampling()
    torch.testing.assert_close(own.grid(), how.grid(), atol=1e-6, rtol=0)
    assert own.cfg_scale == 1 and families.sampling_of(str(tmp_path / "student"), 8).cfg_scale == 1
    call = {"sigmas": list(how.times)} if how.times else {"num_inference_steps": 4}
    fresh = [noise(student, REQUESTS[task], f"{NOISE_STREAM}/fresh{k}", NUM_TOKENS[task]) for k in range(3)]
    with renoised_by([*fresh, torch.zeros(1)]):
        ours, theirs = drawn(student, REQUESTS[task], own, **call)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in student.transformer.state_dict().items())


def test_an_editing_folder_generates_in_the_generating_pipeline(
    models: dict[str, QwenImageModel], qwen_image_folders: dict[str, Path]
) -> None:
    """As the lines of the model card do."""
    line = QwenImageModel.drawing_code(qwen_image_folders["edit"], Sampling(4, 3.0), 64, ["t2i"], stored=True)
    assert "generate = QwenImagePipeline.from_pipe(pipeline, torch_dtype=pipeline.dtype)" in line
    pipeline = editing(models)
    generate = QwenImagePipeline.from_pipe(pipeline, torch_dtype=pipeline.dtype)
    assert generate.transformer is pipeline.transformer
    assert "true_cfg_scale=1.0" in line[-1] and "num_inference_steps=4" in line[-1]
    picture = generate("a fox", height=64, width=64, num_inference_steps=4, true_cfg_scale=1.0).images[0]
    assert picture.size == (64, 64)


def test_a_network_without_values_is_filled_from_its_files(
    models: dict[str, QwenImageModel], qwen_image_folders: dict[str, Path]
) -> None:
    """As sharded runs load both checkpoints."""
    for name, folder in qwen_image_folders.items():
        empty = families.load(str(folder), text_encoder=False, empty=True)
        assert stored_weights.is_empty(empty.transformer) and empty.architecture == models[name].architecture
        stored_weights.fill([(empty.transformer, WeightSource(folder / "transformer"))], torch.device("cpu"))
        expected = models[name].transformer.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in empty.transformer.state_dict().items())


def test_a_folder_cannot_run_its_own_python(
    qwen_image_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    asked: list[object] = []

    def answer(*words: object) -> str:
        asked.append(words)
        return "y"

    shutil.copytree(qwen_image_folders["t2i"], folder)
    (folder / "tokenizer" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.X", "evil.X"]}, "tokenizer_class": "X"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "AutoTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr("builtins.input", answer)
    with pytest.raises(UserError, match="cannot load"):
        families.load(str(folder))
    assert not asked and not (tmp_path / "ran").exists()
