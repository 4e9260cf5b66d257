"""Evaluation by any judges: none at all, and one that nobody knows yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from studies.study import TrialFailed, objectives
from workbench.common.errors import UserError
from workbench.evaluation.cases.case import Case
from workbench.evaluation.compare import compare_runs
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.judges.choose import judges_of
from workbench.evaluation.judges.judge import Choice, Judge, Judged, Shown, Unanswered
from workbench.evaluation.metrics_file import JudgeRecord, Metrics, Secondary, Value, from_dict, mean_of, read
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.panel_cost import cost
from workbench.evaluation.tables import print_metrics
from workbench.recipe.config import Data, Evaluation, Recipe
from workbench.recipe.reading import from_mapping
from workbench.reporting.page import report


@dataclass(frozen=True)
class Brightness:
    score: float

    def details(self) -> dict[str, Any]:
        return {"unit": "grey levels"}


class BrightnessJudge:
    """Scores how bright an answer is, and gives none to a black one; prefers what it sees first."""

    title, fingerprint = "brightness", ""

    def check(self, cases: Sequence[Case]) -> None:
        pass

    def judge(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> Judged:
        scores = [Brightness(1 + image.mean() / 64) if image.any() else Unanswered("black") for image in images]
        return Judged({"brightness": scores})

    def prefer(self, shown: Shown) -> dict[str, list[Choice | Unanswered]]:
        return {"brightness": [Choice("A", "first") for _ in shown]}

    def records(self) -> dict[str, JudgeRecord]:
        return {"brightness": JudgeRecord("a mean")}


def cases_of(count: int) -> list[Case]:
    pictures = np.random.default_rng(0).integers(0, 256, (count, 2, 32, 32, 3), dtype=np.uint8)
    t2i = [Case(f"t{i}", "t2i", "rooms", f"p{i}", None, pictures[i, 1]) for i in range(count)]
    return t2i + [Case(f"e{i}", "edit", "pets", f"q{i}", *pictures[i]) for i in range(count)]


def grey(level: int) -> ModelUnderTest:
    """Answers with one level of grey, but black to the first case of each benchmark."""

    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        levels = [0 if case.id.endswith("0") else level for case in cases]
        return [np.full((32, 32, 3), value, np.uint8) for value in levels], 0.1

    return ModelUnderTest(draw, 4, {"steps": 4}, fingerprint=f"grey {level}")


def found_by(judges: Sequence[Judge], folder: Path, num_models: int = 2, **changes: object) -> Metrics:
    recipe = from_mapping({"data": {"resolution": 32}, "evaluation": {"num_bootstrap": 20, "judges": [], **changes}})
    models = dict(zip(("teacher", "student"), (grey(64), grey(128)), strict=True))
    return evaluate(dict(list(models.items())[:num_models]), recipe, folder, cases=cases_of(6), judges=judges)


def test_a_judge_that_nobody_knows_yet_is_scored_compared_kept_and_shown(tmp_path: Path) -> None:
    metrics = found_by([BrightnessJudge()], tmp_path, vlm={"pairs": 1})
    student = metrics.models["student"].vlm["brightness"]
    mean = mean_of(student.benches, "t2i_bench")
    assert mean is not None and (mean.mean, mean.n) == (3, 5)
    assert student.n == 10 and student.missing.reasons == {"black": 2}
    record = metrics.vlm["brightness"]
    assert record.model == "a mean" and {(row.difference, row.n) for row in record.comparisons} == {(1, 5)}
    assert metrics.preference["brightness"].orders_agree == 0
    lines = (tmp_path / "evaluation/vlm.jsonl").read_text()
    assert lines.count('"unit": "grey levels"') == 20 and lines.count('"missing": "black"') == 4
    console = Console(width=200, record=True)
    print_metrics(metrics, console)
    assert "brightness a mean" in console.export_text() and "brightness: a mean" in report(tmp_path).read_text()


def test_without_a_local_judge_one_line_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = found_by([], tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "no local judge: benchmark scores" in printed and "add local to evaluation.judges" in printed
    assert metrics.judge == "no local judge" and not metrics.comparisons and not metrics.vlm
    for model in metrics.models.values():
        assert model.n == 12 and not model.benches and model.frechet is None and model.diversity is None
        assert model.secondary is not None and model.secondary.kid is None and not model.secondary.word_accuracy
        # What is measured of the pixels alone needs no judge.
        assert model.secondary.residual_noise is not None and model.secondary.residual_noise.mean == 0
        assert model.secondary.target_distance is not None and set(model.secondary.target_distance) == {"pets", "mean"}
    assert read(tmp_path / "metrics.json") == metrics
    print_metrics(metrics, Console(width=200))
    assert "no local judge" in report(tmp_path).read_text()
    with pytest.raises(UserError, match="no score of the local judge: add local to evaluation.judges"):
        compare_runs(tmp_path, tmp_path)
    assert (tmp_path / "samples/evaluation/t2i-rooms.png").is_file()


def test_a_study_does_not_search_by_scores_that_are_not_there(tmp_path: Path) -> None:
    metrics = found_by([], tmp_path, split="search").as_dict()
    with pytest.raises(TrialFailed, match="no finite score"):
        objectives(metrics, ["score"])


def test_what_a_recipe_may_name() -> None:
    assert judges_of(Evaluation(judges=[])) == [] and Recipe().evaluation.judges == ["local", "second"]
    with pytest.raises(UserError, match=r"evaluation.milestone_cases are scored by the local judge"):
        Evaluation(judges=["vlm"], milestone_cases=2)
    cases, data = cases_of(3), Data(resolution=32)
    assert cost(cases, 1, data, Evaluation(judges=[])).images == len(cases)
    assert cost(cases, 1, data, Evaluation()).images > len(cases)


def test_secondary_metrics_are_read_by_their_older_key_and_written_by_the_new_one() -> None:
    old = from_dict({"models": {"student": {"beside": {"kid": {"value": 0.5, "n": 30}}}}})
    assert old.models["student"].secondary == Secondary(kid=Value(0.5, n=30))
    assert from_dict(old.as_dict()) == old
    assert "beside" not in old.as_dict()["models"]["student"]


def test_metrics_of_an_older_file_are_read_and_broken_ones_are_none(tmp_path: Path) -> None:
    mean = {"mean": 3.5}
    old = from_dict({"split": "search", "models": {"student": {"nfe": 4, "t2i_bench": {"mean": mean}}}})
    student = old.models["student"]
    interval = mean_of(student.benches, "t2i_bench")
    assert interval is not None and (interval.mean, interval.low) == (3.5, None)
    assert student.secondary is None and old.scored_on == "split search"
    assert from_dict({"cases": "mine.jsonl", "unheard": 1}).scored_on == "cases of mine.jsonl"
    nothing = from_dict({"models": {"a": {"vlm": {"A": {"t2i_bench": {"mean": {"mean": None, "n": 0}}}}}}})
    assert mean_of(nothing.models["a"].vlm["A"].benches, "t2i_bench") is None
    assert nothing.as_dict()["models"]["a"]["vlm"]["A"]["t2i_bench"]["mean"]["mean"] is None
    for text in ("", "[]", '{"models": [1]}', '{"models": {"student": 4}}'):
        (tmp_path / "metrics.json").write_text(text)
        assert read(tmp_path / "metrics.json") is None, text
