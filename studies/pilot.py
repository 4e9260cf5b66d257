"""The pilot of a campaign, a few studies one after the other in pieces of minutes: `make pilot`, or

    python -m studies.pilot [minutes=8] [only=noise-floor,guidance] [folder=runs/pilot] [dry_run=true] [key=value ...]

Other words (`recipe=studies/recipes/gpu.yaml workers=3 devices=0,1 optim.student_lr=1e-4`) go to every study. After
`minutes` the trials under way save their state and the command ends; so may any signal end it. The same command goes on
from there, and leaves what is finished alone. Every study has its folder and its report under `folder`.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from datamodules.openmoji import CATEGORIES
from datamodules.openmoji.benchmark import FULL_CASES
from studies.analysis import arms
from studies.catalogue import study_named
from studies.guidance_sections import SPECIALISTS
from studies.machine.options import positive_number
from studies.machine.runner import run_study
from studies.machine.session import Plan, plan_of
from studies.machine.trial_queue import CUT_SHORT
from workbench.common.errors import UserError, nearest
from workbench.common.tables import Table, stdout_console
from workbench.recipe.config import Recipe

Run = Callable[[str, Sequence[str]], object]
OWN = ("minutes", "only", "folder", "dry_run")
TAKEN = ("arms", "search", "noise_floor")
"""Options of a study that the parts of the pilot give themselves, or have no use for."""
CASES = (f"evaluation.t2i_cases={FULL_CASES['t2i']}", f"evaluation.editing_cases={FULL_CASES['edit']}")
"""The whole benchmarks, 3,300 cases."""
GUIDED = (f"teachers.specialists={{{', '.join(f'{name}: tiny/{name}.safetensors' for name in SPECIALISTS)}}}",)
LONG = ("trainer.updates=2000", "trainer.sample_every=200", "evaluation.milestone_cases=60")
"""The paper's length, with milestones enough for the alarm for a collapse."""


@dataclass(frozen=True)
class Part:
    """One study of the pilot, some of its arms, under `seeds`. words: of its base recipe, unless it is a smoke run."""

    study: str
    seeds: tuple[int, ...]
    arms: tuple[str, ...] = ()
    words: tuple[str, ...] = CASES


_THREE, _FIVE = (0, 1, 2), (0, 1, 2, 3, 4)
PARTS: dict[str, Part] = {
    "noise-floor": Part("noise-floor", _FIVE),
    "composition": Part("data-composition", _THREE, ("E1-landscape", "E3-text", "E5-all")),
    "tasks": Part("task-mixture", _THREE, ("t2i-only", "5:5")),
    "budget": Part("student-budget", _THREE, ("4-nfe", "1-nfe", "2-nfe")),
    "noise-floor-long": Part("noise-floor", _FIVE, words=(*CASES, *LONG)),
    "guidance": Part(
        "teacher-guidance",
        _THREE,
        ("base-alone", "step-wise", "specialist-alone", "step-wise-unrouted", "step-wise-per-step"),
        (*CASES, *LONG),
    ),
}
"""In the order they are run: short trials first, and what the others are read against before them."""


@dataclass(frozen=True)
class Pace:
    """Seconds on one GPU. update: of a trial alone, and a share of a GPU that three or more trials share. case: one
    answer of a student, drawn and scored. start: of a trial, until its first update."""

    update: float = 0.10
    shared_update: float = 0.07
    case: float = 0.008
    start: float = 8.0


H100 = Pace()
"""The tiny model at studies/recipes/gpu.yaml's batch of 64; see studies/LOG.md."""


@dataclass(frozen=True)
class Options:
    """minutes: after which this call ends, None: when all is done. only: parts to run. words: of every study."""

    folder: Path
    minutes: float | None
    only: tuple[str, ...]
    dry_run: bool
    words: tuple[str, ...]

    @property
    def is_smoke(self) -> bool:
        return "smoke=true" in self.words

    def arguments(self, name: str) -> list[str]:
        """Of `workbench study` for the part `name`; later words win."""
        part = PARTS[name]
        own = [f"folder={self.folder / name}", f"seeds={','.join(map(str, part.seeds))}"]
        own += [f"arms={','.join(part.arms)}"] if part.arms else []
        return [*own, *GUIDED, *(() if self.is_smoke else part.words), *self.words]


def read(words: Sequence[str]) -> Options:
    """Raises: UserError naming the word that cannot be."""
    own: dict[str, str] = {}
    passed: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is not of the form key=value")
        if key in TAKEN:
            raise UserError(f"{key}= is not for the pilot: run `workbench study` with it")
        if key in OWN:
            own[key] = value
        else:
            passed.append(word)
    only = tuple(name for name in own.get("only", "").strip("[]").replace(" ", "").split(",") if name)
    for name in only:
        if name not in PARTS:
            raise UserError(f"only: the pilot has no part {name!r}{nearest(name, PARTS)}; there is {', '.join(PARTS)}")
    if own.get("dry_run", "false") not in ("true", "false"):
        raise UserError(f"dry_run={own['dry_run']} must be true or false")
    return Options(
        folder=Path(own.get("folder", "runs/pilot")),
        minutes=positive_number("minutes", own["minutes"]) if "minutes" in own else None,
        only=only,
        dry_run=own.get("dry_run") == "true",
        words=tuple(passed),
    )


