"""Every arm and every draw of every study is a recipe that could be run, and differs in what it says it differs in."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_fakes import base_recipe

from datamodules.openmoji import CATEGORIES
from studies import data_composition, guidance_sections, study, task_mixture, teacher_guidance
from studies.catalogue import KNOWN
from studies.reading import load_study
from workbench.common.errors import UserError
from workbench.method import guidance
from workbench.recipe import lambda_tables
from workbench.recipe.config import Recipe

BASE = base_recipe()
NAMES = [f"{task}/{name}" for task, names in CATEGORIES.items() for name in names]


@cache
def recipe_of(name: str, arm: str) -> Recipe:
    """An arm of a study that ships, over BASE."""
    return study.vary(BASE, KNOWN[name].ARMS[arm])


def table(recipe: Recipe) -> dict[str, list[list[float]]]:
    """lambda of every category, as the distiller resolves it."""
    specialists = list(recipe.teachers.specialists)
    tables = lambda_tables.tables(recipe.guidance, num_steps=recipe.dmd.student_steps, specialists=specialists)
    teachers = ["base", *specialists]
    found = guidance.lambda_table(tables, NAMES, num_steps=recipe.dmd.student_steps, teachers=teachers)
    return dict(zip(NAMES, found.tolist(), strict=True))


@pytest.mark.parametrize(("name", "arm"), [(name, arm) for name, study in KNOWN.items() for arm in study.ARMS])
def test_every_arm_is_a_recipe_with_resolvable_guidance(name: str, arm: str) -> None:
    recipe = recipe_of(name, arm)
    assert set(table(recipe)) == set(NAMES)
    assert recipe.evaluation == BASE.evaluation, "arms that are scored differently cannot be compared"


@pytest.mark.parametrize("name", KNOWN)
def test_arms_differ_from_each_other(name: str) -> None:
    recipes = [recipe_of(name, arm) for arm in KNOWN[name].ARMS]
    assert all(a != b for i, a in enumerate(recipes) for b in recipes[:i])


class Drawing(optuna.trial.FixedTrial):
    """A trial whose draws hypothesis makes."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__({})
        self.data = data

    def _suggest(self, name, distribution):  # type: ignore[no-untyped-def]
        match distribution:
            case optuna.distributions.CategoricalDistribution():
                value = self.data.draw(st.sampled_from(distribution.choices), name)
            case optuna.distributions.IntDistribution():
                value = self.data.draw(st.integers(distribution.low, distribution.high), name)
            case _ if distribution.step is not None:
                num = round((distribution.high - distribution.low) / distribution.step)
                value = distribution.low + distribution.step * self.data.draw(st.integers(0, num), name)
            case _:
                value = self.data.draw(st.floats(distribution.low, distribution.high), name)
        self._params = {name: value}
        return super()._suggest(name, distribution)


WITHOUT_SPACE = ("fidelity", "frozen-weights", "known-answers", "method", "screening")


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in WITHOUT_SPACE])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_every_draw_is_a_recipe(name: str, data: st.DataObject) -> None:
    recipe = KNOWN[name].suggest(Drawing(data), BASE)
    assert set(table(recipe)) == set(NAMES)
    assert recipe.evaluation == BASE.evaluation and recipe.seed == BASE.seed


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_guidance_can_be_drawn_for_any_number_of_steps(steps: int) -> None:
    base = base_recipe(f"dmd.student_steps={steps}")
    drawn = {"guidance": "switch", "late_weight": 0.7, "early_weight": 0.2, "switch_step": 1, "routed": True}
    assert len(table(teacher_guidance.suggest(optuna.trial.FixedTrial(drawn), base))["t2i/text"]) == steps


def test_mixed_arms_use_the_specialists_alike_and_only_their_own() -> None:
    doses = {}
    for arm in teacher_guidance.ARMS:
        lambdas = table(recipe_of("teacher-guidance", arm))
        doses[arm] = sum(1 - row[0] for row in lambdas["t2i/text"]) / 4
        if "unrouted" not in arm:
            assert all(row == [1, 0, 0, 0] for row in lambdas["t2i/landscape"])
            assert all(row[1] == row[3] == 0 for row in lambdas["t2i/text"])
    for length in ("", "-long", "-hot"):
        assert doses.pop(f"base-alone{length}") == 0 and doses.pop(f"specialist-alone{length}") == 1
    assert doses.pop("specialist-alone-unrouted") == pytest.approx(1)
    for arm, dose in {"mix-25": 0.25, "mix-75": 0.75, "switch-at-25": 0.75, "switch-at-75": 0.25}.items():
        assert doses.pop(arm) == dose
    assert len(doses) == 10 and doses == pytest.approx(dict.fromkeys(doses, 0.5), abs=1e-6)
    step_wise, base_late = (table(recipe_of("teacher-guidance", arm)) for arm in ("step-wise", "base-late"))
    assert step_wise["edit/style"] == base_late["edit/style"][::-1]
    assert step_wise["edit/style"][0] == [1, 0, 0, 0] and step_wise["edit/style"][-1] == [0, 0, 0, 1]


