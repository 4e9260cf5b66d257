"""Reports of studies: what they must say, of whole, partial, failed, single-seed and multi-objective ones."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from rich.console import Console
from study_fakes import World, base_recipe, conduct

from studies.analysis import arms, collapse, comparisons, effects, importance, numbers, table
from studies.analysis.crossed import Table
from studies.analysis.page import passes_per_prompt, report_study, side_by_side, study_values
from studies.analysis.screening import design
from studies.catalogue import KNOWN
from studies.machine import study_file
from studies.reading import StudyFile
from studies.study import Times, vary
from workbench.common.errors import UserError
from workbench.evaluation.trained_student import describe_student
from workbench.recipe.config import Recipe
from workbench.reporting import plots
from workbench.reporting.hparams import log_trial
from workbench.sampling.contact_sheet import contact_sheet, cut_sheet

Report = Callable[[Path], tuple[str, dict[str, Any]]]
EVIL = "<script>alert('x')</script>"
SHIPPED = KNOWN["task-mixture"]
MIXTURE = StudyFile(
    QUESTION=SHIPPED.QUESTION,
    ARMS={arm: SHIPPED.ARMS[arm] for arm in ("t2i-only", "5:5", "edit-only")},
    suggest=SHIPPED.suggest,
)


def better_with_edits(recipe: Recipe, bench: str) -> float:
    """Half a point for any edits, a hundredth more for nothing but."""
    return {1.0: 0.0, 0.5: 0.5, 0.0: 0.51}[recipe.mixture.tasks["t2i"]]


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is written in tenths of a second."""
    monkeypatch.setattr(importance, "NUM_PERMUTATIONS", 5)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Report:
    """Writes a study's page: its text, and the values that it shows."""

    def write(folder: Path) -> tuple[str, dict[str, Any]]:
        shown: dict[str, Any] = {}

        def kept(*arguments: Any) -> dict[str, Any]:
            shown.update(study_values(*arguments))
            return shown

        with monkeypatch.context() as patch:
            patch.setattr("studies.analysis.page.study_values", kept)
            return report_study(folder).read_text(), shown

    return write


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "noise-floor"
    conduct(KNOWN["noise-floor"], folder, World(seed_sd=0.05), seeds=range(8))
    return folder


def test_a_noise_floor_says_what_n_seeds_can_show(floor: Path) -> None:
    page = report_study(floor).read_text()
    first = page[: page.index("What n seeds can show")]
    assert ">answered<" in first and "8 seeds, 72 cases" in first
    found = arms.floor_of(floor)
    assert found is not None and 0.02 < found.spreads["score"].sd < 0.15 and found.spreads["score"].df == 7
    least = numbers.noise_floor(*_single(floor), "score")
    assert least is not None
    three = next(row for row in least["planned"] if row["seeds"] == 3)
    assert f"{three['least']:.3f}" in first
    low, high = least["case_share"]
    assert 0 < low < high <= 1


def _single(folder: Path) -> tuple[arms.Arm, Table]:
    (arm,) = arms.read_arms(folder, arms.read_study(folder))
    return arm, arms.tables([arm], "score")[0]


def test_a_replication_tells_differences_from_noise(floor: Path) -> None:
    folder = floor.parent / "mixture"
    conduct(MIXTURE, folder, World(effect=better_with_edits, sheets=True), seeds=(0, 1, 2))
    page = report_study(folder).read_text()
    first = page[: page.index("<h2>Arms")]
    assert "Against t2i-only, score:" in first and "edit-only +0." in first and ">answered<" in first
    assert "4 NFE" in first and "9 finished" in first
    assert page.count("5:5 better<") == 3 and "variety</td>" in page
    assert "By category: 5:5 better in T2I landscape, " in first
    assert page.count('<span class="verdict better">3.') == 2 * 9, "two arms are better in each of nine categories"
    assert page.count("data:image/webp") == 3
    assert "Passes per prompt" in page and "workbench study mixture" in page
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith(("data:", "#", "trial-")), address
    text = (folder / "study.json").read_text()
    (folder / "study.json").write_text(text.replace('"trial-0000"', '"javascript:alert(1)"'))
    assert 'href="javascript%3Aalert%281%29/report.html"' in report_study(folder).read_text()


