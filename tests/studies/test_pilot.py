"""The pilot: what it runs, what it should cost, and that it is run in pieces."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from studies import pilot
from studies.machine.runner import run_study
from workbench.common.errors import UserError
from workbench.recipe.config import Evaluation, Recipe, Trainer

GPU = "recipe=studies/recipes/gpu.yaml"


def test_all_parts_are_planned_on_the_whole_benchmarks(tmp_path: Path) -> None:
    parts = pilot.planned(pilot.read([GPU, f"folder={tmp_path / 'pilot'}"]))
    assert {part.name: len(part.plan.entries) for part in parts} == {
        **{"noise-floor": 5, "composition": 9, "tasks": 6, "budget": 9},
        **{"noise-floor-long": 5, "guidance": 15},
    }
    for part in parts:
        for entry in part.plan.entries:
            recipe = part.plan.recipes[entry.arm]
            assert 3 * recipe.evaluation.t2i_cases + 6 * recipe.evaluation.editing_cases == 3300
            long = part.name in ("noise-floor-long", "guidance")
            assert recipe.trainer.updates == (2000 if long else 300), "that of the base recipe"
            assert bool(recipe.evaluation.milestone_cases) == long
    assert not (tmp_path / "pilot").exists()


def test_seconds_are_those_of_updates_answers_and_starts() -> None:
    pace = pilot.Pace(update=1.0, shared_update=0.5, case=0.01, start=7.0)
    trainer, of = Trainer(updates=100, sample_every=50), Evaluation(t2i_cases=10, editing_cases=5)
    recipe = Recipe(trainer=trainer, evaluation=of)
    assert pilot.estimated_s(recipe, 1, pace) == pytest.approx(7 + 100 + 0.01 * (3 * 10 + 6 * 5))
    # Two milestones, the second one at the end, of nine categories.
    watched = Recipe(trainer=trainer, evaluation=Evaluation(t2i_cases=10, editing_cases=5, milestone_cases=2))
    assert pilot.estimated_s(watched, 3, pace) == pytest.approx(7 + 50 + 0.01 * (60 + 2 * 2 * 9))


class Fake:
    """Scores without training; where it is told, the time is up in the middle of a trial."""

    def __init__(self, rings_at: int | None = None) -> None:
        self.rings_at = rings_at
        self.asked: list[tuple[str, Path]] = []

    def __call__(self, name: str, arguments: Sequence[str]) -> object:
        def execute(recipe: Recipe, folder: Path) -> dict[str, Any]:
            self.asked.append((name, folder))
            if len(self.asked) == self.rings_at:
                signal.raise_signal(signal.SIGALRM)
            share, steps = recipe.mixture.tasks["t2i"], recipe.dmd.student_steps
            benches = {f"{bench}_bench": {"mean": {"mean": 3 + share * steps / 10}} for bench in ("t2i", "editing")}
            return {"split": "search", "models": {"student": {"nfe": steps, "n": 3, **benches}}}

        return run_study(name, arguments, execute=execute)


def test_a_piece_ends_in_time_and_the_next_one_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["smoke=true", "seeds=0", "only=tasks,budget", f"folder={tmp_path}", "minutes=10"]
    options = pilot.read(words)
    first = Fake(rings_at=4)
    assert not pilot.run(options, first)
    assert [part.left for part in pilot.planned(options)] == [0, 2], "of two and of three trials"
    assert "the same command goes on" in capsys.readouterr().out and (tmp_path / "tasks" / "report.html").is_file()
    assert [part.failed for part in pilot.planned(options)] == [0, 0]
    rest = Fake()
    assert pilot.run(options, rest)
    assert [name for name, _ in rest.asked] == ["student-budget"] * 2
    assert first.asked[3] in rest.asked, "what was cut short goes on in its run folder"
    assert pilot.run(options, lambda *_: pytest.fail("all is done"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("arms=5:5", "arms= is not for the pilot"),
        ("only=guidanc", "no part 'guidanc' .*guidance"),
        ("minutes=0", "minutes must be above 0"),
        ("minutes=soon", "'soon' is not a number"),
        ("dry_run=maybe", "must be true or false"),
        ("tasks", "not of the form key=value"),
    ],
)
def test_words_that_cannot_be(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pilot.read([word])
