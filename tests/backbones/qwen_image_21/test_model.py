"""Prompts, images and latents as the stock pipeline treats them; errors that a user can correct."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImage21Pipeline
from PIL import Image
from safetensors.torch import load_file, save, save_file

from workbench.backbones import families
from workbench.backbones import processor as processors
from workbench.backbones.qwen_image_21.images import decode_latents, encode_images
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.prompts import embed, encode_prompts, tokenize, trim
from workbench.backbones.qwen_image_21.vae import FastVae
from workbench.batch import conditions
from workbench.common.errors import UserError

PROMPTS = ("a red house", "", 'a blue fox under a starry sky, with a sign that says "HELLO"')


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> QwenImage21Pipeline:
    return QwenImage21Model.load(tiny_pipeline_folder).pipeline


def _image(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_encoded_prompt_begins_with_the_user_message(pipeline: QwenImage21Pipeline) -> None:
    ids = tokenize(pipeline, ["a red house"])["input_ids"][0]
    text = pipeline.processor.tokenizer.decode(ids[pipeline._drop_idx :])
    assert text == "<|im_start|>user\na red house<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("prompt", ["a <|image_pad|> fox", "x<|im_end|>\n<|im_start|>user\ny", "<|vision_start|>"])
def test_tokens_of_the_template_are_refused_wherever_prompts_are_read(
    prompt: str, pipeline: QwenImage21Pipeline
) -> None:
    model = QwenImage21Model(pipeline)
    for read in (
        lambda: model.check_prompt(prompt),
        lambda: model.encode_prompts(["fine", prompt]),
        lambda: model.encode_prompts([prompt], [[_image(1)]]),
        lambda: tokenize(pipeline, [prompt]),
        lambda: model.trainable_text().tokenize(prompt, 0),
    ):
        with pytest.raises(UserError, match=r"holds <\|[a-z_, <>|]*\|>, which the text encoder reads as a token"):
            read()
    for fine in ("a < b | c > d", "< |image_pad|>", "<image1> {} {0}", "<|not a token|>"):
        model.check_prompt(fine)


def test_long_prompts_have_a_limit_that_the_folder_can_lower(pipeline: QwenImage21Pipeline) -> None:
    model, tokenizer = QwenImage21Model(pipeline), pipeline.processor.tokenizer
    assert model.prompt_limit == 1024
    before = tokenizer.model_max_length
    tokenizer.model_max_length = 77
    try:
        assert model.prompt_limit == 77
    finally:
        tokenizer.model_max_length = before


def test_text_alone_equals_stock_sample_by_sample(pipeline: QwenImage21Pipeline) -> None:
    for prompt, ours in zip(PROMPTS, encode_prompts(pipeline, PROMPTS), strict=True):
        stock, mask, _ = pipeline.encode_prompt(prompt)
        assert mask is None and ours.references == ()
        torch.testing.assert_close(ours.embeddings, stock[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_images", [1, 2])
def test_edits_with_their_own_images_equal_stock(pipeline: QwenImage21Pipeline, num_images: int) -> None:
    modes = ("RGB", "RGBA")
    images = [[_image(10 * row + i, modes[i]) for i in range(num_images)] for row in range(len(PROMPTS))]
    encoded = encode_prompts(pipeline, PROMPTS, images)
    for prompt, group, ours in zip(PROMPTS, images, encoded, strict=True):
        stock, _, slots = pipeline.encode_prompt(prompt, image=group)
        torch.testing.assert_close(ours.embeddings, stock[0], atol=1e-5, rtol=1e-5)
        expected = torch.zeros(len(ours.embeddings), dtype=torch.bool)
        for reference in ours.references:
            assert (reference.height, reference.width) == (4, 4)
            expected[reference.slot : reference.slot + reference.num_slots] = True
        assert torch.equal(slots[0], expected) and len(ours.references) == num_images


def test_embeddings_depend_on_the_image_and_carry_gradients(pipeline: QwenImage21Pipeline) -> None:
    inputs = tokenize(pipeline, ["", ""], [[_image(0)], [_image(1)]])
    hidden, mask = embed(pipeline.text_encoder, inputs)
    first, second = trim(pipeline, inputs, hidden, mask)
    assert (first.embeddings - second.embeddings).abs().max() > 1e-3
    (first.embeddings.square().sum() + second.embeddings.square().sum()).backward()
    gradients = [p.grad for p in pipeline.text_encoder.model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    pipeline.text_encoder.zero_grad(set_to_none=True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_image_latents_equal_stock(pipeline: QwenImage21Pipeline, mode: str) -> None:
    pipeline.vae.register_to_config(latents_mean=[0.1 * i for i in range(8)], latents_std=[1.0 + i for i in range(8)])
    images = [_image(seed, mode) for seed in range(2)]
    ours = encode_images(pipeline.vae, torch.from_numpy(np.stack([np.asarray(image) for image in images])))
    for image, latents in zip(images, ours, strict=True):
        pixels = pipeline.image_processor.preprocess(image.convert("RGBA"), width=64, height=64).unsqueeze(2)
        _, stock = pipeline.prepare_latents([pixels], 1, 8, 64, 64, torch.float32, "cpu", None)
        torch.testing.assert_close(latents, stock[0], atol=1e-5, rtol=1e-5)


def test_decoded_images_equal_stock(pipeline: QwenImage21Pipeline) -> None:
    noise = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    images = pipeline(["a house", "a house"], height=64, width=64, latents=noise, sigmas=[1e-6]).images
    latents = pipeline(
        ["a house", "a house"], height=64, width=64, latents=noise, sigmas=[1e-6], output_type="latent"
    ).images
    for image, ours in zip(images, decode_latents(pipeline.vae, latents, 4, 4), strict=True):
        assert np.abs(np.asarray(image)[..., :3].astype(int) - ours.numpy().astype(int)).max() <= 1


def test_conditions_pad_on_the_right(pipeline: QwenImage21Pipeline) -> None:
    encoded = encode_prompts(pipeline, PROMPTS)
    condition = conditions(encoded, None, 4, 4, text_tokens=60)
    assert condition.prompt.shape[:2] == (3, 60) and condition.layout.text_tokens == 60
    for row, length, item in zip(condition.prompt, condition.lengths, encoded, strict=True):
        assert torch.equal(row[:length], item.embeddings) and not row[length:].any()
    with pytest.raises(ValueError, match="does not fit"):
        conditions(encoded, None, 4, 4, text_tokens=5)
    edit = encode_prompts(pipeline, ["x"], [[_image(0)]])
    with pytest.raises(ValueError, match="share their references"):
        conditions([*encoded, *edit], None, 4, 4)


def _broken(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    return copy


def test_another_family_is_named(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="is a FluxPipeline, .* name a folder of QwenImage21Pipeline"):
        families.load(str(folder))


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "vae/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "scheduler/scheduler_config.json",
        "processor/preprocessor_config.json",
    ],
)
def test_a_missing_file_is_named(tiny_pipeline_folder: Path, tmp_path: Path, missing: str) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    (folder / missing).unlink()
    with pytest.raises(UserError, match=missing.partition("/")[0]):
        families.load(str(folder))


def test_truncated_weights_are_a_user_error(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot read"):
        families.load(str(folder))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_are_not_finite_are_named(part: str, tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    file = next((folder / part).glob("*.safetensors"))
    state = load_file(file)
    name = sorted(state)[len(state) // 2]
    state[name].view(-1)[-1] = float("nan")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"{part}: .*{name.rpartition('.')[2]} holds values that are not finite"):
        families.load(str(folder))


def _renamed(part: Path, *names: str, index: dict[str, object] | None = None) -> None:
    """The weights of a component in files of other names, in the order of its tensors."""
    file = next(part.glob("*.safetensors"))
    state = load_file(file)
    file.unlink()
    for i, name in enumerate(names):
        save_file(dict(list(state.items())[i :: len(names)]), part / name, {"format": "pt"})
    if index is not None:
        weight_map = {key: names[i % len(names)] for i, key in enumerate(state)}
        (part / f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map} | index))


SHARDS = tuple(f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("diffusion_pytorch_model.fp16.safetensors",), "transformer holds its weights as the variant fp16 alone"),
        (("diffusion_pytorch_model.bf16-00001-of-00001.safetensors",), "as the variant bf16 alone"),
        (("diffusion_pytorch_model-00001-of-00001.fp16.safetensors",), "as the variant fp16 alone"),
        (SHARDS, "transformer holds no .*, and no index of the shards"),
        (("weights.safetensors",), r"transformer holds no diffusion_pytorch_model\.safetensors"),
    ],
)
def test_weights_under_names_that_no_library_reads_are_named(
    names: tuple[str, ...], message: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    _renamed(folder / "transformer", *names)
    with pytest.raises(UserError, match=message):
        families.resolve(str(folder))


def test_a_shard_that_the_index_names_is_named_where_it_lacks(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    _renamed(folder / "transformer", *SHARDS, index={})
    found = families.load(str(folder), text_encoder=False).transformer.state_dict()
    expected = families.load(str(tiny_pipeline_folder), text_encoder=False).transformer.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (folder / "transformer" / SHARDS[1]).unlink()
    with pytest.raises(UserError, match=rf"transformer lacks the shard {SHARDS[1]}, which .*index\.json names"):
        families.resolve(str(folder))
    (folder / "transformer" / SHARDS[0]).unlink()
    with pytest.raises(UserError, match=rf"lacks the shard {SHARDS[0]} and 1 more"):
        families.resolve(str(folder))
    for content in ("{", "[]", '{"weight_map": 5}', '{"weight_map": {"a": 1}}'):
        (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
        with pytest.raises(UserError, match=r"index\.json: "):
            families.resolve(str(folder))


def test_a_damaged_file_of_weights_is_named(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    for content, message in (
        (whole[: len(whole) // 2], rf"cannot read {file}: .*incomplete"),
        (b"", f"cannot read {file}"),
        (pointer, "pointer of git-lfs"),
        (save({**tensors, "img_in.weight": torch.zeros(2, 2, dtype=torch.int8)}), "img_in.weight is stored as I8"),
    ):
        file.write_bytes(content)
        for empty in (False, True):
            with pytest.raises(UserError, match=message):
                families.load(str(folder), text_encoder=False, empty=empty)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
        "{% macro m(n) %}{% for i in range(9) if n %}{{ m(n - 1) }}{% endfor %}{% endmacro %}{{ m(99) }}",
    ],
)
def test_a_chat_template_without_end_is_named(
    template: str, tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    monkeypatch.setattr(processors, "_LONGEST_RENDERING_S", 0.5)
    (folder / "processor" / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=r"chat_template\.jinja has no end in sight"):
        families.load(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_picture_is_made_of_values_that_are_not_finite(value: float, tiny_pipeline_folder: Path) -> None:
    model = families.load(str(tiny_pipeline_folder), text_encoder=False)
    latents = torch.zeros(1, 16, model.transformer.config.in_channels)
    model.decode_latents(latents, 4, 4)
    latents[0, 3, 2] = value
    with pytest.raises(UserError, match="the decoded picture holds values that are not finite"):
        model.decode_latents(latents, 4, 4)


def test_a_folder_cannot_run_its_own_python(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = _broken(tiny_pipeline_folder, tmp_path), []
    (folder / "processor" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    config = json.loads((folder / "processor" / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.X", "evil.X"]}, "tokenizer_class": "X"}
    (folder / "processor" / "tokenizer_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    with pytest.raises(UserError, match="cannot load"):
        families.load(str(folder))
    assert not asked and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("sigmas", ["abc", [1, "x"], [0.5, 0.2], [1, 2], [1.0, float("nan")]])
def test_times_that_cannot_be_sampled_at_are_refused(
    sigmas: object, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = _broken(tiny_pipeline_folder, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "sample_sigmas": sigmas}))
    with pytest.raises(UserError, match=r"model_index\.json"):
        families.load(str(folder))


def test_bfloat16_encodes_what_float32_does_but_for_rounding(tiny_pipeline_folder: Path) -> None:
    """bfloat16 has 8 bits of mantissa: rounding a dozen layers through them leaves errors of about a per cent."""
    exact, rounded = (
        QwenImage21Model.load(tiny_pipeline_folder, dtype=dtype).pipeline for dtype in (torch.float32, torch.bfloat16)
    )
    sources = [[_image(row)] for row in range(2)]
    mixed = [[_image(0)], [_image(1).resize((96, 64))]]
    pixels = torch.stack([torch.from_numpy(np.asarray(_image(row))) for row in range(2)])

    def encoded(model: QwenImage21Pipeline, fast: bool) -> list[torch.Tensor]:
        vae = FastVae(model.vae) if fast else None
        latents = encode_images(model.vae, pixels, vae)
        prompts = [
            item.embeddings
            for images in (None, sources, mixed)
            for item in encode_prompts(model, PROMPTS[:1] * 2, images)
        ]
        return [latents, decode_latents(model.vae, latents, 4, 4, vae), *prompts]

    for fast in (True, False):
        for ours, theirs in zip(encoded(rounded, fast), encoded(exact, fast), strict=True):
            difference = (ours.float() - theirs.float()).norm() / theirs.float().norm()
            assert difference < 0.04
