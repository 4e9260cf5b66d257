"""LoRA files: a file means to us what it means to diffusers, and costs no second copy of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import QwenImage21Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workbench.backbones import lora_files, roles
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import STUDENT, TEACHER
from workbench.common.errors import UserError
from workbench.recipe.config import Model

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