def test_an_arm_of_another_length_is_told_with_the_budget(tmp_path: Path) -> None:
    arms_of_two_lengths = {"short": {"optim": {"beta1": 0.5}}, "long": {"trainer": {"updates": Times(2)}}}
    conduct(replace(MIXTURE, ARMS=arms_of_two_lengths), tmp_path / "s", World(), seeds=(0,))
    page, updates = report_study(tmp_path / "s").read_text(), base_recipe().trainer.updates
    assert f"Budget: {updates} student updates ({2 * updates} in long), " in page and "1 seed an arm" in page


def test_a_difference_below_the_margin_is_equivalence_and_may_be_a_difference_too(tmp_path: Path) -> None:
    world = World(effect=better_with_edits, seed_sd=0.001, noise_sd=0)
    conduct(MIXTURE, tmp_path / "mixture", world, seeds=range(12))
    found = arms.read_arms(tmp_path / "mixture", arms.read_study(tmp_path / "mixture"))

    five = comparisons.measure(found, "score", "5:5")

    def edit_only(margin: float) -> dict[str, Any]:
        return next(row for row in comparisons.against_reference(five, margin) if row["arm"] == "edit-only")

    assert edit_only(0.05)["difference"] == pytest.approx(0.01, abs=0.003)
    assert edit_only(0.05)["verdict"] == "edit-only better, by less than the margin"
    assert edit_only(0.005)["verdict"] == "edit-only better"


def test_what_is_undecided_says_what_would_decide(tmp_path: Path) -> None:
    conduct(MIXTURE, tmp_path / "mixture", World(seed_sd=0.05, noise_sd=0.3), seeds=(0, 1, 2))
    page = report_study(tmp_path / "mixture").read_text()
    first = page[: page.index("<h2>Arms")]
    assert ">undecided<" in first and "Undecided: 5:5" in first
    found = arms.read_arms(tmp_path / "mixture", arms.read_study(tmp_path / "mixture"))
    rows = comparisons.against_reference(comparisons.measure(found, "score", "t2i-only"), 0.05)
    assert all(row["low"] < 0 < row["high"] and "seeds an arm" in row["takes"] for row in rows)
    console = Console(record=True, width=200, file=io.StringIO())
    table.print_table(tmp_path / "mixture", console)
    assert f"undecided ({rows[0]['takes']} would decide)" in console.export_text()


def test_a_partial_study_shows_what_failed_runs_and_waits(tmp_path: Path) -> None:
    world = World(fails={"trial-0001": f"error: out of memory {EVIL}", "trial-0002": "diverged"})
    conduct(MIXTURE, tmp_path / "mixture", world, seeds=(0,), unfinished=1)
    page = report_study(tmp_path / "mixture").read_text()
    first = page[: page.index("<h2>Arms")]
    assert "not answered yet" in first and "Not finished once: 5:5, edit-only." in first
    assert "1 finished, 1 running, 2 failed" in " ".join(first.split())
    assert "out of memory" in page and "<script" not in page and "diverged" in page and "+ 1 running" in page


def test_arms_that_nobody_asked_for_are_named_and_have_no_rows(tmp_path: Path) -> None:
    conduct(MIXTURE, tmp_path / "mixture", World(effect=better_with_edits), seeds=(0, 1, 2))
    path = tmp_path / "mixture" / "study.json"
    study = json.loads(path.read_text())
    left = {"arms": [*study["arms"][:2], {"name": "edit-only", "trials": []}], "expects": {"edit-only": "score worse"}}
    path.write_text(json.dumps({**study, **left}))
    page = report_study(tmp_path / "mixture").read_text()
    first = page[: page.index("<h2>Arms")]
    assert ">answered in part<" in first and "Not asked for: edit-only." in first and "Not finished once" not in first
    assert page.count("edit-only") == 1 and "3 seeds an arm" in page and "0 or 3" not in page
    console = Console(record=True, width=200, file=io.StringIO())
    table.print_table(tmp_path / "mixture", console)
    assert "5:5" in (said := console.export_text()) and "edit-only" not in said
    path.write_text(json.dumps({**study, "reference": None, "arms": [{"name": "5:5", "trials": []}]}))
    assert "Not asked for: 5:5." in report_study(tmp_path / "mixture").read_text()


def test_one_seed_shows_nothing_even_beside_a_noise_floor_of_another_recipe(floor: Path, tmp_path: Path) -> None:
    conduct(MIXTURE, tmp_path / "mixture", World(effect=better_with_edits, seed_sd=0.01), seeds=(0,))
    for given in (None, floor):
        page = report_study(tmp_path / "mixture", given).read_text()
        assert "Every arm has one seed: nothing is known" in page and "edit-only better" not in page
    with pytest.raises(UserError, match="no finished noise floor"):
        report_study(tmp_path / "mixture", tmp_path)


