"""The shipped judge on the shipped world: outcomes that anyone would expect, held."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from studies.tiny_model.corruptions import CORRUPTIONS
from workbench.evaluation.answers import Answers, judge_into
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.measures.answer_measures import residual_noise
from workbench.evaluation.measuring import Measuring

PER_CATEGORY = 8


@cache
def judge() -> LocalJudge:
    return LocalJudge(device="cpu")


@cache
def cases(task: str) -> list[Case]:
    return world_cases(task, "report", PER_CATEGORY)  # type: ignore[arg-type]


def targets(of: list[Case]) -> list[np.ndarray]:
    return [case.target for case in of if case.target is not None]


def judged(of: list[Case], images: list[np.ndarray]) -> Answers:
    answers = Answers()
    with Measuring() as measuring:
        judge_into(answers, of, images, 0, [judge()], measuring=measuring)
    return answers


@cache
def of_targets(task: str) -> Answers:
    """The answers that exact targets get."""
    return judged(cases(task), targets(cases(task)))


def mean(answers: Answers, axis: str) -> float:
    values = [getattr(row.by_local, axis) for row in answers.rows]
    return float(np.mean([value for value in values if value is not None]))


def corrupted(images: list[np.ndarray], name: str, severity: float) -> list[np.ndarray]:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(0)
    damaged = CORRUPTIONS[name](pixels, torch.full((len(images),), severity), generator)
    return list((damaged * 255).round().byte().permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_the_same_images_scored_twice_give_the_same_numbers(task: str) -> None:
    first, second = of_targets(task), judged(cases(task), targets(cases(task)))
    assert first.rows == second.rows
    assert np.array_equal(np.stack(first.features), np.stack(second.features))


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_exact_targets_score_near_the_top(task: str) -> None:
    assert mean(of_targets(task), "score") > 4.7


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_shuffled_prompts_collapse_compliance_and_leave_quality_alone(task: str) -> None:
    right = of_targets(task)
    # Images move by a few places, so most still answer a prompt of the same category.
    shuffled = judged(cases(task), targets(cases(task)[3:] + cases(task)[:3]))
    assert mean(right, "compliance") > 0.95 and mean(shuffled, "compliance") < 0.5
    assert mean(shuffled, "score") < mean(right, "score") - 1.5
    assert mean(shuffled, "quality") == pytest.approx(mean(right, "quality"), abs=1e-5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_real_renders_beat_corrupted_ones_and_slightly_corrupted_ones_badly_corrupted(name: str) -> None:
    of = cases("t2i")
    by_severity = [of_targets("t2i"), *(judged(of, corrupted(targets(of), name, s)) for s in (0.5, 1.0))]
    qualities, scores = ([mean(answers, axis) for answers in by_severity] for axis in ("quality", "score"))
    assert qualities[0] > qualities[1] + 0.1 and qualities[1] > qualities[2] + 0.1
    assert scores[0] > scores[1] > scores[2]


def test_a_model_that_returns_its_source_fails_edits_and_keeps_what_was_to_be_kept() -> None:
    """Scored from the source as it was drawn, its defects included: no autoencoder in between."""
    of = cases("edit")
    copied = judged(of, [case.source for case in of if case.source is not None])
    right = of_targets("edit")
    assert mean(copied, "compliance") < 0.1 and mean(copied, "score") < 1.5
    kept = [
        (a.by_local.kept, b.by_local.kept)
        for a, b in zip(copied.rows, right.rows, strict=True)
        # A defect hides what is kept, and a style or a scene around it changes every pixel.
        if a.category in ("scene", "object", "text", "identity")
    ]
    values = np.array([pair for pair in kept if None not in pair], float)
    assert len(values) > 20 and values[:, 0].mean() > 0.9


@pytest.mark.parametrize("name", ["residue", "noise"])
def test_residual_noise_rises_with_noise_and_is_near_none_in_renders(name: str) -> None:
    images = targets(cases("t2i"))
    levels = [np.mean([residual_noise(i) for i in corrupted(images, name, s)]) for s in (0.0, 0.1, 0.3, 1.0)]
    assert levels[0] < 1 and all(b > 2 * a for a, b in zip(levels, levels[1:], strict=False))
    if name == "noise":
        assert levels[1] == pytest.approx(0.1 * 0.25 * 255, rel=0.1)


def test_words_are_right_in_targets_and_wrong_under_another_prompt() -> None:
    of = [case for case in cases("t2i") if case.category == "text"]
    right, moved = judged(of, targets(of)), judged(of, targets(of[1:] + of[:1]))
    words = [[row.measures.word for row in answers.rows if row.measures.word is not None] for answers in (right, moved)]
    assert len(words[0]) >= 4 and np.mean(words[0]) > 0.9 and np.mean(words[1]) < 0.2
