"""Agreement of proxies, and recipes that were drawn before they were run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from study_fakes import World, conduct

from studies import fidelity as drawn_recipes
from studies.analysis.fidelity import agreement, main, reversals
from studies.catalogue import KNOWN
from studies.search import drawn
from workbench.recipe.config import Recipe


def test_a_correlation_is_corrected_for_what_seeds_blur() -> None:
    generator, covered, observed, corrected = np.random.default_rng(0), 0, [], []
    for _ in range(500):
        effects = generator.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 12)
        runs = [of[:, None] + generator.standard_normal((12, 3)) for of in effects.T]
        found = agreement(runs[0].tolist(), runs[1].tolist())
        assert found is not None
        observed.append(found.observed)
        corrected.append(found.corrected)
        covered += found.low <= 0.8 <= found.high
    assert np.nanmedian(observed) < 0.68, "0.8 x 0.75"
    assert np.nanmedian(corrected) == pytest.approx(0.8, abs=0.05)
    assert 0.92 <= covered / 500 <= 0.99


def test_recipes_are_those_of_their_seed() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    again = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=drawn_recipes._SEED))
    for row in drawn_recipes._DRAWN:
        trial = again.ask()
        drawn(trial, drawn_recipes._NUM_STEPS, guided=True)
        for name, written in zip(drawn_recipes._NAMES, row, strict=True):
            value = trial.params[name]
            assert written == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)


def test_two_proxies_are_compared_by_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = KNOWN["fidelity"]

    def effect(recipe: Recipe, bench: str) -> float:
        return recipe.teachers.cfg_scale / 2 - recipe.dmd.renoise_shift / 10

    for name in ("14m", "60m"):
        conduct(study, tmp_path / name, World(effect=effect, cases=2), seeds=(0, 1))
    assert main([str(tmp_path / "14m"), str(tmp_path / "60m")]) == 0
    assert "14m, 60m" in capsys.readouterr().out.replace("\n", " ")
    assert main([str(tmp_path / "14m")]) == 2 and "two studies" in capsys.readouterr().err


def test_reversals_are_pairs_shown_both_ways() -> None:
    ours = {("a", "b"): "better", ("b", "a"): "worse", ("a", "c"): "better", ("c", "a"): "worse"}
    theirs = {("a", "b"): "worse", ("b", "a"): "better", ("a", "c"): "", ("c", "a"): ""}
    assert reversals(ours, theirs) == [("a", "b")]
