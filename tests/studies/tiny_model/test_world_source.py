"""Chunks of the world that are kept take turns, and what an update sees depends on its number alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from studies.tiny_model.world_source import WorldSource, world_sources
from workbench.recipe import reading
from workbench.recipe.config import Recipe

EVERY, COUNT = 2, 3


@pytest.fixture
def recipe(tiny_pipeline_folder: Path) -> Recipe:
    samples = f"data.samples={{t2i: {{text: {COUNT}}}, edit: {{object: {COUNT}}}}}"
    words = [samples, "data.num_workers=0", "pretrain.steps=10", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    return reading.load("studies/recipes/teacher.yaml", [f"model.folder={tiny_pipeline_folder}", *words])


def chunks(source: WorldSource, step: int) -> set[int]:
    """Those that an update's samples are of, by their names."""
    return {int(source.key(i, step).rsplit("-", 1)[1]) // COUNT for i in range(2 * COUNT)}


def test_the_newest_chunks_take_turns(recipe: Recipe) -> None:
    alone, _ = world_sources(recipe, EVERY)
    kept, _ = world_sources(recipe, EVERY, kept=3)
    assert [chunks(alone, step) for step in range(8)] == [{0}, {0}, {1}, {1}, {2}, {2}, {3}, {3}]
    assert [chunks(kept, step) for step in range(12)] == [
        {0}, {0}, {1}, {0}, {1}, {0}, {3}, {2}, {2}, {4}, {4}, {3},
    ]  # fmt: skip
    for step in (0, 2, 3, 4, 5, 6, 8, 9):
        (chunk,) = chunks(kept, step)
        for geometry in (0, 1):
            ours, theirs = kept.held(geometry, step), alone.held(geometry, EVERY * chunk)
            assert torch.equal(ours.latents, theirs.latents), step
            width = theirs.token_ids.shape[1]
            assert torch.equal(ours.token_ids[:, :width], theirs.token_ids) and not ours.token_ids[:, width:].any()
    assert len({kept.held(0, step).token_ids.shape for step in (6, 7, 8)}) == 1, "one width is captured once"


def test_a_run_that_goes_on_sees_what_it_would_have_seen(recipe: Recipe) -> None:
    straight, _ = world_sources(recipe, EVERY, kept=3)
    for step in range(7):
        straight.held(0, step)
    resumed, _ = world_sources(recipe, EVERY, kept=3)
    for step in (7, 8):
        for geometry in (0, 1):
            left, right = resumed.held(geometry, step), straight.held(geometry, step)
            assert torch.equal(left.latents, right.latents) and torch.equal(left.lengths, right.lengths)
