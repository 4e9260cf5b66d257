"""Predictions against measurements, and the spread of arms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from study_fakes import World, base_recipe, conduct

from studies.analysis import expectations, spread
from studies.analysis.page import report_study, study_values
from studies.catalogue import KNOWN
from studies.machine.definition import definition_changes, definition_of
from studies.reading import StudyFile, study_of
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe


def test_a_ratio_of_variances_is_covered_by_its_interval_whatever_line_runs_follow() -> None:
    generator, covered = np.random.default_rng(0), 0
    for _ in range(400):
        arms = []
        for sd in (2.0, 1.0):
            line = generator.standard_normal(3) + np.outer(np.arange(8), generator.standard_normal(3))
            arms.append(expectations.wandering(line + sd * generator.standard_normal((8, 3))))
        ratio = expectations.variance_ratio(*arms)
        assert ratio is not None
        covered += ratio.low <= 4 <= ratio.high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("num", "runs"), [(27, 2), (13, 3)])
def test_so_is_one_of_averaged_students_whose_neighbouring_milestones_are_alike(num: int, runs: int) -> None:
    generator, covered, alike = np.random.default_rng(0), 0, 0.7
    for _ in range(600):
        arms = []
        for sd in (2.0, 1.0):
            scores = sd * generator.standard_normal((num + 30, runs))
            for at in range(1, len(scores)):
                scores[at] = alike * scores[at - 1] + np.sqrt(1 - alike**2) * scores[at]
            arms.append(expectations.wandering(scores[30:]))
        ratio = expectations.variance_ratio(*arms)
        assert ratio is not None
        covered += ratio.low <= 4 <= ratio.high
    assert 0.92 <= covered / 600 <= 0.98, "0.81 and 0.88 if they counted as so many independent ones"


def test_the_spread_of_arms_is_covered_and_one_of_noise_alone_has_no_reliability() -> None:
    generator, covered, f = np.random.default_rng(0), 0, []
    for _ in range(400):
        means = 3 * generator.standard_normal((12, 1))
        found = spread.mean_spread((means + generator.standard_normal((12, 3))).tolist())
        nothing = spread.mean_spread(generator.standard_normal((12, 3)).tolist())
        assert found is not None and nothing is not None
        covered += found.low <= np.sqrt(1 + 3 * 9) <= found.high
        f.append(nothing.ratio**2)
    assert 0.92 <= covered / 400 <= 0.98
    assert np.mean(f) == pytest.approx(24 / 22, rel=0.06), "mean of F(11, 24)"
    assert spread.mean_spread([[1.0, 2.0], [1.0, 3.0]]) is None


def test_known_answers_stand_on_the_page(tmp_path: Path) -> None:
    def effect(recipe: Recipe, bench: str) -> float:
        return -0.5 * (recipe.teachers.cfg_scale == 1) + 0.5 * (recipe.dmd.student_steps == 1)

    def trend(recipe: Recipe) -> list[float]:
        wild = 2.0 if recipe.optim.ema_decay == 0 else 0.02
        return list(wild * np.random.default_rng(recipe.seed).standard_normal(12))

    world = World(effect=effect, trend=trend, seed_sd=0.02)
    conduct(KNOWN["known-answers"], tmp_path, world, seeds=(0, 1, 2))
    values = study_values(tmp_path)
    outcomes = {row["arm"]: row["outcome"] for row in values["expectations"]}
    assert outcomes["no-cfg"] == outcomes["no-average"] == "as expected"
    assert outcomes["one-step"] == "opposite" and outcomes["slow-fake-score"] == "undecided"
    assert values["mean_spread"].ratio > 5
    page = report_study(tmp_path).read_text()
    assert "Predicted and measured" in page and "Spread of the arms" in page


def test_predictions_are_checked_and_belong_to_the_study() -> None:
    known, base = KNOWN["known-answers"], base_recipe()
    before = definition_of(known, base, {})
    assert isinstance(known, StudyFile)
    after = definition_of(replace(known, EXPECTS={**known.EXPECTS, "no-cfg": "score better"}), base, {})
    assert "expects was" in definition_changes(before, after)
    for expects in ({"slow": "score worse"}, {"fast": "score lower"}, {"first": "noisier"}):
        with pytest.raises(UserError, match="EXPECTS"):
            study_of(type("Names", (), {"QUESTION": "?", "ARMS": {"first": {}, "fast": {}}, "EXPECTS": expects}))
