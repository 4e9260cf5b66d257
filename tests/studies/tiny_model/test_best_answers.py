"""A specialist goes on, on the best of its own answers: chosen by the judge named, kept, and started from itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from studies.tiny_model import best_answers as module
from studies.tiny_model.best_answers import BEST, MEAN, Choice, best_answers
from studies.tiny_model.curation import AS_IT_IS
from workbench.backbones import families, lora_files, roles
from workbench.backbones.load import trained_specialist
from workbench.common.errors import UserError
from workbench.evaluation.judges import second
from workbench.evaluation.judges.judge import LOCAL, Judged
from workbench.evaluation.judges.local import LocalJudge
from workbench.recipe import reading
from workbench.recipe.config import Recipe
from workbench.runs.inputs import hashes_of
from workbench.sampling.sampler import Sampler

ADAPTER = families.SHIPPED["tiny"] / "editing.safetensors"
CAPTIONS = {"t2i": {"text": 3}, "edit": {"object": 2}}


def recipe_of(*words: str) -> Recipe:
    given = [f"data.samples={CAPTIONS}", "data.num_workers=0", "mixture.tasks={t2i: 0.5, edit: 0.5}"]
    given += ["trainer.accelerator=cpu", "trainer.precision=32-true", "pretrain.compile=false"]
    given += ["evaluation.teacher_steps=2", *words]
    return reading.load("studies/recipes/specialist.yaml", given)


@pytest.fixture
def choice(tmp_path: Path) -> Choice:
    return Choice(3, second.ASSET, ADAPTER, AS_IT_IS, tmp_path / "chosen.safetensors")


def test_targets_are_the_answers_that_the_judge_finds_best(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[torch.Tensor]] = []
    judged: list[list[float]] = []
    sample, judge = Sampler.sample, LocalJudge.judge

    def noting(self: Sampler, *of: object) -> object:
        found = sample(self, *of)  # type: ignore[arg-type]
        drawn.append(found.latents)
        return found

    def judging(self: LocalJudge, *of: object) -> Judged:
        found = judge(self, *of)  # type: ignore[arg-type]
        judged.append([one.score for one in found.scores[LOCAL]])  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(Sampler, "sample", noting)
    monkeypatch.setattr(LocalJudge, "judge", judging)
    source, pictured, scores = best_answers(recipe_of(), choice)
    assert [len(one) for one in drawn] == [3, 3, 3, 2, 2, 2], "three answers to each of 3 captions and 2 edits"
    for geometry, of in enumerate((slice(0, 3), slice(3, 6))):
        held = source.held(geometry, 7)
        for row in range(len(held.latents)):
            best = int(np.argmax([scores_of[row] for scores_of in judged[of]]))
            assert torch.equal(held.latents[row], drawn[of][best][row].half())
            others = [one[row].half() for at, one in enumerate(drawn[of]) if at != best]
            assert all(not torch.equal(held.latents[row], other) for other in others)
        assert len(held.token_ids) == len(held.latents) + 1
    assert source.held(1, 0).references is not None and source.text(0) == pictured.text(0)
    every = np.concatenate([np.array(judged[of]).T for of in (slice(0, 3), slice(3, 6))])
    assert scores == {MEAN: pytest.approx(every.mean()), BEST: pytest.approx(every.max(axis=1).mean())}
    assert scores[BEST] > scores[MEAN]


def test_what_was_chosen_is_taken_up_until_what_it_depends_on_changes(
    choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("data.samples={t2i: {text: 2}}", "mixture.tasks={t2i: 1.0}")
    source, _, scores = best_answers(recipe, choice)
    calls: list[object] = []
    draw = module._chosen
    monkeypatch.setattr(module, "_chosen", lambda *of: calls.append(of) or draw(*of))  # type: ignore[func-returns-value]
    again, _, same = best_answers(recipe, choice)
    assert not calls and same == scores and torch.equal(again.held(0, 0).latents, source.held(0, 0).latents)
    other = replace(choice, adapter=families.SHIPPED["tiny"] / "portrait.safetensors")
    changed, *_ = best_answers(recipe, other)
    assert len(calls) == 1 and not torch.equal(changed.held(0, 0).latents, source.held(0, 0).latents)


def test_an_adapter_goes_on_from_a_file() -> None:
    """The start computes what the file does over the base; one of a larger rank does not fit."""
    model = families.load("tiny")
    recipe = recipe_of("pretrain.lora_start=tiny/editing.safetensors")
    denoiser = trained_specialist(model, recipe)
    started = roles.merged_state(denoiser, roles.TEACHER)
    base = families.load("tiny").transformer.state_dict()
    adapter = lora_files.read(ADAPTER)
    for name, layer in adapter.items():
        wanted = base[f"{name}.weight"] + layer.scaling * layer.up @ layer.down
        torch.testing.assert_close(started[f"{name}.weight"], wanted, rtol=1e-5, atol=1e-6)
    assert "pretrain.lora_start" in hashes_of(recipe, None, "pretrain"), "another file is another run"
    with pytest.raises(UserError, match=r"pretrain.lora_start has adapters of rank 16: set pretrain.lora_rank=16"):
        trained_specialist(
            families.load("tiny"), recipe_of("pretrain.lora_rank=4", "pretrain.lora_start=tiny/editing.safetensors")
        )
    with pytest.raises(UserError, match="set pretrain.lora_rank too"):
        recipe_of("pretrain.lora_rank=0", "pretrain.text_encoder_lr=1e-4", "pretrain.lora_start=a.safetensors")
