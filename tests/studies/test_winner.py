"""The winner of a search runs again: against the base of that search, under fresh seeds, on the report split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studies import winner
from studies.catalogue import study_named
from studies.machine import runner
from studies.study import TrialFailed, objectives
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load, to_yaml

SPACE = """
from studies.study import vary

QUESTION = "Which shift?"
OBJECTIVES = ["t2i", "editing"]


def suggest(trial, base):
    return vary(base, {"dmd": {"student_shift": trial.suggest_float("shift", 1, 5)}})
"""


def scored_by_its_shift(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """metrics.json of a trial that was not run, on the split that its recipe asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    t2i, editing = recipe.dmd.student_shift / 2, 4 - recipe.dmd.student_shift / 5
    student = {"nfe": 4, "n": 3, "t2i_bench": {"mean": {"mean": t2i}}, "editing_bench": {"mean": {"mean": editing}}}
    return {"split": recipe.evaluation.split, "models": {"student": student}}


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished search whose best score has the largest shift."""
    monkeypatch.chdir(tmp_path)
    Path("shifts.py").write_text(SPACE)
    words = ["smoke=true", "trials=3", "optim.beta1=0.5", "seeds=2"]
    runner.run_study("shifts.py", words, execute=scored_by_its_shift)
    return Path("runs/studies/shifts")


def test_the_winner_meets_its_base_under_five_fresh_seeds_on_the_report_split(search: Path) -> None:
    asked: list[Recipe] = []

    def execute(recipe: Recipe, folder: Path) -> dict[str, Any]:
        asked.append(recipe)
        return scored_by_its_shift(recipe, folder)

    runner.run_study(str(search), ["trainer.updates=7"], execute=execute)
    recipes = [load(search / f"trial-{i:04d}" / "recipe.yaml") for i in range(3)]
    best = max(recipes, key=lambda recipe: recipe.dmd.student_shift)
    base = load(search.parent / "shifts-winner" / "trial-0000" / "recipe.yaml")
    assert base.dmd.student_shift == Recipe().dmd.student_shift and base.optim.beta1 == 0.5
    assert {recipe.seed for recipe in asked} == {3, 4, 5, 6, 7} and best.seed == 2
    assert all(recipe.evaluation == replace(best.evaluation, split="report") for recipe in asked)
    assert {recipe.dmd.student_shift for recipe in asked} == {base.dmd.student_shift, best.dmd.student_shift}
    assert all(recipe.trainer.updates == 7 and recipe.optim.beta1 == 0.5 for recipe in asked)
    content = json.loads((search.parent / "shifts-winner" / "study.json").read_text())
    assert (content["split"], content["reference"], content["objectives"][0]) == ("report", "base", "score")
    assert [len(arm["trials"]) for arm in content["arms"]] == [5, 5]


def test_another_trial_is_named_by_its_folder(search: Path) -> None:
    study = study_named(str(search / "trial-0001"))
    assert list(study.ARMS) == ["base", "trial-0001"]
    drawn = load(search / "trial-0001" / "recipe.yaml")
    assert study.ARMS["trial-0001"] == {"dmd": {"student_shift": drawn.dmd.student_shift}}
    assert winner.differences(drawn, drawn) == {}


def test_what_has_no_winner_says_so(search: Path) -> None:
    content = json.loads((search / "study.json").read_text())
    (search / "trial-0009").mkdir()
    with pytest.raises(UserError, match="trial-0009 is no finished trial of the study in runs/studies/shifts"):
        study_named(str(search / "trial-0009"))
    (search / "study.json").write_text(json.dumps({**content, "arms": []}))
    with pytest.raises(UserError, match="no draw of a search in runs/studies/shifts has finished"):
        study_named(str(search))
    with pytest.raises(UserError, match="no study 'runs'; there is: .*or the folder of a search"):
        study_named("runs")


def test_a_search_that_is_scored_on_the_report_split_fails() -> None:
    metrics = {"split": "report", "models": {"student": {"t2i_bench": {"mean": {"mean": 3.0}}}}}
    assert objectives(metrics, ["t2i"], "report") == [3.0]
    with pytest.raises(TrialFailed, match="needs the search split"):
        objectives(metrics, ["t2i"])
