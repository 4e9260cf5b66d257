"""Studies without training: fake trials give known metrics."""

from __future__ import annotations

import json
import math
import subprocess
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console
from sqlalchemy.exc import OperationalError
from study_fakes import SPECIALISTS

from studies import study, task_mixture
from studies.analysis import table
from studies.catalogue import KNOWN
from studies.guidance_sections import STEP_WISE
from studies.machine import options, progress, runner, session, study_file, trial, trial_queue, workers
from studies.machine.definition import definition_changes, definition_of
from studies.machine.intervals import Intervals
from studies.machine.storage import connect
from studies.reading import StudyFile
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load, recipe_hash

SMOKE = options.RECIPES / "smoke.yaml"
SMALL = ["smoke=true", SPECIALISTS]


SHIPPED = KNOWN["task-mixture"]
THREE = StudyFile(
    QUESTION=SHIPPED.QUESTION,
    ARMS={arm: SHIPPED.ARMS[arm] for arm in ("t2i-only", "7:3", "5:5")},
    suggest=SHIPPED.suggest,
)
"""Three arms of the study of task ratios."""


def metrics_of(t2i: float, editing: float, split: str = "search") -> dict[str, Any]:
    """metrics.json with these means of the student."""
    student = {"nfe": 4, "n": 3, "t2i_bench": {"mean": {"mean": t2i}}, "editing_bench": {"mean": {"mean": editing}}}
    return {"split": split, "models": {"student": student}}


class FakeTrials:
    """Scores that depend on the recipe alone; remembers what it was asked to run; fails or stops where told."""

    def __init__(self, fails: tuple[int, ...] = (), stops: tuple[int, ...] = ()) -> None:
        self.asked: list[tuple[Recipe, Path]] = []
        self.fails, self.stops = fails, stops

    def __call__(self, recipe: Recipe, folder: Path) -> dict[str, Any]:
        call = len(self.asked)
        self.asked.append((recipe, folder))
        if call in self.fails:
            raise study.TrialFailed("workbench distill ended with 1: error: no\nluck")
        if call in self.stops:
            raise KeyboardInterrupt
        share = recipe.mixture.tasks["t2i"]
        return metrics_of(3 + share + 0.01 * recipe.seed, 4 - share)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*SMALL, f"folder={tmp_path / 'mixture'}"]


def read_study(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """study.json as arm -> content."""
    content = json.loads((tmp_path / "mixture" / "study.json").read_text())
    return {arm["name"]: arm for arm in content["arms"]}


def test_every_arm_runs_under_every_seed_once(tmp_path: Path, words: list[str]) -> None:
    fake = FakeTrials()
    runner.run_study("task-mixture", [*words, "seeds=3,5", "mixture.batch_size=8"], study=THREE, execute=fake)
    entries = [(recipe.mixture.tasks, recipe.seed) for recipe, _ in fake.asked]
    shares = ({"t2i": 1.0, "edit": 0.0}, {"t2i": 0.7, "edit": 0.3}, {"t2i": 0.5, "edit": 0.5})
    assert entries == [(share, seed) for seed in (3, 5) for share in shares]
    assert [folder.name for _, folder in fake.asked] == [f"trial-{number:04d}" for number in range(6)]
    for recipe, folder in fake.asked:
        assert recipe.evaluation.split == "search"
        assert recipe.mixture.batch_size == 8
        assert recipe.trainer.folder == str(folder)
    arms = read_study(tmp_path)
    assert list(arms) == list(THREE.ARMS)
    assert [run["seed"] for run in arms["7:3"]["trials"]] == [3, 5]
    assert arms["7:3"]["trials"][0]["score"] == pytest.approx((3.73 + 3.3) / 2)


def test_a_second_call_repeats_nothing_and_a_new_seed_adds_only_itself(words: list[str]) -> None:
    runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=FakeTrials())
    again = FakeTrials()
    runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=again)
    assert again.asked == []
    more = FakeTrials()
    runner.run_study("task-mixture", [*words, "seeds=0,1"], study=THREE, execute=more)
    assert [recipe.seed for recipe, _ in more.asked] == [1, 1, 1]