def test_a_search_shows_its_front_and_what_matters(tmp_path: Path, report: Report) -> None:
    def effect(recipe: Recipe, bench: str) -> float:
        share = recipe.mixture.tasks["t2i"]
        return share if bench == "t2i_bench" else -share

    world = World(effect=effect, seed_sd=0, noise_sd=0.01, cases=2)
    memory = conduct(KNOWN["search"], tmp_path / "search", world, draws=10)
    text, values = report(tmp_path / "search")
    first = text[: text.index("<h2>Front")]
    assert "10 recipes drawn from a space of 13 parameters" in first and "Preliminary: about 130 trials" in first
    best = max(memory.trials, key=lambda trial: trial.values[0])
    assert f"trial {best.number}" in first and "What sets the best apart from the rest" in first
    assert "<h2>Against" not in text and "importance, summing to 1" in text and "t2i share" in text
    assert arms.read_study(tmp_path / "search")["front"] == [trial.number for trial in memory.best_trials]
    assert sum(found.share for found in values["importance"]["t2i"].values()) == pytest.approx(1)
    assert "share (p)" in text and "workbench study FOLDER" in first


def test_arms_and_a_search_in_one_folder_keep_apart(tmp_path: Path) -> None:
    world = World(effect=better_with_any, seed_sd=0.01, noise_sd=0.01, cases=2, sheets=True)
    folder, console = tmp_path / "mixture", Console(record=True, width=200, file=io.StringIO())
    memory = conduct(MIXTURE, folder, world, seeds=(0, 1, 2))
    alone = arms.floor_of(folder)
    conduct(MIXTURE, folder, world, draws=9, optuna_study=memory)
    assert alone is not None and arms.floor_of(folder) == alone
    page = report_study(folder).read_text()
    assert "edit-only better" in page and "search better" not in page and "9 recipes drawn from a space of 1" in page
    assert "<h2>Arms" in page and "<h2>Progress" in page and "The best recipes" in page and "9 finished" not in page
    table.print_table(folder, console)
    told = console.export_text()
    assert "search against" not in told and "The best of 9 drawn recipes" in told


def better_with_any(recipe: Recipe, bench: str) -> float:
    """The more edits, the better."""
    return 1 - recipe.mixture.tasks["t2i"]


def test_a_waiting_seed_does_not_keep_a_noise_floor_from_being_finished(floor: Path, tmp_path: Path) -> None:
    for state, finished in (("waiting", True), ("running", False)):
        study = arms.read_study(floor)
        study["arms"][0]["trials"].append({"number": 99, "entry": "recipe@99", "state": state})
        (tmp_path / "study.json").write_text(json.dumps(study))
        assert (arms.floor_of(tmp_path) is not None) == finished


def test_commands_can_be_typed_again(tmp_path: Path) -> None:
    words = ["mixture", "teachers.specialists={a:b,c:d}", "arms=it's one"]
    (tmp_path / "study.json").write_text(json.dumps({"command": words, "arms": []}))
    command = study_values(tmp_path)["commands"][0]
    assert shlex.split(command) == ["workbench", "study", *words]
    assert subprocess.check_output(["bash", "-c", f"printf '%s\\n' {command}"], text=True).split("\n")[2:5] == words


def test_too_few_draws_have_no_importance_and_none_no_page_of_errors(tmp_path: Path) -> None:
    conduct(KNOWN["search"], tmp_path / "search", World(cases=1), draws=2)
    assert "Too few finished trials" in report_study(tmp_path / "search").read_text()
    (tmp_path / "empty").mkdir()
    table.write_json(optuna.create_study(), KNOWN["search"], "empty", "sqlite", tmp_path / "empty" / "study.json")
    assert "No trial has been recorded yet" in report_study(tmp_path / "empty").read_text()


@pytest.mark.parametrize("missing", ["evaluation", "metrics.jsonl", "environment.json", "recipe.yaml"])
def test_run_folders_may_lack_anything(tmp_path: Path, missing: str) -> None:
    conduct(MIXTURE, tmp_path / "mixture", World(effect=better_with_edits, sheets=True, cases=2), seeds=(0, 1))
    for run in (tmp_path / "mixture").glob("trial-*"):
        (run / missing).rename(run / "gone")
    page = report_study(tmp_path / "mixture").read_text()
    assert "</html>" in page and ("by seeds" in page or missing != "evaluation")


