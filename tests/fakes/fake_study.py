"""A study of fast fake trials that worker processes can import: `python -c "from fake_study import main; main()"`.

What a trial does is told by files in the study folder, since a process takes no closures along.
"""

from __future__ import annotations

import sys

import optuna
from fake_trial import execute

from studies import study
from studies.machine import workers
from studies.machine.intervals import Intervals
from studies.machine.trial_process import TrialProcess
from studies.reading import study_of
from workbench.recipe.config import Recipe

WORKER = (sys.executable, "-c", "from fake_study import main; main()")

QUESTION = "Does the machine lose anything?"
ARMS: dict[str, study.Differences] = {
    name: {"dmd": {"student_shift": shift}} for name, shift in (("a", 2.0), ("b", 4.0))
}


INTERVALS = Intervals(supervisor=0.2, idle=0.2, trial=0.1)
"""Fake trials are short."""


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    return study.vary(base, {"dmd": {"student_shift": trial.suggest_float("shift", 1.0, 5.0)}})


STUDY = study_of(sys.modules[__name__])


def main() -> None:
    """A worker of this study."""
    workers.main(lambda name: STUDY, TrialProcess(execute))


if __name__ == "__main__":
    # A whole command: `python fake_study.py FOLDER words...`, as another host would start it.
    from studies.machine import runner

    runner.run_study("fake", sys.argv[1:], study=STUDY, worker=WORKER, intervals=INTERVALS)
