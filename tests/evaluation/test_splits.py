"""What is searched on is never what is reported on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datamodules.openmoji import CATEGORIES, draw, plan
from datamodules.openmoji.benchmark import FULL_CASES
from datamodules.openmoji.splits import combinations, split_of
from studies.machine.runner import run_study
from studies.study import TrialFailed, objective_values
from workbench.recipe.config import Recipe

HELD_OUT = ("search", "report", "calibration")
ENTRIES = [(task, category) for task, names in CATEGORIES.items() for category in names]


def held_out(split: str) -> Iterator[tuple[str, ...]]:
    """Every held-out combination that a target or a source of the full benchmarks of a split shows."""
    for task, category in ENTRIES:
        for index in range(FULL_CASES[task]):  # type: ignore[index]
            planned = plan(task, category, split, index)  # type: ignore[arg-type]
            for picture in (planned.target, planned.source):
                if picture is not None:
                    yield from (c for c in combinations(picture.scene) if split_of(c) != "train")


def test_no_held_out_combination_is_shown_by_two_splits() -> None:
    shown = {split: set(held_out(split)) for split in HELD_OUT}
    assert all(len(combinations_) > 100 for combinations_ in shown.values())
    for split, found in shown.items():
        assert {split_of(combination) for combination in found} == {split}
        for other in HELD_OUT:
            assert split == other or not found & shown[other]


def test_no_id_and_no_picture_is_in_two_splits() -> None:
    samples = {split: [draw(task, name, split, i) for task, name in ENTRIES for i in range(3)] for split in HELD_OUT}
    ids = [sample.key for of in samples.values() for sample in of]
    pictures = [sample.target.tobytes() for of in samples.values() for sample in of]
    assert len({*ids}) == len(ids) == 3 * 27 and len({*pictures}) == len(pictures)


@pytest.mark.parametrize("split", ["report", "calibration", "train"])
def test_the_objective_refuses_every_split_but_search(split: str) -> None:
    models = {"student": {"t2i_bench": {"mean": {"mean": 3.0}}, "editing_bench": {"mean": {"mean": 4.0}}}}
    assert objective_values({"split": "search", "models": models}) == {"t2i": 3.0, "editing": 4.0, "score": 3.5}
    with pytest.raises(TrialFailed, match="needs the search split"):
        objective_values({"split": split, "models": models})


def test_a_study_searches_on_the_search_split_whatever_it_is_told(tmp_path: Path) -> None:
    """Every recipe that a trial runs, and so every score that the objective or a pruner can see, is of that split."""
    seen: list[str] = []

    def execute(recipe: Recipe, folder: Path) -> dict[str, Any]:
        seen.append(recipe.evaluation.split)
        bench = {"mean": {"mean": 3.0}}
        student = {"nfe": 4, "n": 3, "t2i_bench": bench, "editing_bench": bench}
        return {"split": recipe.evaluation.split, "models": {"student": student}}

    words = ["smoke=true", f"folder={tmp_path / 'study'}", "seeds=0,1", "trials=6", "evaluation.split=report"]
    words.append("teachers.specialists={portrait: portrait.st, text: text.st, editing: editing.st}")
    run_study("task-mixture", words, execute=execute)
    assert len(seen) == 6 and {*seen} == {"search"}
