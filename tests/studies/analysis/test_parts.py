"""A study's report shows what arms differ by in the parts of a category, and no family or score knows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study_fakes import World, conduct

from studies.analysis.page import report_study, study_values
from studies.catalogue import KNOWN
from studies.reading import StudyFile
from workbench.recipe.config import Recipe

SHIPPED = KNOWN["task-mixture"]
STUDY = StudyFile(
    QUESTION=SHIPPED.QUESTION, ARMS={arm: SHIPPED.ARMS[arm] for arm in ("t2i-only", "5:5")}, suggest=SHIPPED.suggest
)
LOSS = 0.6


def _loss(recipe: Recipe) -> float:
    return -LOSS if recipe.mixture.tasks["t2i"] < 1 else 0.0


def values(folder: Path, seeds: int = 3) -> dict[str, Any]:
    """Of a study whose second arm loses LOSS on two words."""
    losses = {"one word": lambda recipe: 0.0, "two words": _loss}
    world = World(seed_sd=0.02, noise_sd=0.02, cases=16, parts=losses)
    conduct(STUDY, folder, world, seeds=range(seeds))
    return study_values(folder)


def test_the_part_that_loses_is_shown_below_its_category(tmp_path: Path) -> None:
    found = values(tmp_path / "s")
    rows = {(row["category"], row["difficulty"]): row for row in found["parts"] if row["bench"] == "t2i_bench"}
    texts = [("text", ""), ("text", "one word"), ("text", "two words")]
    assert list(rows) == [("landscape", ""), ("portrait", ""), *texts]
    assert rows["text", "two words"]["num_cases"] == 8 and rows["text", ""]["num_cases"] == 16
    hard, easy, whole = (rows["text", name]["cells"]["5:5"] for name in ("two words", "one word", ""))
    assert hard["difference"] == pytest.approx(-LOSS, abs=0.06)
    assert hard["low"] < hard["difference"] < hard["high"] < -0.4
    assert easy["difference"] == pytest.approx(0, abs=0.06) and easy["low"] < easy["difference"] < easy["high"]
    assert whole["difference"] == pytest.approx((hard["difference"] + easy["difference"]) / 2)
    assert rows["text", "two words"]["cells"]["t2i-only"]["difference"] is None
    page = report_study(tmp_path / "s").read_text()
    assert "text: two words" in page and "Parts of a category (indented) are in no score, test or verdict" in page


def test_families_scores_and_verdicts_know_no_parts(tmp_path: Path) -> None:
    """The same scores with their difficulties taken out of the files give the same page but for the parts."""
    found = values(tmp_path / "s")
    for path in (tmp_path / "s").glob("*/evaluation/cases.jsonl"):
        text = path.read_text()
        for part in ("one word", "two words"):
            text = text.replace(f', "difficulty": "{part}"', "")
        assert "difficulty" not in text
        path.write_text(text)
    without = study_values(tmp_path / "s")
    assert without["parts"] == [] and found["parts"] and "By difficulty" not in report_study(tmp_path / "s").read_text()
    for name in ("arms", "comparisons", "verdicts", "categories", "category_columns", "floors", "among_all"):
        assert found[name] == without[name], name


def test_one_seed_shows_differences_without_intervals(tmp_path: Path) -> None:
    found = values(tmp_path / "s", seeds=1)
    (row,) = (row for row in found["parts"] if row["difficulty"] == "two words")
    assert row["cells"]["5:5"]["difference"] == pytest.approx(-LOSS, abs=0.2) and row["cells"]["5:5"]["low"] is None


def test_a_study_of_one_recipe_shows_its_parts_too(tmp_path: Path) -> None:
    world = World(cases=4, parts={"one word": lambda recipe: 0.0, "two words": lambda recipe: -1.0})
    conduct(KNOWN["noise-floor"], tmp_path / "s", world, seeds=range(2))
    rows = study_values(tmp_path / "s")["parts"]
    (cell,) = next(row for row in rows if row["difficulty"] == "two words")["cells"].values()
    assert cell["difference"] is None and cell["mean"] == pytest.approx(2, abs=1)
