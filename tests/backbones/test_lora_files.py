"""LoRA files: a file means to us what it means to diffusers, and costs no second copy of the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import QwenImage21Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from stock_student import stock_latents as stock_latents_of
from torch import Tensor, nn

from workbench.backbones import lora_files, roles
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import STUDENT, TEACHER
from workbench.common.errors import UserError
from workbench.method.rollout import Sampling
from workbench.recipe.config import Model
from workbench.sampling.sampler import Request, Sampler

SPECIALIST = "teacher_text"
LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.out", "transformer_blocks.0.attn.to_out.0")


def halves(transformer: nn.Module, rank: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    linears = {name: transformer.get_submodule(name) for name in LAYERS}
    return {
        name: (
            torch.randn(rank, linear.in_features, generator=generator),
            torch.randn(linear.out_features, rank, generator=generator),
        )
        for name, linear in linears.items()
    }


def plain(transformer: nn.Module, file: Path) -> None:
    state = {}
    for name, (down, up) in halves(transformer).items():
        state |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    save_file(state, file)


def with_alphas(transformer: nn.Module, file: Path) -> None:
    state = {}
    for i, (name, (down, up)) in enumerate(halves(transformer).items()):
        state |= {f"transformer.{name}.lora_down.weight": down, f"transformer.{name}.lora_up.weight": up}
        state[f"transformer.{name}.alpha"] = torch.tensor(1.0 + i)
    save_file(state, file)


def with_header(transformer: nn.Module, file: Path) -> None:
    state = {}
    for name, (down, up) in halves(transformer).items():
        state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    settings = {"r": 3, "lora_alpha": 6.0, "alpha_pattern": {"img_mlp.out": 1.5}, "target_modules": list(LAYERS)}
    QwenImage21Pipeline.save_lora_weights(
        file.parent, state, weight_name=file.name, transformer_lora_adapter_metadata=settings
    )


@pytest.mark.parametrize("write", [plain, with_alphas, with_header])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_file_means_what_it_means_to_diffusers(
    write: object, kind: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    loaded, file = QwenImage21Model.load(tiny_pipeline_folder).pipeline, tmp_path / "lora.safetensors"
    write(loaded.transformer, file)  # type: ignore[operator]
    base = QwenImage21Model.load(tiny_pipeline_folder).pipeline.transformer
    before = {name: value.clone() for name, value in base.state_dict().items()}
    denoiser = roles.build(SplitTransformer, base, Model(roles=kind), specialists={"text": lora_files.read(file)})  # type: ignore[arg-type]
    merged = roles.merged_state(denoiser, SPECIALIST)

    if write is with_alphas:  # diffusers reads these for other models alone: the convention by hand
        fused = dict(before)
        for i, (name, (down, up)) in enumerate(halves(loaded.transformer).items()):
            fused[f"{name}.weight"] = before[f"{name}.weight"] + (1 + i) / 3 * up @ down
    else:
        loaded.load_lora_weights(file)
        loaded.fuse_lora()
        loaded.unload_lora_weights()
        fused = loaded.transformer.state_dict()
    assert merged.keys() == fused.keys()
    changed = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert changed == {f"{name}.weight" for name in LAYERS}
    for name in merged:
        torch.testing.assert_close(merged[name], fused[name], rtol=1e-4, atol=1e-4)
    for role in (TEACHER, STUDENT):
        merged = roles.merged_state(denoiser, role)
        assert all(torch.equal(merged[name], before[name]) for name in before)


ADAPTED = (
    *LAYERS,
    *(f"transformer_blocks.1.img_mlp.{layer}" for layer in ("gate_layer", "proj")),
    *("img_in", "txt_in.in_layer", "time_text_embed.timestep_embedder.linear_2", "modulation.1", "norm_out.linear"),
)
ALPHA = 7.0
Halves = dict[str, tuple[Tensor, Tensor]]


def random_halves(transformer: nn.Module, seed: int) -> Halves:
    """Gate and up share their lora_A, as they do where the two are one layer."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in ADAPTED:
        rows, columns = transformer.get_submodule(name).weight.shape
        down = 0.1 * torch.randn(3, columns, generator=generator)
        found[name] = down, 0.1 * torch.randn(rows, 3, generator=generator)
    gate, up = (f"transformer_blocks.1.img_mlp.{layer}" for layer in ("gate_layer", "proj"))
    found[up] = found[gate][0], found[up][1]
    return found


