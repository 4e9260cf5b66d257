"""One bar for the whole of an evaluation: what it counts is what was planned, and a dry run draws nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from datamodules.openmoji import benchmark
from workbench.common import progress
from workbench.common.progress import advance, doing, has_own_bar, job
from workbench.evaluation.cases.choose import benchmark_cases
from workbench.evaluation.panel_cost import cost
from workbench.recipe.reading import from_mapping
from workbench.runs import inference

SMALL = [
    "data.resolution=64", "evaluation.t2i_cases=2", "evaluation.editing_cases=1", "evaluation.teacher_steps=2",
    "evaluation.num_bootstrap=20", "evaluation.judges=[local]", "evaluation.ocr=off",
]  # fmt: skip


class Counting:
    """The bars of a job, as numbers."""

    task_ids = (0,)

    def __init__(self) -> None:
        self.units, self.parts = 0.0, []

    def advance(self, task: int, units: float) -> None:
        self.units += units

    def update(self, task: int, description: str) -> None:
        self.parts.append(description)


def test_all_that_an_evaluation_does_adds_up_to_what_was_planned(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned, work = [], inference._work
    monkeypatch.setattr(inference, "_work", lambda *given: planned.append(work(*given)) or planned[-1])
    counting: Any = Counting()
    token = progress._BARS.set(counting)
    try:
        inference.evaluate_run(tiny_pipeline_folder, SMALL)
    finally:
        progress._BARS.reset(token)
    assert planned == [counting.units]
    assert counting.parts == ["model", "statistics"]


def test_a_part_has_no_bar_of_its_own_where_the_job_has_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert has_own_bar()
    with job("all", 10):
        assert not has_own_bar()
        bars = progress._BARS.get()
        with job("a part", 3):
            advance(4)
            doing("the first part")
        assert bars is not None and progress._BARS.get() is bars
        assert (bars.tasks[0].completed, bars.tasks[0].description) == (4, "the first part")
    assert has_own_bar()
    advance(1)


def test_a_dry_run_draws_nothing_and_counts_as_if_it_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = from_mapping({}, SMALL)
    planned = cost(benchmark_cases(chosen.data, chosen.evaluation), 1, chosen.data, chosen.evaluation)

    def draws(*_: Any) -> None:
        raise AssertionError("drawn only to be counted")

    monkeypatch.setattr(benchmark, "draw", draws)
    inference.evaluate_run("tiny", SMALL, dry_run=True)
    said = " ".join(capsys.readouterr().out.split())
    assert f"12 cases of split report, 1 model(s), 1 seed(s), some for diversity: {planned.images} images" in said
