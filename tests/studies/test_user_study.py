"""Study files of users: run like those that ship, or refused with an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studies.catalogue import study_named
from studies.machine import runner
from studies.machine.options import parse
from studies.study import objectives
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe

ARMS = """
from studies.study import Times

QUESTION = "Which shift?"
ARMS = {"low": {"dmd": {"student_shift": 2}}, "high": {"dmd": {"student_shift": Times(2)}}}
"""
HIGH = '{"dmd": {"student_shift": Times(2)}}'
LOW = '{"dmd": {"student_shift": 2}}'
FACTORS = f"""
QUESTION = "?"
FACTORS = {{
    "shift": ({{}}, {LOW}),
    "beta1": ({{"optim": {{"beta1": 0.1}}}}, {{"optim": {{"beta1": 0.9}}}}),
    "EMA": ({{}}, {{"optim": {{"ema_decay": 0.5}}}}),
    "R": ({{}}, {{"dmd": {{"fake_updates": 3}}}}),
}}
"""
GUIDED = """
QUESTION = "?"
ARMS = {"a": {"guidance": {"schedules": {"t2i": {"weights": {"text": 1.0}}}}}}
"""
SPACE = """
from studies.study import vary

QUESTION = "Which shift?"
OBJECTIVES = ["t2i", "editing"]


