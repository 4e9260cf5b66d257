"""A teacher is trained by flow matching, its text encoder with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_runs import in_folder

from workbench.backbones.qwen_image_21 import text_encoder
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.prompts import PromptTokenizer
from workbench.batch import CaptionStep
from workbench.common.errors import UserError
from workbench.modules import pretrainer
from workbench.modules.pretrainer import Pretrainer
from workbench.recipe.config import Recipe
from workbench.runs.runner import pretrain


def test_pretraining_moves_transformer_and_text_encoder(recipe: Recipe, tmp_path: Path) -> None:
    folder = pretrain(in_folder(recipe, tmp_path / "pretrain"))
    before, after = (QwenImage21Model.load(where).pipeline for where in (Path(recipe.model.folder), folder))
    for part in ("transformer", "text_encoder"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        moved = [name for name in old if not torch.equal(old[name], new[name])]
        assert len(moved) > len(old) // 2, part
    assert any("visual" in name for name in moved)


def test_replayed_pretraining_too_ends_after_too_many_skipped_steps(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replayed(self: Pretrainer, data: CaptionStep, _: int) -> None:
        self._replay(data, [self._draw(batch) for batch in data.batches])
        self.num_updates += 1

    monkeypatch.setattr(pretrainer, "GraphedStep", lambda step: step)
    monkeypatch.setattr(Pretrainer, "_captured_update", lambda *_: torch.tensor(math.nan))
    monkeypatch.setattr(Pretrainer, "training_step", replayed)
    with pytest.raises(UserError, match="gradient of the teacher at update 1 .* 2 such steps are too many"):
        pretrain(in_folder(recipe, tmp_path / "pretrain", max_skipped_updates=1))


def test_the_trained_text_encoder_is_the_pipelines_own(recipe: Recipe) -> None:
    """What pretraining computes is what the pipeline will feed the transformer."""
    import numpy as np

    model = QwenImage21Model.load(Path(recipe.model.folder))
    tokenizer = PromptTokenizer(model.pipeline)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for text, image in (("a red fox", None), ("", None), ("make it green", Image.fromarray(pixels))):
        (expected,) = model.encode_prompts([text], [[image]] if image else None)
        ids = tokenizer(text, 4 if image else 0)
        slots = text_encoder.ImageSlots(tokenizer.first_slot(ids), 2, 2) if image else None
        images = torch.from_numpy(pixels)[None] if image else None
        hidden = text_encoder.embed(model.pipeline.text_encoder, torch.tensor([ids]), images, slots)
        torch.testing.assert_close(hidden[0, tokenizer.num_system_tokens :], expected.embeddings, atol=1e-5, rtol=1e-5)
