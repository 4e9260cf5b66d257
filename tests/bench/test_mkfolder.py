"""Folders with random weights: their families read them, at the sizes of the public models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from workbench.backbones import families
from workbench.bench import mkfolder

EDITS, GENERATES = "QwenImageEditPlusPipeline", "QwenImagePipeline"


@pytest.fixture(scope="module")
def editing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("editing") / "model"
    assert mkfolder.main([str(folder), f"pipeline={EDITS}", "text_heads=2"]) == 0
    return folder


def test_a_folder_of_two_streams_encodes_and_is_sharded(editing: Path) -> None:
    model = families.load(str(editing))
    source = Image.new("RGB", (64, 64), "red")
    text, edit = model.encode_prompts(["a red fox", "make it blue"], [[], [source]])
    assert text.embeddings.shape[1] == edit.embeddings.shape[1] == model.embedding_dim == 256
    (reference,) = edit.references
    assert reference.num_slots == families.measured(EDITS).text_slots(4, 4)
    pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    latents = model.encode_images(pixels)
    assert latents.shape == (1, 16, 64) and model.decode_latents(latents, 4, 4).shape == pixels.shape
    assert len([*(editing / "transformer").glob("*.safetensors")]) > 1


def test_linked_weights_are_those_of_the_other_folder(
    editing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"pipeline={GENERATES}", f"links={editing}"]
    assert mkfolder.main([str(tmp_path / "t2i"), *options, "text_heads=2"]) == 0
    ours, theirs = (families.load(str(folder), text_encoder=False) for folder in (tmp_path / "t2i", editing))
    state, expected = ours.transformer.state_dict(), theirs.transformer.state_dict()
    assert type(ours) is type(theirs) and ours.architecture != theirs.architecture
    assert all(torch.equal(state[name], values) for name, values in expected.items())
    assert mkfolder.main([str(tmp_path / "other"), *options, "blocks=3"]) == 2
    assert "its transformer is of other sizes" in capsys.readouterr().err and not (tmp_path / "other").exists()


@pytest.mark.parametrize(("pipeline", "billions"), [("QwenImage21Pipeline", 7.1), (GENERATES, 20.4), (EDITS, 20.4)])
def test_full_size_is_that_of_the_public_model(pipeline: str, billions: float, tmp_path: Path) -> None:
    options = mkfolder.read([f"pipeline={pipeline}", "size=full"])
    networks = options.measured.write_folder(tmp_path, families.SHIPPED["tiny"], pipeline, options)
    found = sum(parameter.numel() for parameter in networks["transformer"].parameters())
    assert round(found / 1e9, 1) == billions
