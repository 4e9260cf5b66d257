"""Cases by difficulty: parts of a category have intervals of their own, and nothing else of an evaluation changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from studies.study import objective_values
from workbench.evaluation.answer_cache import Answer
from workbench.evaluation.answers import Answers, write_answers
from workbench.evaluation.case_scores import read_difficulties, read_scores
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.case_file import read_jsonl, write_jsonl
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.compare import compare_parts, compare_runs, compare_scores
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.judges.judge import LOCAL, Choice, Judged, Shown, Unanswered
from workbench.evaluation.judges.local import Judgement
from workbench.evaluation.measures.answer_measures import Measures
from workbench.evaluation.metrics_file import JudgeRecord, Metrics, read
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.panel_metrics import judged
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping
from workbench.reporting.page import report
from workbench.runs.run_scores import numbers_of, student_metrics

KINDS = ("one word", "two words", "")
"""Of every third text; the last ones belong to no part."""
RECIPE: Recipe = from_mapping({"evaluation": {"num_bootstrap": 200, "split": "search", "seeds": [0, 1]}})


def cases(kinds: Sequence[str] = KINDS) -> list[Case]:
    texts = [Case(f"t{i}", "t2i", "text", f"p{i}", difficulty=kinds[i % 3]) for i in range(60)]
    return [*texts, *(Case(f"l{i}", "t2i", "landscape", f"q{i}") for i in range(20))]


class Brightness:
    """A local judge that scores a picture by its grey level, a point for every 50."""

    title, fingerprint = "brightness", "brightness"

    def check(self, cases: Sequence[Case]) -> None:
        pass

    def judge(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> Judged:
        scores = [Judgement(float(image.mean()) / 50, 0.5, None, None) for image in images]
        return Judged({LOCAL: scores})

    def prefer(self, shown: Shown) -> dict[str, list[Choice | Unanswered]]:
        return {}

    def records(self) -> dict[str, JudgeRecord]:
        return {}


def student(loss: float) -> ModelUnderTest:
    """Grey pictures whose level is the case's own; those of two words are darker by `loss`."""

    def draw(asked: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        images = []
        for case, seed in zip(asked, seeds, strict=True):
            level = 150 + int(np.random.default_rng(seed).integers(-40, 40))
            worse = loss if case.id[0] == "t" and int(case.id[1:]) % 3 == 1 else 0.0
            images.append(np.full((32, 32, 3), level - worse, np.uint8))
        return images, 0.1

    return ModelUnderTest(draw, 4, {})


def run(folder: Path, loss: float = 0.0, kinds: Sequence[str] = KINDS) -> Metrics:
    return evaluate({"student": student(loss)}, RECIPE, folder, cases=cases(kinds), judges=[Brightness()])


def test_parts_leave_every_other_number_as_it_was(tmp_path: Path) -> None:
    """The mean of the benchmark, the objectives of studies and the numbers of lists of runs."""
    with_parts, without = run(tmp_path / "a", 30), run(tmp_path / "b", 30, ("", "", ""))
    one, other = with_parts.models["student"], without.models["student"]
    assert replace(one, parts={}) == other and with_parts.comparisons == without.comparisons
    bench = one.benches["t2i_bench"]
    assert bench["mean"].mean == pytest.approx((bench["text"].mean + bench["landscape"].mean) / 2)
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert objective_values(a) == objective_values(b) and "parts" not in b["models"]["student"]
    a, b = (numbers_of(student_metrics(tmp_path / name / "metrics.json")) for name in "ab")
    assert a == b and not any("word" in name for name in a)


def test_a_part_is_the_mean_of_its_own_cases_with_an_interval(tmp_path: Path) -> None:
    metrics = run(tmp_path, 30)
    assert read(tmp_path / "metrics.json") == metrics
    parts = metrics.models["student"].parts["t2i_bench"]
    assert list(parts) == ["text"] and list(parts["text"]) == ["one word", "two words"]
    scores, difficulties = read_scores(tmp_path)["student"], read_difficulties(tmp_path)
    assert len(difficulties) == 40
    for name, of in parts["text"].items():
        own = [score for key, score in scores.items() if difficulties.get(key[2]) == name]
        assert of.n == 20 and of.mean == pytest.approx(np.mean(own), abs=1e-4)
        assert of.low is not None and of.high is not None and of.low < of.mean < of.high
    page = report(tmp_path).read_text()
    assert "text: two words" in page and "parts of the categories above, in no mean" in page


def test_a_comparison_shows_in_which_part_a_difference_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, loss in (("a", 0.0), ("b", 10.0)):
        run(tmp_path / name, loss)
    capsys.readouterr()
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("in no mean" in line for line in lines)
    (hard,), (easy,) = ([line for line in lines if f"- {name} " in line] for name in ("two words", "one word"))
    assert "+0.200" in hard and "a student better" in " ".join(hard.split()) and "+0.000" in easy
    a, b = (read_scores(tmp_path / name)["student"] for name in "ab")
    assert found == compare_scores(a, b) and found["t2i_bench"].keys() == {"landscape", "text", "mean"}
    parts = compare_parts(a, b, read_difficulties(tmp_path / "a"))["t2i_bench", "text"]
    assert parts["two words"].mean == pytest.approx(0.2) and parts["two words"].n == 20
    assert found["t2i_bench"]["mean"].mean == pytest.approx(0.2 / 6), "a third of one of two categories"


def test_evaluations_of_before_compare_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files without difficulties on one side, or on both."""
    for name, loss in (("a", 0.0), ("b", 10.0)):
        run(tmp_path / name, loss)
    expected = compare_runs(tmp_path / "a", tmp_path / "b")
    for name, has_parts in (("a", True), ("b", False)):
        _older(tmp_path / name)
        capsys.readouterr()
        assert compare_runs(tmp_path / "a", tmp_path / "b") == expected
        assert ("- two words" in capsys.readouterr().out) == has_parts
    assert "By difficulty" not in report(tmp_path / "a").read_text()


def _older(folder: Path) -> None:
    """Take difficulties out of an evaluation's files."""
    path = folder / "evaluation" / "cases.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.pop("difficulty", None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["models"]["student"]["parts"]
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_a_further_judge_has_parts_of_what_it_answered() -> None:
    rows = [Answer(f"c{i}", "t2i_bench", "text", 0, None, Measures(0.0), KINDS[i % 2]) for i in range(8)]
    replies = [Unanswered("busy") if i == 1 else Judgement(1.0 + i % 2, 0.5, None, None) for i in range(8)]
    found = judged(Answers(rows, verdicts={"other": replies}), "other", 100)
    parts = found.parts["t2i_bench"]["text"]
    assert {name: (of.mean, of.n) for name, of in parts.items()} == {"one word": (1, 4), "two words": (2, 3)}
    assert found.benches["t2i_bench"].keys() == {"text", "mean"}


def test_a_file_of_cases_may_name_difficulties(tmp_path: Path) -> None:
    given = cases()
    write_jsonl(given, tmp_path / "mine.jsonl")
    assert [case.difficulty for case in read_jsonl(tmp_path / "mine.jsonl")] == [case.difficulty for case in given]
    rows = [Answer(case.id, case.bench, case.category, 0, None, Measures(0.0), case.difficulty) for case in given]
    write_answers({"student": Answers(rows)}, given, tmp_path / "answers.jsonl")
    assert read_difficulties(tmp_path / "answers.jsonl") == {c.id: c.difficulty for c in given if c.difficulty}


def test_landscapes_are_as_difficult_as_their_objects_and_signs_as_their_text() -> None:
    names = {1: "1 object", 2: "2 objects", 3: "3 objects"}
    cases = world_cases("t2i", "report", 60, 32)
    for case in cases:
        match case.category:
            case "landscape" if "objects" in case.named:
                assert case.difficulty == names[len(case.scene["objects"])]
            case "text" if "word" in case.named:
                assert case.difficulty in (("two words", "two lines") if " " in case.text else ("one word",))
            case _:
                assert case.difficulty == ""
    assert {case.difficulty for case in cases} == {"", *names.values(), "one word", "two words", "two lines"}
    assert {case.difficulty for case in world_cases("edit", "report", 3, 32)} == {""}
