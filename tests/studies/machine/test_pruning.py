"""The median rule, and the noise floor inside which nothing is pruned."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as some
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies.catalogue import KNOWN
from studies.machine import pruning, session
from workbench.common.errors import UserError

STUDY = KNOWN["noise-floor"]
DONE = {"number": 0, "state": "complete"}
SCORES = some.lists(some.floats(1, 5), min_size=4, max_size=9)


@given(SCORES, some.floats(1, 5), some.floats(0, 1))
def test_nothing_inside_the_noise_floor_is_pruned(others: list[float], score: float, sd: float) -> None:
    behind = pruning.is_behind(score, others, sd)
    assert behind == (statistics.median(others) - score > 2 * sd)
    assert not pruning.is_behind(score, others[:3], sd), "three others make no median"


def test_others_are_the_newest_trials_of_other_runs() -> None:
    def trial(number: int, run: str, value: float) -> FrozenTrial:
        made = create_trial(state=TrialState.FAIL, user_attrs={"run": run}, intermediate_values={10: value})
        made.number = number
        return made

    trials = [trial(0, "a", 1.0), trial(1, "b", 2.0), trial(2, "a", 3.0), trial(3, "c", float("nan"))]
    assert sorted(pruning.scores_at(10, trials, excluded=9)) == [2.0, 3.0]
    assert pruning.scores_at(10, trials, excluded=1) == [3.0]
    assert pruning.scores_at(20, trials, excluded=9) == []


def test_the_pruner_compares_the_last_score_with_those_of_other_runs_at_its_update() -> None:
    optuna_study = optuna.create_study(direction="maximize", pruner=pruning.NoiseFloorPruner(0.1))
    for number, score in enumerate((3.0, 3.1, 3.2, 3.3)):
        values = {10: score, 20: 9.0}
        optuna_study.add_trial(
            create_trial(value=score, intermediate_values=values, user_attrs={"run": f"trial-{number:04d}"})
        )
    trial = optuna_study.ask()
    assert not trial.should_prune(), "no score yet"
    for score, update, is_pruned in ((2.96, 10, False), (8.7, 20, True)):
        trial.report(score, update)
        assert trial.should_prune() == is_pruned


def test_milestones_are_read_up_to_a_line_cut_short(tmp_path: Path) -> None:
    assert pruning.read_milestones(tmp_path) == {}
    (tmp_path / "milestones.jsonl").write_text('{"update": 5, "score": 3.5, "t2i": 3}\n{"update": 10, "sco')
    assert pruning.read_milestones(tmp_path) == {5: {"score": 3.5, "t2i": 3.0}}


def test_the_noise_floor_is_the_widest_spread_over_seeds(tmp_path: Path) -> None:
    assert pruning.noise_floor_of(tmp_path, "score") is None
    finals, halfway = [3.0, 3.2, 3.1], [2.0, 3.0, 2.6]
    trials = [
        {
            **DONE,
            "values": {"score": final, "t2i": 2 * final},
            "milestones": {"5": {"distance": 9 * half}, "10": {"distance": 0.1, "score": half}},
        }
        for final, half in zip(finals, halfway, strict=True)
    ]
    drawn = [{**DONE, "values": {"score": 9 * final, "t2i": 9 * final}} for final in finals]
    told = [{"name": "recipe", "trials": [*trials, {**DONE, "values": {}}]}, {"name": "search", "trials": drawn}]
    (tmp_path / "study.json").write_text(json.dumps({"arms": told}))
    assert pruning.noise_floor_of(tmp_path, "score") == pytest.approx(statistics.stdev(halfway))
    assert pruning.noise_floor_of(tmp_path, "t2i") == pytest.approx(2 * statistics.stdev(finals))
    assert pruning.noise_floor_of(tmp_path, "editing") is None


def test_a_noise_floor_beside_prunes_only_where_milestones_are_scored(tmp_path: Path) -> None:
    trials = [{**DONE, "values": {"score": score}} for score in (3.0, 3.2, 3.1)]
    (tmp_path / "noise-floor").mkdir()
    (tmp_path / "noise-floor" / "study.json").write_text(json.dumps({"arms": [{"name": "recipe", "trials": trials}]}))
    words = ["smoke=true", "search=true", f"folder={tmp_path / 'x'}"]
    assert session.plan_of("x", words, STUDY).noise_floor is None
    plan = session.plan_of("x", [*words, "evaluation.milestone_cases=1"], STUDY)
    assert plan.noise_floor == pytest.approx(0.1)
    plan = session.plan_of("x", [*words, "evaluation.milestone_cases=1", "noise_floor=0.3"], STUDY)
    assert plan.noise_floor == 0.3


def test_nothing_is_pruned_where_stability_is_the_question(tmp_path: Path) -> None:
    words = ["smoke=true", "search=true", f"folder={tmp_path / 'x'}", "evaluation.milestone_cases=1"]
    words += ["teachers.specialists={portrait: p.safetensors, text: t.safetensors, editing: e.safetensors}"]
    with pytest.raises(UserError, match="this study says PRUNES = False"):
        session.plan_of("x", [*words, "noise_floor=0.3"], KNOWN["teacher-guidance"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search=true", "noise_floor=0.1"], "evaluation.milestone_cases=4"),
        (["noise_floor=0.1"], "only a search with one objective prunes"),
        (["noise_floor=0"], "above 0"),
        (["budget=soon"], "not a number"),
        (["workers=0"], "at least 1"),
        (["devices=0", "trainer.devices=2", "trainer.strategy=fsdp"], "too few for trials of trainer.devices=2"),
        (["workers=2", "trainer.devices=2", "trainer.accelerator=gpu"], "need devices= with 4 GPUs"),
    ],
)
def test_options_that_contradict_are_named(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        session.plan_of("x", ["smoke=true", f"folder={tmp_path / 'x'}", *words], STUDY)
