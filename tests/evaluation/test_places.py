"""Evaluations of one run lie side by side, know which student they are of, and are paired only where they ask alike."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from workbench import cli
from workbench.common.errors import UserError
from workbench.evaluation.cases.case import Case
from workbench.evaluation.compare import compare_runs
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.judges.judge import LOCAL, Judged
from workbench.evaluation.judges.local import Judgement
from workbench.evaluation.model_card import add_scores
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.places import evaluations, files_for, find, first_files, name_of
from workbench.evaluation.trained_student import describe_student, outdated, student_of
from workbench.recipe.config import Evaluation, Recipe
from workbench.recipe.reading import from_mapping, to_yaml
from workbench.reporting.page import report


class FixedJudge:
    """Scores by the brightness of the first pixel; a stand-in for the local judge's network."""

    title, fingerprint = "fixed judge", ""

    def check(self, cases: Sequence[Case]) -> None: ...

    def judge(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> Judged:
        scores = [Judgement(float(image[0, 0, 0]), 0.5, None, None, {}) for image in images]
        return Judged({LOCAL: scores})

    def prefer(self, shown: object) -> dict[str, list[object]]:
        return {}

    def records(self) -> dict[str, object]:
        return {}


def cases(prompt: str = "a fox", ids: Sequence[str] = ("1", "2"), grey: int = 0) -> list[Case]:
    source = np.full((32, 32, 3), grey, np.uint8)
    edits = [Case(f"e{name}", "edit", "own", f"{prompt} {name}", source) for name in ids]
    return [*(Case(name, "t2i", "own", f"{prompt} {name}") for name in ids), *edits]


def painter(value: int) -> ModelUnderTest:
    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        return [np.full((32, 32, 3), value, np.uint8) for _ in cases], 0.1

    return ModelUnderTest(draw, 4, {"steps": 4})


def make_run(folder: Path, update: int = 3, **sections: object) -> tuple[Path, Recipe]:
    """A run folder with a student that has no real weights."""
    recipe = from_mapping({"evaluation": {"num_bootstrap": 20}, "trainer": {"folder": str(folder)}, **sections})
    (folder / "student" / "transformer").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    train(folder, update)
    return folder, recipe


def train(folder: Path, update: int) -> None:
    (folder / "student" / "transformer" / "weights.safetensors").write_bytes(b"%d" % update)
    (folder / "student" / "README.md").write_text("# a student\n")
    describe_student(folder / "student", update)


def score(run: Path, own: Recipe, value: int = 3, asked: Sequence[Case] | None = None, **chosen: object) -> None:
    """What `workbench evaluate RUN evaluation.KEY=VALUE ...` does, without networks."""
    recipe = replace(own, evaluation=replace(own.evaluation, **chosen))  # type: ignore[arg-type]
    files = files_for(run, recipe.evaluation, own.evaluation)
    judges = [FixedJudge()]
    overrides = [f"evaluation.{key}={value}" for key, value in chosen.items()]
    evaluate(
        {"student": painter(value)}, recipe, files, cases=asked or cases(), judges=judges, overrides=overrides,
        student=student_of(run),
    )  # type: ignore[arg-type]  # fmt: skip


def test_own_cases_and_other_splits_never_overwrite_the_benchmark(tmp_path: Path) -> None:
    run, recipe = make_run(tmp_path / "run")
    score(run, recipe)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    own = str(tmp_path / "my cases.jsonl")
    score(run, recipe, 4, cases("other"), cases=own)
    score(run, recipe, 5, split="search")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert list(evaluations(run)) == ["report", "my cases", "search"]
    means = [of.models["student"].benches["t2i_bench"]["mean"].mean for _, of in evaluations(run).values()]
    assert means == [3, 4, 5]
    score(run, recipe, 2, cases("other"), cases=own)
    assert find(run, "my cases")[1].models["student"].benches["t2i_bench"]["mean"].mean == 2
    assert len(evaluations(run)) == 3, "the same cases again replace their own scores"
    with pytest.raises(UserError, match=r"no evaluation 'serch' \(did you mean 'search'\?\); it has report, my cases"):
        find(run, "serch")


def test_two_files_of_one_stem_and_reserved_names_get_places_of_their_own(tmp_path: Path) -> None:
    run, recipe = make_run(tmp_path / "run")
    for i, name in enumerate(("a/mine.jsonl", "b/mine.jsonl", "partial.jsonl", "report.jsonl", "../../x/.y.jsonl")):
        score(run, recipe, i + 1, cases=str(tmp_path / name))
    found = evaluations(run)
    assert len(found) == 5 and [name for name in found if name.startswith("mine")] == ["mine", sorted(found)[1]]
    assert name_of(Evaluation(cases="x/cases.jsonl.jsonl")) == "cases.jsonl-cases"
    assert {path.parent.parent for path in run.rglob("metrics.json")} == {run / "evaluation"}
    score(run, recipe, 9, cases=str(tmp_path / "a" / ".." / "a" / "mine.jsonl"))
    assert len(evaluations(run)) == 5, "another way to write one path names one file"


def test_where_the_recipe_now_names_another_set_the_former_scores_stay(tmp_path: Path) -> None:
    run, recipe = make_run(tmp_path / "run", evaluation={"split": "search", "num_bootstrap": 20})
    score(run, recipe)
    score(run, replace(recipe, evaluation=replace(recipe.evaluation, split="report")), 4)
    assert list(evaluations(run)) == ["search", "report"]
    score(run, recipe, 2)
    assert find(run, "search")[1].models["student"].benches["t2i_bench"]["mean"].mean == 2


def test_sheets_and_verdicts_of_a_former_evaluation_do_not_mix_with_new_ones(tmp_path: Path) -> None:
    run, recipe = make_run(tmp_path / "run")
    score(run, recipe, asked=[*cases(), Case("z", "t2i", "gone", "p")])
    (run / "evaluation" / "vlm.jsonl").write_text("{}\n")
    assert (run / "samples" / "evaluation" / "t2i-gone.png").is_file()
    score(run, recipe)
    sheets = sorted(path.name for path in (run / "samples" / "evaluation").iterdir())
    assert sheets == ["edit-own.png", "index.json", "t2i-own.png"] and not (run / "evaluation" / "vlm.jsonl").exists()


def test_scores_say_which_student_they_are_of_and_warn_where_it_is_newer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = make_run(tmp_path / "a run", update=3)
    score(run, recipe, t2i_cases=7)
    lines = [json.loads(line) for line in (run / "evaluation" / "cases.jsonl").read_text().splitlines()]
    now = student_of(run)
    assert now is not None and {(row["update"], row["weights"]) for row in lines} == {(3, now.weights)}
    assert outdated(run, first_files(run).read() or pytest.fail()) == ""
    report(run)
    assert "warning" not in capsys.readouterr().out
    train(run, 4)
    command = f"workbench evaluate {shlex.quote(str(run))} evaluation.t2i_cases=7"
    warning = f"scores are of update 3, the student of update 4: run {command}"
    page = report(run).read_text().replace("&#39;", "'")
    assert warning in capsys.readouterr().out and f"Warning: {warning}" in page
    other, of_other = make_run(tmp_path / "other")
    score(other, of_other)
    console = Console(record=True, width=400)
    compare_runs(run, other, console=console)
    assert f"warning: {run}: {warning}" in console.export_text()
    (run / "student" / "training.json").unlink()
    assert "scores are of weights " in outdated(run, first_files(run).read() or pytest.fail())
    shutil.rmtree(run / "student")
    assert outdated(run, first_files(run).read() or pytest.fail()) == ""


@pytest.mark.parametrize(("other", "named"), [(cases("a dog"), "'1'"), (cases(grey=9), "'e1'")])
def test_cases_of_one_id_that_ask_for_something_else_are_refused(tmp_path: Path, other: list[Case], named: str) -> None:
    (a, recipe), (b, _) = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    score(a, recipe)
    score(b, recipe, 4, other)
    with pytest.raises(UserError, match=f"{named} has another prompt or source"):
        compare_runs(a, b)


def test_compare_chooses_by_name_and_heads_its_table_with_what_differs(tmp_path: Path) -> None:
    (a, recipe), (b, other) = make_run(tmp_path / "a"), make_run(tmp_path / "b", optim={"student_lr": 0.5})
    own = str(tmp_path / "mine.jsonl")
    for run, of, value in ((a, recipe, 2), (b, other, 4)):
        score(run, of, value)
        score(run, of, value + 1 if run == b else value, cases("own"), cases=own)
    console = Console(record=True, width=100)
    assert compare_runs(a, b, console=console)["t2i_bench"]["mean"].mean == -2
    said = console.export_text()
    rows = [line.split() for line in said.splitlines()]
    assert ["optim.student_lr", str(recipe.optim.student_lr), "0.5"] in rows
    assert not any(row and row[0] == "trainer.folder" for row in rows)
    assert said.index("optim.student_lr") < said.index("paired, 95 %")
    assert compare_runs(a, b, "mine", Console(quiet=True))["t2i_bench"]["mean"].mean == -3
    score(a, recipe, split="search")
    with pytest.raises(UserError, match="b has no evaluation 'search'"):
        compare_runs(a, b, "search")
    shutil.rmtree(b / "evaluation")
    (b / "metrics.json").unlink()
    with pytest.raises(UserError, match="holds no scores: run `workbench evaluate"):
        compare_runs(a, b)


def test_runs_without_a_common_evaluation_say_what_each_has(tmp_path: Path) -> None:
    (a, recipe), (b, other) = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    score(a, recipe)
    score(b, other, cases=str(tmp_path / "mine.jsonl"))
    with pytest.raises(UserError, match=r"no evaluation that both have: .*a has report; .*b has mine"):
        compare_runs(a, b)


def test_compare_on_a_study_says_what_to_do_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    for name in ("trial-0000", "trial-0001"):
        make_run(study / name)
    (study / "study.json").write_text("{}")
    assert cli.main(["compare", str(study), str(study)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"`workbench report {study}` compares its arms" in said
    assert f"`workbench compare {study}/trial-0000 {study}/trial-0001`" in said


def test_the_page_shows_all_evaluations_and_commands_that_make_them_again(tmp_path: Path) -> None:
    run, recipe = make_run(tmp_path / "run")
    score(run, recipe, cases=str(tmp_path / "my cases.jsonl"))
    score(run, recipe, 4)
    page = report(run).read_text().replace("&#39;", "'")
    assert page.index("Evaluation: report") < page.index("Evaluation: my cases")
    assert page.count("data:image/webp") == 4
    commands = page.split("<h3>Commands</h3>")[1].split("</pre>")[0].split("<pre>")[1].splitlines()
    assert [shlex.split(line) for line in commands] == [
        ["workbench", "distill", f"{run}/recipe.yaml"],
        ["workbench", "evaluate", str(run)],
        ["workbench", "evaluate", str(run), f"evaluation.cases={tmp_path}/my cases.jsonl"],
        ["workbench", "report", str(run)],
    ]
    made = {"pack": {"data.source": "my pictures", "data.min_side": 8}, "encode": {"data.raw": "data/mine raw"}}
    data = {"samples": 2, "categories": ["t2i/own"], "made": made}
    (run / "data.json").write_text(json.dumps(data))
    page = report(run).read_text().replace("&#39;", "'")
    commands = page.split("<h3>Commands</h3>")[1].split("</pre>")[0].split("<pre>")[1].splitlines()
    assert [shlex.split(line) for line in commands[:2]] == [
        ["workbench", "pack", f"{run}/recipe.yaml", "data.raw=data/mine raw", "data.source=my pictures",
         "data.min_side=8"],
        ["workbench", "encode", f"{run}/recipe.yaml", "data.raw=data/mine raw"],
    ]  # fmt: skip
    add_scores(run / "student", [of for _, of in evaluations(run).values()])
    card = (run / "student" / "README.md").read_text()
    assert "Split report" in card and f"Cases of {tmp_path}/my cases.jsonl".lower() in card.lower()