def test_a_trial_whose_student_is_newer_than_its_scores_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conduct(MIXTURE, tmp_path / "mixture", World(cases=2), seeds=(0,))
    run = tmp_path / "mixture" / "trial-0001"
    (run / "student" / "transformer").mkdir(parents=True)
    (run / "student" / "transformer" / "weights.safetensors").write_bytes(b"w")
    describe_student(run / "student", 4)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "student": {"update": 3, "weights": "old"}}))
    page = report_study(tmp_path / "mixture").read_text()
    line = "trial-0001: scores are of update 3, the student of update 4: run workbench evaluate"
    assert line in page and line in capsys.readouterr().out and page.count("scores are of") == 1


def test_a_collapse_is_called_one_and_noise_is_not(tmp_path: Path) -> None:
    def trend(recipe: Recipe) -> list[float]:
        return [0.0, 0.8 if recipe.mixture.tasks["t2i"] == 1 else 0.001, 0.0]

    def scores(recipe: Recipe, score: float) -> dict[str, Any]:
        return {"10": {"score": score - 0.5}, "30": {"score": score}}

    conduct(MIXTURE, tmp_path / "mixture", World(trend=trend, milestones=scores), seeds=(0, 1, 2))
    found = arms.read_arms(tmp_path / "mixture", arms.read_study(tmp_path / "mixture"))
    rows = {row["arm"]: row for row in collapse.fall_rows(tmp_path / "mixture", found)}
    assert rows["t2i-only"]["alarm"] and rows["t2i-only"]["peaks"] == [20] and rows["t2i-only"]["runs"] == 3
    assert rows["t2i-only"]["fall"] == pytest.approx(0.8, abs=0.1)
    assert not rows["5:5"]["alarm"] and rows["5:5"]["fall"] == pytest.approx(0.001, abs=0.1)
    page = report_study(tmp_path / "mixture").read_text()
    assert page.count(">collapse<") == 1 and page.count(">no collapse shown<") == 2 and "score at milestones" in page


def test_a_fall_is_of_the_milestones_and_cases_that_all_runs_have(tmp_path: Path) -> None:
    conduct(MIXTURE, tmp_path / "s", World(trend=lambda recipe: [0.0, 1.0, 0.5]), seeds=(0, 1))
    first = arms.read_arms(tmp_path / "s", arms.read_study(tmp_path / "s"))[0]
    log = arms.run_folder(tmp_path / "s", first.finished[0])
    assert log is not None
    lines = (log / "milestone_cases.jsonl").read_text().replace('"case-7": ', '"other": ').splitlines()
    (log / "milestone_cases.jsonl").write_text("\n".join([lines[0], lines[1], lines[2][:40]]))
    found = collapse.milestones_of(tmp_path / "s", first)
    assert list(found) == [10, 20] and {of.shape for of in found[10].values()} == {(2, 7)}


def test_draws_of_a_search_are_no_arm_that_falls(tmp_path: Path) -> None:
    world = World(effect=better_with_any, seed_sd=0.01, trend=lambda recipe: [0.3, 0.0])
    conduct(MIXTURE, tmp_path / "s", world, draws=6)
    assert study_values(tmp_path / "s")["collapses"] == []


FACTORS = StudyFile(
    QUESTION="Which factors?",
    FACTORS={
        "beta1": ({"optim": {"beta1": 0.1}}, {"optim": {"beta1": 0.9}}),
        "EMA": ({}, {"optim": {"ema_decay": 0.5}}),
        "R": ({}, {"dmd": {"fake_updates": 3}}),
        "shift": ({}, {"dmd": {"student_shift": Times(2)}}),
    },
    MARGIN=0.2,
)