def test_the_arms_of_a_two_step_student_keep_their_doses() -> None:
    base = base_recipe("dmd.student_steps=2")
    for arm, share in {"switch-at-25": 0.75, "step-wise": 0.5, "switch-at-75": 0.25, "alternating": 0.5}.items():
        rows = table(study.vary(base, teacher_guidance.ARMS[arm]))["t2i/text"]
        assert sum(row[2] for row in rows) / 2 == pytest.approx(share), arm


def test_arms_of_the_guidance_study_are_as_long_and_as_hot_as_they_say() -> None:
    for arm in teacher_guidance.ARMS:
        recipe = recipe_of("teacher-guidance", arm)
        long, hot = arm.endswith(("-long", "-hot")), arm.endswith("-hot")
        assert recipe.trainer.updates == (2000 if long else BASE.trainer.updates)
        assert recipe.optim.student_lr == pytest.approx(BASE.optim.student_lr * (2 if hot else 1))
        assert recipe.optim.fake_lr == pytest.approx(BASE.optim.fake_lr * (2 if hot else 1))
        assert recipe.dmd.fake_per_step == arm.endswith("-per-step")


def test_compositions_hold_iterations_or_passes_fixed() -> None:
    passes, prompts = {}, {}
    base = replace(BASE, trainer=replace(BASE.trainer, updates=7))
    for arm, differences in data_composition.ARMS.items():
        recipe = study.vary(base, differences)
        shares = recipe.mixture.categories["t2i"]
        assert recipe.mixture.tasks == {"t2i": 1.0} and sum(shares.values()) == pytest.approx(1)
        passes[arm] = {
            name: share * recipe.trainer.updates / recipe.mixture.prompt_share for name, share in shares.items()
        }
        prompts[arm] = len(shares) * recipe.mixture.prompt_share
    longer = ("E1-x2", "E1-x3", "E4-passes", "E5-passes", "E4-small", "E5-small")
    assert all(sum(of.values()) == pytest.approx(7) for arm, of in passes.items() if arm not in longer)
    for arm in ("E1-landscape", "E4-passes", "E5-passes", "E4-small", "E5-small"):
        assert list(passes[arm].values()) == pytest.approx([7] * len(passes[arm]), rel=1e-6)
    assert passes["E1-x2"] == {"landscape": 14} and passes["E1-x3"] == {"landscape": 21}
    assert [prompts[arm] for arm in ("E1-landscape", "E1-x3", "E4-small", "E5-small")] == pytest.approx([1] * 4)
    found = [recipe_of("data-composition", arm).mixture for arm in data_composition.ARMS]
    text = [mixture.categories["t2i"].get("text", 0) for mixture in found]
    assert sorted({round(share, 2) for share in text}) == [0, 0.1, 0.25, 0.33, 0.5, 0.75, 1]
    assert [mixture.prompts for mixture in found][-4:] == [50, 200, 800, 3200]


def test_ratios_are_those_of_the_paper_and_beyond() -> None:
    recipes = [recipe_of("task-mixture", arm) for arm in task_mixture.ARMS]
    shares = [recipe.mixture.tasks["t2i"] for recipe in recipes]
    assert shares == [1, 0.9, 0.7, 0.5, 0.3, 0.1, 0, 1, 0.9, 0.7, 0.3]
    step_wise = table(study.vary(BASE, {"guidance": guidance_sections.STEP_WISE}))
    assert all(table(recipe) == step_wise for recipe in recipes)


@pytest.mark.parametrize("name", KNOWN)
def test_a_study_that_ships_may_be_copied_as_a_file(name: str) -> None:
    shipped = load_study(Path(study.__file__).with_name(f"{name.replace('-', '_')}.py"))
    assert (shipped.ARMS, shipped.OBJECTIVES, shipped.PRUNES) == (
        KNOWN[name].ARMS, KNOWN[name].OBJECTIVES, KNOWN[name].PRUNES,
    )  # fmt: skip


def test_budgets_are_those_of_one_to_eight_evaluations() -> None:
    arms = KNOWN["student-budget"].ARMS.values()
    assert [study.vary(BASE, differences).dmd.student_steps for differences in arms] == [4, 1, 2, 8]


def test_an_arm_may_multiply_the_bases_number() -> None:
    base = replace(BASE, trainer=replace(BASE.trainer, updates=72))
    assert study.vary(base, {"trainer": {"updates": study.Times(1.5)}}).trainer.updates == 108
    slower = study.vary(base, {"optim": {"fake_lr": study.Times(0.25)}})
    assert slower.optim.fake_lr == pytest.approx(base.optim.fake_lr / 4)
    with pytest.raises(UserError, match=r"model.folder holds 'tiny', which is not a number"):
        study.vary(base, {"model": {"folder": study.Times(2)}})
    with pytest.raises(UserError, match="unknown key trainer.updatez.*did you mean 'updates'"):
        study.vary(base, {"trainer": {"updatez": study.Times(2)}})