def test_a_failing_trial_is_recorded_and_tried_again_in_its_own_folder(tmp_path: Path, words: list[str]) -> None:
    first = FakeTrials(fails=(1,))
    runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=first)
    assert len(first.asked) == 3
    (failed,) = read_study(tmp_path)["7:3"]["trials"]
    assert failed["state"] == "fail"
    assert failed["score"] is None
    assert failed["error"] == "TrialFailed: workbench distill ended with 1: error: no luck"
    second = FakeTrials()
    optuna_study = runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=second)
    assert [(recipe.mixture.tasks["t2i"], folder.name) for recipe, folder in second.asked] == [(0.7, "trial-0001")]
    assert {trial.params["arm"] for trial in optuna_study.trials if trial.value is not None} == set(THREE.ARMS)


def test_an_interrupt_stops_the_study_and_the_same_command_continues_the_trial(words: list[str]) -> None:
    first = FakeTrials(stops=(1,))
    with pytest.raises(KeyboardInterrupt):
        runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=first)
    second = FakeTrials()
    runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=second)
    assert [folder.name for _, folder in second.asked] == ["trial-0001", "trial-0002"]


def test_trials_bounds_one_call(words: list[str]) -> None:
    fake = FakeTrials()
    runner.run_study("task-mixture", [*words, "seeds=0", "trials=2"], study=THREE, execute=fake)
    runner.run_study("task-mixture", [*words, "seeds=0", "trials=2"], study=THREE, execute=fake)
    assert len(fake.asked) == 3


def test_chosen_arms_alone_are_run_and_the_rest_can_follow(words: list[str]) -> None:
    first, second = FakeTrials(), FakeTrials()
    runner.run_study("task-mixture", [*words, "seeds=0", "arms=7:3,t2i-only"], study=THREE, execute=first)
    assert [recipe.mixture.tasks["t2i"] for recipe, _ in first.asked] == [1.0, 0.7]
    runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=second)
    assert len(second.asked) == 1


def test_no_score_at_all_is_an_error_with_the_trials_own_words(words: list[str]) -> None:
    with pytest.raises(UserError, match="no trial of the study .* error: no luck"):
        runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=FakeTrials(fails=(0, 1, 2)))


def test_search_draws_from_the_space_and_counts_trials(words: list[str]) -> None:
    fake = FakeTrials()
    optuna_study = runner.run_study("task-mixture", [*words, "search=true", "trials=4"], study=THREE, execute=fake)
    for recipe, _ in fake.asked:
        assert 0 <= recipe.mixture.tasks["t2i"] <= 1
        assert sum(recipe.mixture.tasks.values()) == pytest.approx(1)
    assert len(optuna_study.trials) == 4


def test_a_failed_draw_is_tried_again_by_the_same_command(words: list[str]) -> None:
    search = [*words, "search=true", "trials=3"]
    first, second = FakeTrials(fails=(1,)), FakeTrials()
    runner.run_study("task-mixture", search, study=THREE, execute=first)
    runner.run_study("task-mixture", search, study=THREE, execute=second)
    assert [(r.mixture.tasks, folder) for r, folder in second.asked] == [
        (first.asked[1][0].mixture.tasks, first.asked[1][1])
    ]