def test_a_screening_says_which_factors_matter(tmp_path: Path, report: Report) -> None:
    def effect(recipe: Recipe, bench: str) -> float:
        return 0.4 * (recipe.optim.beta1 > 0.5) - 0.3 * (recipe.dmd.fake_updates == 3)

    conduct(FACTORS, tmp_path / "s", World(effect=effect, noise_sd=0.02, seed_sd=0.02, cases=3), seeds=(0,))
    text, values = report(tmp_path / "s")
    first = text[: text.index("<h2>Main effects")]
    assert "What moves the score, from the low level to the high one: beta1 +0." in first and "; R -0." in first
    assert "By less than 0.2: " in first and ">answered<" in first and "Margin: a difference below 0.2 " in first
    rows = {row["name"]: row for row in values["effects"] if row["objective"] == "score"}
    assert rows["beta1"]["difference"] == pytest.approx(0.4, abs=0.05)
    assert rows["R"]["difference"] == pytest.approx(-0.3, abs=0.05)
    assert {rows[name]["kind"] for name in ("EMA", "shift")} == {"equivalent"}
    assert "Lenth" in text and "<h2>Against" not in text and "dmd.student_shift x 2" in text
    console = Console(record=True, width=200, file=io.StringIO())
    table.print_table(tmp_path / "s", console)
    assert "beta1: +0." in console.export_text()


def test_runs_of_several_seeds_give_effects_over_fresh_runs_and_cases() -> None:
    generator, factors = np.random.default_rng(0), [{"name": name, "low": "", "high": ""} for name in "abcd"]
    found = []
    for run, level in enumerate(design(4)):
        runs = 3 + 0.2 * level[2] + 0.02 * generator.standard_normal((2, 1)) + 0.05 * generator.standard_normal((2, 20))
        cases = [{("t2i_bench", "text", f"{i}", 0): float(x) for i, x in enumerate(of)} for of in runs]
        finished = [{"values": {"t2i": float(of.mean())}} for of in runs]
        found.append(arms.Arm(f"run-{run:02d}", finished, finished, cases))
    generator.shuffle(found)  # type: ignore[arg-type]
    measured = comparisons.measure(found, "t2i", None)
    rows = effects.effect_rows(measured, factors, 0.05)
    assert [row["kind"] for row in rows] == ["matters", *["equivalent"] * 3] and rows[0]["name"] == "c"
    assert rows[0]["difference"] == pytest.approx(0.4, abs=0.03) and rows[0]["seeds"] == 2
    undecided = effects.effect_rows(measured, factors, 0.004)[-1]
    assert undecided["kind"] == "undecided" and "seeds a run" in undecided["takes"]
    assert effects.effect_rows(comparisons.measure(found[1:], "t2i", None), factors, 0.05) == []


def test_a_screening_waits_for_all_of_its_runs(tmp_path: Path) -> None:
    world = World(fails={"trial-0003": "diverged"}, cases=1)
    conduct(FACTORS, tmp_path / "s", world, seeds=(0,))
    page = report_study(tmp_path / "s").read_text()
    assert "Main effects need every run of the design: 1 have no score yet." in page and ">not answered yet<" in page


def test_all_arms_are_compared_with_each_other(tmp_path: Path, report: Report) -> None:
    conduct(MIXTURE, tmp_path / "s", World(effect=better_with_edits, seed_sd=0.01), seeds=(0, 1, 2))
    text, values = report(tmp_path / "s")
    cells = {row["name"]: row["cells"] for row in values["among_all"]}
    assert cells["edit-only"]["t2i-only"]["shown"] == "better" and cells["t2i-only"]["edit-only"]["shown"] == "worse"
    assert cells["edit-only"]["5:5"]["shown"] == ""
    one, other = cells["5:5"]["t2i-only"], cells["t2i-only"]["5:5"]
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))
    against_first = next(row for row in values["comparisons"] if row["arm"] == "5:5" and row["objective"] == "score")
    assert one["difference"] == pytest.approx(against_first["difference"])
    assert one["high"] - one["low"] > against_first["high"] - against_first["low"], "three pairs, not two"
    assert "<h2>Among all arms" in text


def test_the_first_screen_has_a_verdict_for_every_category_and_the_margin(tmp_path: Path) -> None:
    world = World(effect=better_with_edits, seed_sd=0.002, noise_sd=0.002, cases=12)
    conduct(replace(MIXTURE, MARGIN=0.25), tmp_path / "s", world, seeds=(0, 1, 2))
    page = report_study(tmp_path / "s").read_text()
    first = page[: page.index("<h2>Arms")]
    assert first.count("<small>better</small>") == 18 and "Margin: a difference below 0.25 points" in first
    study = arms.read_study(tmp_path / "s")
    found = arms.read_arms(tmp_path / "s", study)
    five = comparisons.measure(found, "score", "5:5")
    verdicts = comparisons.by_category(five, 0.25)
    assert [verdicts["t2i-only", key] for key in KEYS] == ["worse"] * 3
    assert {verdicts["edit-only", key] for key in KEYS} <= {"better", "equivalent"}