@dataclass(frozen=True)
class Planned:
    """A part with its checked plan, and the trials of it by entry: newest row of `study.json`."""

    name: str
    plan: Plan
    trials: Mapping[str, Mapping[str, Any]]

    @property
    def done(self) -> int:
        return sum(self.trials.get(entry.key, {}).get("state") == "complete" for entry in self.plan.entries)

    @property
    def failed(self) -> int:
        """Entries that ended with an error of their own, no interrupted ones."""
        trials = [self.trials.get(entry.key, {}) for entry in self.plan.entries]
        return sum(trial.get("state") == "fail" and trial["error"] not in CUT_SHORT for trial in trials)

    @property
    def left(self) -> int:
        return len(self.plan.entries) - self.done

    def seconds(self, pace: Pace = H100) -> float:
        """Of one GPU for all trials, those that are done too."""
        options = self.plan.options
        per_gpu = options.workers / max(1, len(options.devices))
        return sum(estimated_s(self.plan.recipes[entry.arm], per_gpu, pace) for entry in self.plan.entries)

    @property
    def measured_s(self) -> float:
        """That trials have spent so far, each counted alone, all attempts at the finished ones."""
        return sum(float(trial.get("cost", {}).get("wall", 0.0)) for trial in self.trials.values())


def estimated_s(recipe: Recipe, trials_per_gpu: float, pace: Pace = H100) -> float:
    """Seconds of one GPU that a trial takes: its start, its updates, its milestones and its evaluation."""
    of = recipe.evaluation
    milestones = math.ceil(recipe.trainer.updates / recipe.trainer.sample_every) if of.milestone_cases else 0
    answers = _num_cases(of.t2i_cases, of.editing_cases)
    answers += milestones * _num_cases(of.milestone_cases, of.milestone_cases)
    update = pace.shared_update if trials_per_gpu >= 3 else pace.update
    return pace.start + update * recipe.trainer.updates + pace.case * answers


def _num_cases(t2i: int, editing: int) -> int:
    """Of all categories, with so many of each."""
    return t2i * len(CATEGORIES["t2i"]) + editing * len(CATEGORIES["edit"])


def planned(options: Options) -> list[Planned]:
    """The parts of this call, all of them checked before anything is written."""
    found = []
    for name in options.only or PARTS:
        plan = plan_of(PARTS[name].study, options.arguments(name), study_named(PARTS[name].study))
        rows = [trial for arm in arms.read_study(plan.options.folder).get("arms", []) for trial in arm["trials"]]
        rows.sort(key=lambda trial: (trial["state"] == "complete", trial["number"]))
        found.append(Planned(name, plan, {trial["entry"]: trial for trial in rows}))
    return found


def table_of(parts: Sequence[Planned]) -> Table:
    """Arms, seeds, updates, what is done, and GPU-hours."""
    table = Table(
        "part", "arms", "seeds", "updates", "trials", "done", "failed", "GPU-hours, estimated", "trial-hours, measured",
        title="the pilot",
    )  # fmt: skip
    for part in parts:
        chosen = dict.fromkeys(entry.arm for entry in part.plan.entries)
        updates = {part.plan.recipes[arm].trainer.updates for arm in chosen}
        table.add_row(
            part.name,
            ", ".join(chosen),
            str(len(part.plan.options.seeds)),
            ", ".join(f"{number:,}" for number in sorted(updates)),
            *(str(number) for number in (len(part.plan.entries), part.done, part.failed)),
            f"{part.seconds() / 3600:.2f}",
            f"{part.measured_s / 3600:.2f}",
        )
    sums = [sum(len(part.plan.entries) for part in parts), sum(p.done for p in parts), sum(p.failed for p in parts)]
    hours = [sum(part.seconds() for part in parts) / 3600, sum(part.measured_s for part in parts) / 3600]
    table.add_row("in all", "", "", "", *map(str, sums), *(f"{number:.2f}" for number in hours))
    return table


class TimeIsUp(KeyboardInterrupt):
    """Raised where an interrupt from a keyboard would be: trials save their state alike."""


@contextmanager
def limited(minutes: float | None) -> Iterator[None]:
    """Raises TimeIsUp in the main thread after `minutes`."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp

    if minutes is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(options: Options, study: Run = run_study) -> bool:
    """Run what is left, part by part, and write each part's report; whether all trials have a score.

    Raises: UserError, of a part's study; what ends a study ends the pilot.
    """
    console, began, parts = stdout_console(), time.monotonic(), planned(options)
    console.print(table_of(parts))
    if options.dry_run:
        return True
    try:
        with limited(options.minutes):
            for part in parts:
                if part.left:
                    study(PARTS[part.name].study, options.arguments(part.name))
                    _report(part.plan.options.folder)
    except TimeIsUp:
        console.print(f"stopped after {(time.monotonic() - began) / 60:.1f} minutes: the same command goes on")
    after = planned(options)
    console.print(table_of(after))
    return all(part.left == 0 for part in after)


def _report(folder: Path) -> None:
    from studies.analysis.page import report_study

    print(f"wrote {report_study(folder)}")


def main(words: Sequence[str]) -> int:
    """Command line. 0: all is done, or all that the time allowed; 1: trials failed; 2: what a user can mend."""
    try:
        options = read(words)
        finished = run(options)
        failed = sum(part.failed for part in planned(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if not finished and failed:
        print(f"{failed} trials failed: their logs lie in {options.folder}; the same command tries them again")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