def fused(halves: Halves) -> Halves:
    gate, up = (f"transformer_blocks.1.img_mlp.{layer}" for layer in ("gate_layer", "proj"))
    both = halves[gate][0], torch.cat([halves[gate][1], halves[up][1]])
    return {name: value for name, value in halves.items() if name not in (gate, up)} | {
        "transformer_blocks.1.img_mlp.gate_up": both
    }


def of_diffusers(halves: Halves, file: Path) -> None:
    state = {}
    for name, (down, up) in halves.items():
        state |= {f"{name}.lora_A.weight": down.clone(), f"{name}.lora_B.weight": up}
    settings = {"r": 3, "lora_alpha": ALPHA, "target_modules": list(halves)}
    QwenImage21Pipeline.save_lora_weights(
        file.parent, state, weight_name=file.name, transformer_lora_adapter_metadata=settings
    )


def save(halves: Halves, file: Path, layer: str, down: str, up: str, alpha: bool) -> None:
    """layer: format of a layer's key. A file without alpha has it in B."""
    state = {}
    for name, (a, b) in halves.items():
        key = layer.format(name.replace(".", "_") if "_{}" in layer else name)
        scaled = (1 if alpha else ALPHA / 3) * b
        state |= {f"{key}.{down}": a.clone(), f"{key}.{up}": scaled} | (
            {f"{key}.alpha": torch.tensor(ALPHA)} if alpha else {}
        )
    save_file(state, file)


def of_peft(halves: Halves, file: Path) -> None:
    layers = {f"base_model.model.{name}": value for name, value in halves.items()}
    state = {f"{name}.lora_{half}.weight": value[half == "B"] for name, value in layers.items() for half in "AB"}
    save_file({name: value.clone() for name, value in state.items()}, file)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": ALPHA, "use_rslora": False, "alpha_pattern": {}}
    (file.parent / "adapter_config.json").write_text(json.dumps(config))


def of_kohya(halves: Halves, file: Path) -> None:
    save(fused(halves), file, "lora_unet_{}", "lora_down.weight", "lora_up.weight", True)


def of_comfyui(halves: Halves, file: Path) -> None:
    save(fused(halves), file, "diffusion_model.{}", "lora_down.weight", "lora_up.weight", True)


def of_ai_toolkit(halves: Halves, file: Path) -> None:
    save(fused(halves), file, "diffusion_model.{}", "lora_A.weight", "lora_B.weight", False)


def of_converters(halves: Halves, file: Path) -> None:
    save(halves, file, "diffusion_model.transformer.{}", "lora_A.weight", "lora_B.weight", True)


def of_onetrainer(halves: Halves, file: Path) -> None:
    save(halves, file, "lora_transformer_{}", "lora_down.weight", "lora_up.weight", True)


def of_diffsynth(halves: Halves, file: Path) -> None:
    save(halves, file, "{}", "lora_A.default.weight", "lora_B.default.weight", False)


def of_videox(halves: Halves, file: Path) -> None:
    save(halves, file, "{}", "lora_down", "lora_up", False)


FORMS = (
    *(of_diffusers, of_peft, of_kohya, of_comfyui, of_ai_toolkit, of_converters, of_onetrainer, of_diffsynth),
    of_videox,
)


def latents(pipeline: QwenImage21Pipeline) -> Tensor:
    noise = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    settings = {"height": 64, "width": 64, "latents": noise, "sigmas": [1.0, 0.6], "output_type": "latent"}
    return pipeline("a red house", **settings).images


