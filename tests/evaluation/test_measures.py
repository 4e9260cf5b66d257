"""Every measure that no score holds, from the answers of a model to wherever it can be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from studies.study import objective_values
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.compare import compare_measures, compare_runs
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.measures.catalogue import MEASURES, VARIETY, numbers_of
from workbench.evaluation.metrics_file import Metrics, read
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.places import evaluations
from workbench.evaluation.tables import print_metrics
from workbench.recipe.reading import from_mapping
from workbench.reporting.page import report


def cases() -> list[Case]:
    t2i = world_cases("t2i", "search", 12, categories=["landscape", "text"])
    edits = world_cases("edit", "search", 12, categories=["object", "text"])
    spelt = [case for case in edits if case.text][:2]
    moved = [case for case in edits if case.category == "object" and case.exact][:3]
    return [*t2i, *moved, *spelt]


def model(share: float) -> ModelUnderTest:
    """Answers that are `share` of the way to a wrong one: mirrored, or moved by 4 pixels with a cast where edited."""

    def draw(cases: list[Case], seeds: list[int]) -> tuple[list[np.ndarray], float]:
        images = []
        for case in cases:
            assert case.target is not None
            wrong = case.target[:, ::-1] if case.task == "t2i" else np.roll(case.target, 4, axis=1) * 0.9
            images.append((wrong if share else case.target).astype(np.uint8))
        return images, 0.5

    return ModelUnderTest(draw, 4, {})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("rapidocr")
    recipe = from_mapping({"evaluation": {"num_bootstrap": 50, "split": "search"}})
    folders = {name: tmp_path_factory.mktemp(name) for name in ("right", "wrong")}
    for name, folder in folders.items():
        evaluate({"student": model(name == "wrong")}, recipe, folder, cases=cases(), judges=[LocalJudge(device="cpu")])
    return folders


def metrics_of(folder: Path) -> Metrics:
    found = read(folder / "metrics.json")
    assert found is not None
    return found


def test_every_measure_stands_in_the_file_and_tells_wrong_answers_from_right_ones(runs: dict[str, Path]) -> None:
    right, wrong = (metrics_of(folder).models["student"].secondary for folder in runs.values())
    assert right is not None and wrong is not None and right.measures.keys() == wrong.measures.keys() == MEASURES.keys()
    # An edit that is moved and darker shows all that it should.
    for name in MEASURES.keys() - {"object_count", "t2i_legibility", "editing_legibility", "edits_right"}:
        if not name.startswith("editing"):
            assert MEASURES[name].sign * (right.measures[name].mean - wrong.measures[name].mean) > 0, name
    assert wrong.measures["displacement"].mean == pytest.approx(4 / 1.28, rel=0.1)
    assert right.variety is not None and right.variety.value == 1 and "ink" in right.choices
    ceiling = metrics_of(runs["wrong"]).ceiling.secondary
    assert ceiling is not None and ceiling.measures["displacement"].mean < 1


def test_every_measure_stands_on_the_terminal_the_page_and_in_comparisons(runs: dict[str, Path]) -> None:
    console = Console(record=True, width=120)
    print_metrics(metrics_of(runs["wrong"]), console)
    page = report(runs["wrong"]).read_text()
    secondary = metrics_of(runs["wrong"]).models["student"].secondary
    assert secondary is not None
    terminal, titles = console.export_text(), numbers_of(secondary)
    assert len(titles) >= len(MEASURES) + 2
    for title in titles:
        assert title in terminal and title in page, title
    files, scored = zip(*(evaluations(run)["search"] for run in runs.values()), strict=True)
    found = compare_measures([of.cases for of in files], scored, ["student", "student"])
    assert found.keys() == {title for title in titles if "Fréchet" not in title}
    assert found["displacement, %"][0].high < 0 and found["displacement, %"][1] == -1
    assert found["objects in order"][0].mean > 0 and found[VARIETY][0].n > 0


def test_a_comparison_says_which_run_is_better_where_less_is_better(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    compare_runs(runs["wrong"], runs["right"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.strip().startswith("displacement"))
    assert "+3." in row


def test_every_measure_may_be_what_a_study_maximises(runs: dict[str, Path]) -> None:
    right, wrong = (objective_values(json.loads((folder / "metrics.json").read_text())) for folder in runs.values())
    assert right.keys() == wrong.keys() >= {*MEASURES, "variety", "score", "worst"}
    assert right["displacement"] > wrong["displacement"] and wrong["displacement"] == pytest.approx(-4 / 1.28, rel=0.1)
    assert right["object_order"] > wrong["object_order"]