KEYS = [("t2i_bench", name) for name in ("landscape", "portrait", "text")]


def test_a_trial_tried_again_counts_once(tmp_path: Path) -> None:
    rows = [
        {"number": n, "entry": "a@0", "run": "trial-0000", "state": state, "values": {"score": 3.0} if done else {}}
        for n, (state, done) in enumerate([("fail", False), ("complete", True), ("fail", False)])
    ]
    (tmp_path / "study.json").write_text(json.dumps({"arms": [{"name": "a", "trials": rows}]}))
    (arm,) = arms.read_arms(tmp_path, arms.read_study(tmp_path))
    assert [trial["number"] for trial in arm.trials] == [1] and arm.values("score") == [3.0]


def test_a_contact_sheet_comes_apart_again() -> None:
    generator = np.random.default_rng(0)
    columns = {name: [generator.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(2)] for name in "abc"}
    assert contact_sheet(columns, ["one", "two"]).width > contact_sheet(columns).width
    cells = cut_sheet(contact_sheet(columns), list(columns), 2)
    for name, column in columns.items():
        np.testing.assert_array_equal(cells[name], column)


def test_runs_stand_side_by_side_on_the_same_cases(tmp_path: Path) -> None:
    world = World(sheets=True, cases=1)
    for seed in (1, 2):
        world(replace(base_recipe(), seed=seed), tmp_path / f"trial-{seed}")
    sheets = side_by_side([("one", tmp_path / "trial-1"), ("two", tmp_path / "trial-2")])
    assert [sheet["category"] for sheet in sheets] == ["landscape", "portrait", "text"]
    assert sheets[0]["columns"] == 4 and sheets[0]["prompts"] == ["prompt 0 of landscape", "prompt 1 of landscape"]


def test_passes_are_draws_over_prompts(tmp_path: Path) -> None:
    recipe = base_recipe(
        "trainer.updates=10", "mixture.batch_size=6", "mixture.tasks={t2i: 1.0}", f"data.encoded={tmp_path}",
        "mixture.categories={t2i: {landscape: 0.5, text: 0.5}}",
        "data.samples={t2i: {landscape: 5, portrait: 7, text: 10}}",
    )  # fmt: skip
    assert passes_per_prompt(recipe) == {"t2i/landscape": 6.0, "t2i/text": 3.0}


def test_passes_are_of_categories_that_the_data_have(tmp_path: Path) -> None:
    recipe = base_recipe(
        "trainer.updates=10", "mixture.batch_size=6", "data.source=my_images", f"data.encoded={tmp_path}"
    )
    assert passes_per_prompt(recipe) == {}, "nobody knows here what those data hold"
    samples = [{"task": task, "category": "cats"} for task in ("t2i", "t2i", "t2i", "edit")]
    (tmp_path / "index.json").write_text(json.dumps({"samples": samples}))
    assert passes_per_prompt(recipe) == {"t2i/cats": 10.0, "edit/cats": 30.0}
    world = replace(recipe, data=replace(recipe.data, source="openmoji"))
    assert passes_per_prompt(world) == passes_per_prompt(recipe), "what was encoded counts, whatever it was made from"


def test_every_trial_of_a_study_has_every_column_of_hyper_parameters() -> None:
    shipped, base = KNOWN["teacher-guidance"], base_recipe()
    columns = study_file.columns(shipped, base)
    rows = [study_file.values_of(vary(base, overrides), columns) for overrides in shipped.ARMS.values()]
    key = "guidance.schedules.t2i/text.kind"
    kinds = ["", "switch", "constant", "", *["constant"] * 3, *["switch"] * 3, "alternate", "ramp", ""]
    kinds += ["switch", "constant", *["", "switch", "constant"] * 2]
    assert [row[key] for row in rows] == kinds
    assert all(set(row) == set(columns) for row in rows)
    assert all(len({isinstance(row[key], str) for row in rows}) == 1 for key in columns), "one type a column"


def test_lambda_is_a_picture_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = base_recipe("guidance.schedules={default: {kind: ramp, weights: {text: 1.0}}}")
    log_trial(tmp_path, recipe, {"arm": "a"}, {"score": 3.0})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["lambda"] and "_hparams_/session_start_info" in events.summary_metadata
    picture = plots.lambda_picture({"default": [[1, 0], [0, 1]]}, ["base", "text"])
    assert picture.ndim == 3 and picture.dtype == np.uint8 and picture.std() > 10