def suggest(trial, base):
    return vary(base, {"dmd": {"student_shift": trial.suggest_float("shift", 1, 5)}})
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scored_by_its_shift(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """metrics.json of a trial that was not run."""
    t2i, editing = recipe.dmd.student_shift / 2, 4 - recipe.dmd.student_shift / 5
    student = {"nfe": 4, "n": 3, "t2i_bench": {"mean": {"mean": t2i}}, "editing_bench": {"mean": {"mean": editing}}}
    return {"split": "search", "models": {"student": student}}


def written(content: str) -> str:
    Path("shifts.py").write_text(content)
    return "shifts.py"


def test_arms_of_a_file_are_replicated_over_three_seeds_under_its_name() -> None:
    optuna_study = runner.run_study(written(ARMS), ["smoke=true"], execute=scored_by_its_shift)
    recipes = {(trial.params["arm"], trial.params["seed"]) for trial in optuna_study.trials}
    assert recipes == {(arm, seed) for arm in ("low", "high") for seed in range(3)}
    content = json.loads(Path("runs/studies/shifts/study.json").read_text())
    assert content["question"] == "Which shift?"
    assert [arm["name"] for arm in content["arms"]] == [
        "low",
        "high",
    ]


def test_a_space_of_a_file_is_searched_without_being_asked() -> None:
    optuna_study = runner.run_study(written(SPACE), ["smoke=true", "trials=3"], execute=scored_by_its_shift)
    assert len({trial.params["shift"] for trial in optuna_study.trials}) == 3
    assert [len(trial.values) for trial in optuna_study.trials] == [2, 2, 2]


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("QUESTION = 'Which?'", [], "neither ARMS nor suggest"),
        ("ARMS = {}", [], "no QUESTION"),
        ("import nothing_of_this_name", [], "does not run: ModuleNotFoundError"),
        ("ARMS = {", [], "does not run: SyntaxError"),
        ("QUESTION = 3", [], "QUESTION must be a sentence"),
        (
            "QUESTION = 'Which?'\nARMS = {'low': ['dmd.student_shift=2']}",
            [],
            "ARMS must map names to nested",
        ),
        (ARMS + "SEEDS = ('0',)", [], "SEEDS must be whole numbers"),
        (ARMS + "OBJECTIVES = ('scores',)", [], "OBJECTIVES knows .*did you mean 'score'"),
        (ARMS + "SAMPLER = 'random'", [], "SAMPLER must be one of tpe, nsga2"),
        (ARMS.replace('student_shift": 2', 'student_shft": 2'), [], "arm 'low': .*student_shft"),
        (ARMS.replace(LOW, '{"evaluation": {"t2i_cases": 2}}'), [], "arm 'low' changes the evaluation"),
        (ARMS, ["search=true"], r"suggest: the file has no suggest\(trial, base\)"),
        (SPACE.replace('"shift", 1', '"shift", 9'), [], "suggest: ValueError"),
        (SPACE.replace("return vary", "vary"), [], "suggest gives NoneType, not a recipe"),
        (SPACE.replace('"shift", 1', '"arm", 1'), [], "suggest draws a parameter called 'arm'.*rename it"),
        (SPACE, ["seeds=0,1"], "a search draws and runs under one seed"),
        (ARMS.replace('"low"', '"search"'), [], "an arm may not be called 'search'"),
        (ARMS.replace(LOW, '{"seed": 3}'), [], "arm 'low' sets seed.*leave it out"),
        (ARMS.replace(LOW, '{"trainer": {"folder": "x"}}'), [], "arm 'low' sets trainer.folder.*leave it out"),
        (ARMS.replace("Times(2)", "Times(-1)"), [], "arm 'high'"),
        (ARMS.replace(HIGH, '{"model": {"folder": Times(2)}}'), [], "model.folder holds 'tiny', which is not a number"),
        (ARMS + "SEED = 0", [], r"it sets SEED, which no study has .did you mean 'SEEDS'..; known are .*, _SEED"),
        (ARMS + "if 1:\n    REPLICATES = 3", [], "it sets REPLICATES, which no study has.*; known are QUESTION"),
        (ARMS + "MARGIN = 0", [], "MARGIN must be points of the score above 0, got 0"),
        (ARMS + "PRUNES = 'no'", [], "PRUNES must be True or False"),
        (ARMS.replace(HIGH, LOW), [], "the arms 'low' and 'high' are one recipe: leave out one"),
        (FACTORS + f"ARMS = {{'low': {LOW}}}", [], "it has ARMS and FACTORS"),
        (FACTORS.replace(LOW, "3"), [], "FACTORS must map names to two levels"),
        (FACTORS.replace(LOW, "{}"), [], "the factor 'shift' has two levels that are one recipe"),
        (FACTORS + "del FACTORS['EMA']", [], "FACTORS has 3: a design has 4 to 16; fewer are arms"),
        (FACTORS + "FACTORS |= {str(i): ({}, {}) for i in range(13)}", [], "FACTORS has 17: a design has 4 to 16"),
        (FACTORS.replace("fake_updates", "student_shift"), [], "factors 'shift' and 'R' both set dmd.student_shift"),
        (FACTORS.replace("student_shift", "student_shft"), [], "factor 'shift': .*student_shft"),
        (
            GUIDED,
            [],
            "arm 'a': .*schedules.t2i.weights names 'text', but teachers.specialists has none: add it",
        ),
        (ARMS.replace(HIGH, '{"dmd": 3}'), [], "arm 'high': study: dmd must be a mapping of keys"),
        (
            ARMS + "OBJECTIVES = ('score', 'variety')\n",
            [],
            "variety compares the choices in 2 or more answers of a category, evaluation.t2i_cases is 1",
        ),
        ("raise SystemExit(3)", [], "does not run: SystemExit: 3"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_anything_is_written(
    content: str, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        runner.run_study(written(content), ["smoke=true", *words], execute=scored_by_its_shift)
    assert not Path("runs").exists()


def test_a_file_may_hold_constants_of_its_own_and_import_others() -> None:
    header = "from string import Template as T\nfrom studies.guidance_sections import ROUTES\n_SHIFT = 2\n"
    study = study_named(written(header + ARMS + "MARGIN = 0.1\nPRUNES = False\n"))
    assert (study.MARGIN, study.PRUNES) == (0.1, False)


def test_another_margin_is_another_study() -> None:
    here = ["smoke=true", "seeds=0"]
    runner.run_study(written(ARMS), here, execute=scored_by_its_shift)
    assert json.loads(Path("runs/studies/shifts/study.json").read_text())["margin"] == 0.05
    with pytest.raises(UserError, match="other arms or another margin"):
        runner.run_study(written(ARMS + "MARGIN = 0.1"), here, execute=scored_by_its_shift)


def test_factors_of_a_file_are_screened_in_the_runs_of_a_design() -> None:
    optuna_study = runner.run_study(written(FACTORS), ["smoke=true", "seeds=0"], execute=scored_by_its_shift)
    assert [trial.params["arm"] for trial in optuna_study.trials] == [f"run-{i:02d}" for i in range(1, 17)]
    content = json.loads(Path("runs/studies/shifts/study.json").read_text())
    assert content["factors"][:2] == [
        {"name": "shift", "low": "as the base", "high": "dmd.student_shift=2"},
        {"name": "beta1", "low": "optim.beta1=0.1", "high": "optim.beta1=0.9"},
    ]


def test_a_file_may_hold_data_classes() -> None:
    header = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    assert study_named(written(f"{header}@dataclass\nclass Shift:\n    value: float\n{ARMS}")).QUESTION


def test_names_are_printed_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    content = ARMS.replace("Which shift?", "Which [/b]?").replace("low", "low [/]").replace("high", "[b]")
    runner.run_study(written(content), ["smoke=true", "seeds=0,1"], execute=scored_by_its_shift)
    output = capsys.readouterr().out
    assert "Which [/b]?" in output and output.count("low [/]") >= 2 and "[b] against low [/]" in output


def test_an_arm_is_chosen_by_its_name_even_with_commas_and_brackets() -> None:
    known = ("0.98", "0.98, twice as long", "[x]")
    chosen = {
        "0.98, twice as long": (known[1],),
        "[0.98,0.98,twice as long]": (known[0], known[1]),
        "[x],0.98": (known[2], known[0]),
        "0.9,twice as long": ("0.9", "twice as long"),
    }
    for text, names in chosen.items():
        assert parse("x", [f"arms={text}"], known_arms=known).arms == names


def test_a_draw_that_is_scored_otherwise_fails_and_says_why() -> None:
    drawn = "trial.suggest_int('shift', 1, 5)"
    content = SPACE.replace("return", "cases = b.t2i_cases + (shift == 2)\n    return")
    content = content.replace("    cases", f"    shift, b = {drawn}, base.evaluation\n    cases")
    content = content.replace(
        '{"dmd": {"student_shift": trial.suggest_float("shift", 1, 5)}}', '{"evaluation": {"t2i_cases": cases}}'
    )
    optuna_study = runner.run_study(written(content), ["smoke=true", "trials=9"], execute=scored_by_its_shift)
    failed = {t.params["shift"]: t.user_attrs["error"] for t in optuna_study.trials if "error" in t.user_attrs}
    assert failed.keys() == {2} and failed[2].startswith("UserError: suggest changes the evaluation")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"no study file at nowhere\.py"):
        study_named("nowhere.py")


def test_a_study_without_its_data_ends_before_its_first_trial() -> None:
    with pytest.raises(UserError, match="no encoded shards at elsewhere.*run `workbench encode`"):
        runner.run_study(written(ARMS), ["smoke=true", "data.encoded=elsewhere"])
    assert not Path("runs").exists()


def test_data_are_asked_for_by_what_is_still_to_be_run() -> None:
    file, here = (
        written(ARMS.replace(HIGH, '{"data": {"encoded": "later"}}')),
        ["smoke=true", "seeds=0"],
    )
    runner.run_study(file, [*here, "data.encoded=gone", "arms=low"], execute=scored_by_its_shift)
    runner.run_study(file, [*here, "data.encoded=gone", "arms=low"])
    with pytest.raises(UserError, match="no encoded shards at later"):
        runner.run_study(file, [*here, "data.encoded=gone"])


def test_the_worst_category_of_either_bench_can_be_maximised() -> None:
    def bench(**means: float) -> dict[str, dict[str, float]]:
        return {name: {"mean": mean} for name, mean in means.items()}

    student = {"t2i_bench": bench(text=3.0, portrait=4.0, mean=3.5), "editing_bench": bench(style=2.5, mean=2.5)}
    assert objectives({"split": "search", "models": {"student": student}}, ("worst", "score")) == [2.5, 3.0]