def test_a_data_base_that_is_away_for_a_moment_is_waited_for(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a call reads it: every reading of all trials fails once."""
    read, failed = optuna.Study.get_trials, set()

    def flaky(optuna_study: optuna.Study, *given: Any, **named: Any) -> Any:
        place = str(traceback.extract_stack(limit=3)[:-1])
        if place not in failed:
            failed.add(place)
            raise OperationalError("select", {}, Exception("server closed the connection"))
        return read(optuna_study, *given, **named)

    monkeypatch.setattr(optuna.Study, "get_trials", flaky)
    runner.run_study("task-mixture", [*words, "seeds=0", "trials=1"], study=THREE, execute=FakeTrials())
    assert failed


def test_another_recipe_may_not_enter_the_same_study(words: list[str]) -> None:
    runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=FakeTrials())
    with pytest.raises(UserError, match=r"another base recipe.* \(optim\.student_lr was .*, is 0\.001\); give a new"):
        runner.run_study(
            "task-mixture", [*words, "seeds=0", "optim.student_lr=1e-3"], study=THREE, execute=FakeTrials()
        )
    fewer = {arm: of for arm, of in THREE.ARMS.items() if arm != "7:3"}
    other = {"mixture": {"tasks": {"t2i": 0.625, "edit": 0.375}}}
    for changed, said in (
        (replace(THREE, ARMS={**THREE.ARMS, "7:3": other}), r"arm '7:3' is another recipe"),
        (replace(THREE, ARMS=fewer), r"arm '7:3' is gone"),
        (replace(THREE, ARMS={**THREE.ARMS, "more": other}), r"arm 'more' is new"),
        (replace(THREE, MARGIN=0.5), r"margin was 0\.05, is 0\.5"),
    ):
        with pytest.raises(UserError, match=said):
            runner.run_study("task-mixture", [*words, "seeds=0"], study=changed, execute=FakeTrials())


def test_a_key_that_recipes_had_not_yet_makes_no_other_study() -> None:
    now = definition_of(THREE, Recipe(), {})
    before = {**now, "recipe": {key: value for key, value in now["recipe"].items() if key != "trainer.start"}}
    assert definition_changes(before, now) == ""
    changed = definition_of(THREE, replace(Recipe(), trainer=replace(Recipe().trainer, start="runs/a")), {})
    assert definition_changes(before, changed) == "trainer.start was , is runs/a"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("seds=0", "unknown option 'seds' .did you mean 'seeds'"),
        ("seed=1", "seeds=0,1,2"),
        ("trials=two", "not a whole number"),
        ("trials=0", "at least 1"),
        ("smoke=maybe", "true or false"),
        ("smoke", "key=value"),
        ("arms=7:4", "no arm '7:4' .did you mean '7:3'"),
        ("mixture.tasks={t2i: 0.5}", "must sum to 1"),
        ("recipe=nowhere.yaml", "no recipe at nowhere.yaml"),
        ("storage=nonsense://x:secret@y", "does not open"),
        ("storage=word", "does not open"),
    ],
)
def test_bad_words_name_themselves(tmp_path: Path, words: list[str], extra: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        runner.run_study("task-mixture", [*words, extra], study=THREE, execute=FakeTrials())
    assert "secret" not in str(raised.value)
    assert "storage" in extra or not (tmp_path / "mixture").exists()


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(UserError, match="task-mixtur'.*noise-floor, .*task-mixture"):
        runner.run_study("task-mixtur", [])


def test_an_arm_that_is_no_recipe_is_found_before_anything_is_written(tmp_path: Path, words: list[str]) -> None:
    arms = {"fine": {"seed": 0}, "odd": {"mixture": {"tasks": {"t2i": 2.0}}}}
    with pytest.raises(UserError, match=r"arm 'odd'.*sum to 1"):
        runner.run_study("broken", words, study=StudyFile("?", arms), execute=FakeTrials())
    assert not (tmp_path / "mixture").exists()


def test_the_objective_needs_no_study(tmp_path: Path) -> None:
    base, fake = load(SMOKE), FakeTrials()
    fixed = optuna.trial.FixedTrial({"arm": "5:5", "seed": 7}, number=12)
    recipe, seed = workers.recipe_of(fixed, SHIPPED, base, options.parse("x", [f"folder={tmp_path}"]))
    assert seed == 7
    assert study.objectives(fake(replace(recipe, seed=seed), tmp_path), ["score"]) == pytest.approx([(3.57 + 3.5) / 2])


def test_suggest_keeps_everything_but_the_ratio() -> None:
    base = load(SMOKE)
    drawn = task_mixture.suggest(optuna.trial.FixedTrial({"t2i_share": 0.35}), base)
    assert drawn.mixture.tasks == {"t2i": 0.35, "edit": 0.65}
    guided = study.vary(base, {"guidance": STEP_WISE})
    assert replace(drawn, mixture=replace(drawn.mixture, tasks=base.mixture.tasks)) == guided


def test_arms_differ_in_the_ratio_alone_or_in_what_keeps_the_t2i_samples() -> None:
    base = study.vary(load(SMOKE, ["mixture.batch_size=1000"]), {"guidance": STEP_WISE})
    for name, differences in task_mixture.ARMS.items():
        arm = study.vary(base, differences)
        size = arm.mixture.batch_size if name.endswith("-half") else 1000
        same = replace(base.mixture, tasks=arm.mixture.tasks, batch_size=size)
        assert recipe_hash(arm) == recipe_hash(replace(base, mixture=same))
        if name.endswith("-half") or name == "5:5":
            assert arm.mixture.batch_size * arm.mixture.tasks["t2i"] == pytest.approx(500, abs=1)


def test_the_score_is_the_mean_of_both_benches_on_the_search_split() -> None:
    assert study.objectives(metrics_of(3.0, 4.0), ["score", "editing", "t2i"]) == [3.5, 4.0, 3.0]
    with pytest.raises(study.TrialFailed, match="search split"):
        study.objectives(metrics_of(3.0, 4.0, split="report"), ["score"])
    with pytest.raises(study.TrialFailed, match="no finite score"):
        study.objectives(metrics_of(math.nan, 4.0), ["score"])
    with pytest.raises(study.TrialFailed, match="no finite variety"):
        study.objectives(metrics_of(3.0, 4.0), ["score", "variety"])


def test_hyperparameters_are_what_differs() -> None:
    base = load(SMOKE)
    changed = study.vary(base, {"mixture": {"tasks": {"t2i": 1.0}}, "optim": {"student_lr": 0.5}})
    assert study_file.differences(changed, base) == {
        "mixture.tasks.t2i": 1.0,
        "mixture.tasks.edit": 0.0,
        "optim.student_lr": 0.5,
    }


def test_hparams_reach_the_trials_own_tensorboard(tmp_path: Path, words: list[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runner.run_study("task-mixture", [*words, "seeds=0", "trials=1"], study=THREE, execute=FakeTrials())
    events = EventAccumulator(str(tmp_path / "mixture" / "trial-0000" / "tensorboard")).Reload()
    (scalar,) = events.Scalars("search/score")
    assert scalar.value == pytest.approx(3.5)
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_what_a_killed_call_could_not_write_the_next_one_does(tmp_path: Path, words: list[str]) -> None:
    def execute(recipe: Recipe, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        return metrics_of(3.0, 4.0)

    runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=execute)
    told, rows = tmp_path / "mixture" / "study.json", tmp_path / "mixture" / "trial-0002" / "tensorboard"
    whole = told.read_text()
    told.write_text(whole.replace('"complete"', '"running"'))
    for row in rows.iterdir():
        row.unlink()
    runner.run_study("task-mixture", [*words, "seeds=0"], study=THREE, execute=execute)
    assert told.read_text() == whole
    assert list(rows.glob("*.hparams"))


def test_a_password_in_the_storage_is_not_written(tmp_path: Path) -> None:
    plan = session.plan_of("s", [*SMALL, f"folder={tmp_path}", "storage=postgresql://me:secret@host/db"], SHIPPED)
    retry = session.retry_for(plan.options)
    intervals = Intervals()
    storage = connect(f"sqlite:///{tmp_path}/x.db", intervals)
    opened = session.StudySession(plan, storage, optuna.create_study(), 1, retry, intervals)
    table.describe(opened.optuna_study, SHIPPED, plan.base, ["s", f"storage={plan.options.storage}"])
    progress.Progress(opened, trial_queue.Call("key", 0), Console()).write()
    assert "me:***@host" in (tmp_path / "study.json").read_text()
    assert "secret" not in (tmp_path / "study.json").read_text() and "secret" not in retry.name


def test_a_subprocess_that_fails_says_why() -> None:
    with pytest.raises(study.TrialFailed, match="workbench distill ended with 2: error: no recipe at absent.yaml"):
        trial.workbench("distill", "absent.yaml")


def test_an_interrupted_subprocess_interrupts_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    started = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **settings: started([command[0], "-c", "raise SystemExit(130)"], **settings),
    )
    with pytest.raises(KeyboardInterrupt):
        trial.workbench("distill", "any.yaml")
