"""Every kind of entry is drawn as the stock pipeline draws it, its LoRA files loaded by `load_lora_weights`. Which key
forms of files are read is under test in tests/backbones/test_lora_files.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from stock_student import noise

from studies.ranking.students import read
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.evaluation.models import FolderUnderTest
from workbench.sampling.sampler import NOISE_STREAM, Request

LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.out", "transformer_blocks.0.attn.to_out.0")
REQUEST = Request("a red house", seed=2, height=64, width=64)


@pytest.fixture(scope="module")
def base(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose scheduler shifts by size, and two LoRA files of it."""
    folder = tmp_path_factory.mktemp("entries") / "base"
    folder.mkdir()
    for item in tiny_pipeline_folder.iterdir():
        if item.name != "scheduler":
            (folder / item.name).symlink_to(item)
    (folder / "scheduler").mkdir()
    config = json.loads((tiny_pipeline_folder / "scheduler/scheduler_config.json").read_text())
    config |= {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "shift_terminal": 0.05}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    transformer = QwenImage21Model.load(folder).transformer
    for number, name in enumerate(("one", "two")):
        state = {}
        for layer in LAYERS:
            linear = transformer.get_submodule(layer)
            draw = torch.Generator().manual_seed(number)
            state[f"transformer.{layer}.lora_A.weight"] = torch.randn(2, linear.in_features, generator=draw)
            state[f"transformer.{layer}.lora_B.weight"] = torch.randn(linear.out_features, 2, generator=draw) * 0.3
        save_file(state, folder.parent / f"{name}.safetensors")
    return folder


ENTRIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, float]]] = {
    "steps": ({"steps": 3}, {"num_inference_steps": 3}, {}),
    "sigmas": ({"sigmas": [1.0, 0.7, 0.4]}, {"sigmas": [1.0, 0.7, 0.4]}, {}),
    "guided": ({"steps": 2, "guidance": 1.5}, {"num_inference_steps": 2, "true_cfg_scale": 1.5}, {}),
    "one LoRA": ({"lora": "one.safetensors", "steps": 2}, {"num_inference_steps": 2}, {"one": 1.0}),
    "strength": ({"lora": "one.safetensors:0.4", "sigmas": [1.0, 0.5]}, {"sigmas": [1.0, 0.5]}, {"one": 0.4}),
    "two LoRAs": (
        {"lora": ["one.safetensors:0.5", "two.safetensors:-0.8"], "steps": 2},
        {"num_inference_steps": 2},
        {"one": 0.5, "two": -0.8},
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
@torch.no_grad()
def test_an_entry_is_drawn_as_by_the_stock_pipeline(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    entry, settings, adapters = ENTRIES[name]
    students = {"plain": {"folder": "base", "steps": 2}, "it": {"folder": "base", **entry}}
    (tmp_path / "students.yaml").write_text(yaml.safe_dump({"students": students}))
    student = read(tmp_path / "students.yaml")[0].students["it"]
    tested = FolderUnderTest("base", 64, 1, device="cpu", loras=student.loras)
    (ours,) = tested.sampler()([REQUEST], student.sampling()).latents

    stock = QwenImage21Model.load(base)
    start = noise(stock, REQUEST, NOISE_STREAM)
    for file in adapters:
        stock.pipeline.load_lora_weights(base.parent / f"{file}.safetensors", adapter_name=file)
    if adapters:
        stock.pipeline.set_adapters(list(adapters), list(adapters.values()))
    negative = {"negative_prompt": ""} if "true_cfg_scale" in settings else {}
    size = {"height": 64, "width": 64, "output_resolution": 64, "output_type": "latent"}
    theirs = stock.pipeline(REQUEST.prompt, latents=start, **settings, **negative, **size).images[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