@pytest.fixture(scope="module")
def stock_latents(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What diffusers draws with two LoRA files, the first alone and both with strengths."""
    pipeline, folder = QwenImage21Model.load(tiny_pipeline_folder).pipeline, tmp_path_factory.mktemp("stock")
    found = {"none": latents(pipeline)}
    for seed, name in enumerate(("first", "second")):
        of_diffusers(random_halves(pipeline.transformer, seed), folder / f"{name}.safetensors")
        pipeline.load_lora_weights(folder / f"{name}.safetensors", adapter_name=name)
    pipeline.set_adapters(["first"], [1.0])
    found["first"] = latents(pipeline)
    pipeline.set_adapters(["first", "second"], [0.5, -0.25])
    found["both"] = latents(pipeline)
    return found


@pytest.mark.parametrize("write", FORMS)
@torch.no_grad()
def test_every_form_of_keys_draws_what_diffusers_draws(
    write: Callable[[Halves, Path], None], stock_latents: dict[str, Tensor], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    pipeline, file = QwenImage21Model.load(tiny_pipeline_folder).pipeline, tmp_path / "adapter_model.safetensors"
    write(random_halves(pipeline.transformer, 0), file)
    roles.merge_loras(SplitTransformer(pipeline.transformer), [(file, 1.0)])
    torch.testing.assert_close(latents(pipeline), stock_latents["first"], atol=1e-4, rtol=1e-4)
    assert (stock_latents["first"] - stock_latents["none"]).abs().max() > 0.01


@pytest.mark.parametrize("source", [None, "edit"])
@torch.no_grad()
def test_a_specialist_of_all_layers_draws_what_diffusers_draws(
    source: str | None, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    """Inside the blocks and outside, over the shared base, whose own roles see nothing of it."""
    loaded, file = QwenImage21Model.load(tiny_pipeline_folder), tmp_path / "lora.safetensors"
    base = QwenImage21Model.load(tiny_pipeline_folder)
    of_diffusers(random_halves(base.transformer, 0), file)
    denoiser = roles.build(SplitTransformer, base.transformer, Model(), specialists={"text": lora_files.read(file)})
    pictures = (Image.new("RGB", (64, 64), "red"),) if source else ()
    request, sampling = Request("a red house", sources=pictures, height=64, width=64), Sampling(2, times=(1.0, 0.6))
    drawn = {
        role: Sampler(base, RoleDenoiser(denoiser, role))([request], sampling).latents[0]
        for role in (SPECIALIST, TEACHER)
    }
    torch.testing.assert_close(drawn[TEACHER], stock_latents_of(loaded, request, sampling), atol=1e-4, rtol=1e-4)
    loaded.pipeline.load_lora_weights(file)
    torch.testing.assert_close(drawn[SPECIALIST], stock_latents_of(loaded, request, sampling), atol=1e-4, rtol=1e-4)
    assert (drawn[SPECIALIST] - drawn[TEACHER]).abs().max() > 0.01


@torch.no_grad()
def test_two_files_are_summed_with_their_strengths(
    stock_latents: dict[str, Tensor], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    pipeline = QwenImage21Model.load(tiny_pipeline_folder).pipeline
    files = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for seed, (write, file) in enumerate(zip((of_kohya, of_comfyui), files, strict=True)):
        write(random_halves(pipeline.transformer, seed), file)
    roles.merge_loras(SplitTransformer(pipeline.transformer), [(files[0], 0.5), (files[1], -0.25)])
    torch.testing.assert_close(latents(pipeline), stock_latents["both"], atol=1e-4, rtol=1e-4)
    assert (stock_latents["both"] - stock_latents["first"]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("diffusion_model.txt_in.text_norm.diff", "full-rank patches"),
        ("diffusion_model.img_in.diff_b", "full-rank patches"),
        ("lora_unet_transformer_blocks_0_attn_to_q.lokr_w1", "LoKr"),
        ("transformer_blocks.0.attn.to_q.hada_w1_a", "LoHa"),
        ("diffusion_model.transformer_blocks.0.attn.to_q.dora_scale", "DoRA"),
        ("base_model.model.transformer_blocks.0.attn.to_q.lora_magnitude_vector.default.weight", "DoRA"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "text encoder"),
        ("text_encoder.model.layers.0.mlp.up_proj.lora_A.weight", "text encoder"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_B.bias", "biases"),
        ("proj_out.weight", "full weights"),
        ("something", "no known form"),
    ],
)
def test_what_is_no_low_rank_update_is_named_by_its_kind(key: str, kind: str, tmp_path: Path) -> None:
    file, down, up = tmp_path / "lora.safetensors", torch.ones(2, 8), torch.ones(8, 2)
    state = {"transformer.x.to_q.lora_A.weight": down, "transformer.x.to_q.lora_B.weight": up}
    save_file(state | {key: torch.ones(8)}, file)
    with pytest.raises(UserError, match=rf"{re.escape(key)} is no part of a LoRA.* \(1 of its 3 keys; .*{kind}"):
        lora_files.read(file)


def test_all_keys_that_do_not_fit_are_counted(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    transformer, file = QwenImage21Model.load(tiny_pipeline_folder).pipeline.transformer, tmp_path / "lora.safetensors"
    names = [f"transformer_blocks.{i}.img_mod.1" for i in range(12)]
    save_file({f"diffusion_model.{name}.diff": torch.ones(3) for name in names}, file)
    with pytest.raises(UserError, match=r"0\.img_mod\.1\.diff, .*\.\.\. \(12 in all\) are no part .*12 of its 12 keys"):
        lora_files.read(file)
    save(dict.fromkeys(names, (torch.ones(2, 8), torch.ones(8, 2))), file, "{}", "lora_A.weight", "lora_B.weight", True)
    with pytest.raises(UserError, match=r"adapts transformer_blocks\.0.*\(12 in all\), which are no linear layers"):
        roles.merge_loras(SplitTransformer(transformer), [(file, 1.0)])


def test_a_layer_that_a_file_adapts_twice_is_refused(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    transformer, file = QwenImage21Model.load(tiny_pipeline_folder).pipeline.transformer, tmp_path / "lora.safetensors"
    halves = random_halves(transformer, 0)
    of_diffsynth(halves, file)
    twice = {f"transformer.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(load_file(file) | twice, file)
    with pytest.raises(UserError, match="has two weights for down of "):
        lora_files.read(file)
    save(halves | fused(halves), file, "{}", "lora_A", "lora_B", True)
    with pytest.raises(UserError, match=r"adapts \S+(gate_layer|proj) twice"):
        roles.merge_loras(SplitTransformer(transformer), [(file, 1.0)])


def test_comfyuis_form_adds_to_its_fused_weights_what_the_adapters_add(tmp_path: Path) -> None:
    """As ComfyUI applies it: alpha / rank B A on gate_up, whose rows are the gate's, then the other layer's."""
    generator, block, file = torch.Generator().manual_seed(0), "transformer_blocks.0", tmp_path / "lora.safetensors"

    def halves() -> tuple[Tensor, Tensor]:
        return torch.randn(2, 5, generator=generator), torch.randn(7, 2, generator=generator)

    gate, up, query, alone = (halves() for _ in range(4))
    adapters = {f"{block}.img_mlp.gate_layer": gate, f"{block}.img_mlp.proj": up, f"{block}.attn.to_q": query}
    adapters["transformer_blocks.1.img_mlp.proj"] = alone
    form, fuses = lora_files.FORMS["comfyui"], SplitTransformer.fused_layers
    lora_files.write(adapters, file, header={}, dtype=torch.float32, form=form, fused=fuses)
    state = load_file(file)
    layers = {name.removesuffix(".alpha") for name in state if name.endswith(".alpha")}
    added = {}
    for layer in layers:
        down, b = state[f"{layer}.lora_down.weight"], state[f"{layer}.lora_up.weight"]
        added[layer.removeprefix("diffusion_model.")] = state[f"{layer}.alpha"] / len(down) * b @ down
    assert len(state) == 3 * len(layers)
    expected = {
        f"{block}.attn.to_q": query[1] @ query[0],
        f"{block}.img_mlp.gate_up": torch.cat([gate[1] @ gate[0], up[1] @ up[0]]),
        "transformer_blocks.1.img_mlp.gate_up": torch.cat([torch.zeros(7, 5), alone[1] @ alone[0]]),
    }
    assert added.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(added[name], value)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_specialist_costs_its_adapter_and_nothing_is_trained_in_it(
    kind: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    transformer = QwenImage21Model.load(tiny_pipeline_folder).pipeline.transformer
    plain(transformer, tmp_path / "lora.safetensors")
    size = sum(value.numel() for value in load_file(tmp_path / "lora.safetensors").values())
    counts, trained = [], []
    for specialists in ({}, {"text": lora_files.read(tmp_path / "lora.safetensors")}):
        base = QwenImage21Model.load(tiny_pipeline_folder).pipeline.transformer
        denoiser = roles.build(SplitTransformer, base, Model(roles=kind), specialists=specialists)  # type: ignore[arg-type]
        counts.append(sum(parameter.numel() for parameter in denoiser.parameters()))
        trained.append({name for name, parameter in denoiser.named_parameters() if parameter.requires_grad})
    assert counts[1] - counts[0] == size
    assert trained[0] == trained[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"text_encoder.x.weight": torch.ones(1)}, r"text_encoder\.x\.weight is no part of a LoRA"),
        (lambda s: dict(list(s.items())[1:]), r"to_\w+(\.0)? needs lora_A \(r, in\) and lora_B"),
        (
            lambda s: {f"transformer.txt_in.lora_{half}.weight": torch.ones(2, 2) for half in "AB"},
            r"LoRA of teacher_text adapts txt_in, which is no linear layer of the base teacher's blocks",
        ),
        (
            lambda s: {name: torch.ones(3, 3) for name in s},
            r"teacher_text is of another model: .*to_\w+(\.0)? is \(\d+",
        ),
        (lambda s: {}, "holds no LoRA weights"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    change: object, message: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    transformer, file = QwenImage21Model.load(tiny_pipeline_folder).pipeline.transformer, tmp_path / "lora.safetensors"
    plain(transformer, file)
    save_file(change(load_file(file)), file)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        roles.build(SplitTransformer, transformer, Model(), specialists={"text": lora_files.read(file)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[" * 10_000, "not valid JSON"),
        ('{"transformer.lora_alpha": "8"}', "lora_alpha: must be a valid number"),
        ('{"transformer.lora_alpha": [8]}', "lora_alpha: must be a valid number"),
        ('{"transformer.lora_alpha": NaN}', "lora_alpha: must be a finite number"),
        (
            '{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"([a-z_.]+)+!": 1}}',
            "none of a layer's name",
        ),
        ('{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {".*.*.*.*.*x": 1}}', "none of a layer's name"),
        ('{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"(to_q": 1}}', "no regular expression"),
    ],
)
def test_a_header_that_says_nothing_of_use_is_named(
    settings: str, message: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    down, up = torch.ones(2, 8), torch.ones(8, 2)
    state = {"transformer.x.to_q.lora_A.weight": down, "transformer.x.to_q.lora_B.weight": up}
    save_file(state, tmp_path / "lora.safetensors", {lora_files.METADATA: settings})
    with pytest.raises(UserError, match=message):
        lora_files.read(tmp_path / "lora.safetensors")
    layered = '{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"x\\\\.to_(q|k)$": 2}}'
    save_file(state, tmp_path / "lora.safetensors", {lora_files.METADATA: layered})
    assert lora_files.read(tmp_path / "lora.safetensors")["x.to_q"].scaling == 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"transformer.x.lora_A.weight": torch.full((2, 8), float("nan"))},
        lambda s: s | {"transformer.x.lora_B.weight": torch.full((8, 2), float("inf"))},
        lambda s: s | {"transformer.x.alpha": torch.tensor(float("nan"))},
        lambda s: s | {"transformer.x.lora_A.weight": torch.ones(2, 8, dtype=torch.int8)},
        lambda s: {"transformer.x.lora_A.weight": torch.ones(0, 8), "transformer.x.lora_B.weight": torch.ones(8, 0)},
    ],
)
def test_an_adapter_of_no_numbers_is_refused(change: object, tmp_path: Path) -> None:
    state = {"transformer.x.lora_A.weight": torch.ones(2, 8), "transformer.x.lora_B.weight": torch.ones(8, 2)}
    save_file(change(state), tmp_path / "lora.safetensors")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"lora\.safetensors: .*(no finite numbers|missing or odd)"):
        lora_files.read(tmp_path / "lora.safetensors")


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no LoRA file at .*nothing"):
        lora_files.read(tmp_path / "nothing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot read the LoRA file"):
        lora_files.read(tmp_path / "broken.safetensors")
