"""The shipped folder ready to be measured, and the figures that measuring it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from datamodules.openmoji.benchmark import FULL_CASES
from workbench.backbones import families
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.answers import Answers, answer, judge_into
from workbench.evaluation.cases.case import BENCHES, Case
from workbench.evaluation.cases.choose import benchmark_cases
from workbench.evaluation.evaluate import select_few_step
from workbench.evaluation.judges import second
from workbench.evaluation.judges.local import ASSET, LocalJudge
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.measures.ocr import chosen_reader
from workbench.evaluation.measures.statistics import bench_intervals
from workbench.evaluation.measuring import Measuring
from workbench.evaluation.models import FolderUnderTest, ModelUnderTest, few_step_candidates
from workbench.evaluation.sheets import chosen_cases
from workbench.method.rollout import Sampling
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping

CFG_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
TEACHER_STEPS = 40
PARTS = ("transformer", "text_encoder", "vae", "processor", "scheduler")


@dataclass(frozen=True)
class Options:
    """cases: T2I cases a category, 0 for both full benchmarks; edits get 250 / 600 of it. choosing: cases a category on
    which CFG and the few-step sampling are chosen, of a split that is not reported. seeds: of sampling, three at least
    for a standard deviation. card: write the table into the folder's README. student: run or folder to add."""

    folder: str = "tiny"
    judge: str = str(ASSET)
    second_judge: str = str(second.ASSET)
    out: str = "runs/zoo-report"
    docs: str = "docs/zoo"
    student: str = ""
    cases: int = 0
    choosing: int = 40
    seeds: list[int] | None = None
    shift: float = 2.0
    card: bool = False


@dataclass(frozen=True)
class Figure:
    """One number of the table. bar: what it should reach; most: what it should not exceed; n: cases behind it; form:
    how it is printed."""

    what: str
    value: float
    bar: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    form: str = ".2f"
    note: str = ""
    most: float | None = None

    @property
    def reached(self) -> bool | None:
        if self.bar is None and self.most is None:
            return None
        return (self.bar is None or self.value >= self.bar) and (self.most is None or self.value <= self.most)


class Zoo:
    """The shipped folder, its judge and the benchmarks, ready to be measured."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.path = families.resolve(options.folder)
        self.seeds = options.seeds or [0, 1, 2]
        t2i = options.cases or FULL_CASES["t2i"]
        edits = max(1, t2i * FULL_CASES["edit"] // FULL_CASES["t2i"])
        self.recipe: Recipe = from_mapping(
            {
                "model": {"folder": options.folder},
                "evaluation": {
                    "t2i_cases": t2i,
                    "editing_cases": edits,
                    "seeds": list(self.seeds),
                    "teacher_steps": TEACHER_STEPS,
                    "teacher_shift": options.shift,
                },
            }
        )
        self.store = Store(Path(options.out) / "answers")

    @cached_property
    def judge(self) -> LocalJudge:
        return LocalJudge(Path(self.options.judge))

    @cached_property
    def specialists(self) -> dict[str, Path]:
        """LoRA files of the folder, by the name of the file."""
        every = sorted(self.path.rglob("*.safetensors"))
        return {file.stem: file for file in every if file.relative_to(self.path).parts[0] not in PARTS}

    @cached_property
    def subject(self) -> FolderUnderTest:
        return self._under_test(self.options.folder, self.specialists)

    @cached_property
    def cases(self) -> list[Case]:
        """Cases of the report split."""
        return benchmark_cases(self.recipe.data, self.recipe.evaluation, split="report")

    @cached_property
    def choosing(self) -> list[Case]:
        """Cases of the search split, on which choices are made; reported scores come from the report split."""
        count = min(self.options.choosing, self.recipe.evaluation.t2i_cases)
        editing = max(1, count // 2)
        return benchmark_cases(
            self.recipe.data, self.recipe.evaluation, split="search", t2i_cases=count, editing_cases=editing
        )

    @cached_property
    def full(self) -> tuple[Sampling, list[dict[str, object]]]:
        """The teacher's best guidance, and the score of every one."""
        ways = [Sampling(TEACHER_STEPS, self.options.shift, scale) for scale in CFG_SCALES]
        return self._best(ways)

    @cached_property
    def few(self) -> tuple[Sampling, list[dict[str, object]]]:
        """The teacher's best use of 4 evaluations, and the score of every one."""
        return self._best(few_step_candidates(max(1.5, self.full[0].cfg_scale)))

    def _best(self, ways: Sequence[Sampling]) -> tuple[Sampling, list[dict[str, object]]]:
        models = [self.subject.model(way) for way in ways]
        best, rows = select_few_step(models, self.recipe, self.judge, self.choosing, self.store)
        return ways[models.index(best)], rows

    @cached_property
    def student(self) -> ModelUnderTest | None:
        """What `student` names: a pipeline folder, or a run with one inside."""
        if not self.options.student:
            return None
        folder = Path(self.options.student)
        inside = folder / "student" if (folder / "student").is_dir() else folder
        return self._under_test(str(inside), {}).model()

    def _under_test(self, folder: str, specialists: Mapping[str, Path]) -> FolderUnderTest:
        recipe = self.recipe
        return FolderUnderTest(folder, recipe.data.resolution, recipe.evaluation.batch_size, specialists=specialists)

    def answers(self, how: Sampling, specialist: str | None = None) -> Answers:
        """To all cases under all seeds."""
        return self.answers_of(self.subject.model(how, specialist))

    def answers_of(self, model: ModelUnderTest) -> Answers:
        keep = [case.id for group in chosen_cases(self.cases).values() for case in group]
        # As an evaluation reads them, which takes up these answers.
        reader, _ = chosen_reader("auto", self.cases)
        with Measuring(reader) as measuring:
            return answer(model, self.cases, self.seeds, [self.judge], keep, self.store, measuring=measuring)

    @cached_property
    def targets(self) -> Answers:
        """The held-out renders themselves, judged."""
        real = Answers()
        for bench in BENCHES.values():
            of = [case for case in self.cases if case.bench == bench]
            judge_into(real, of, [case.target for case in of if case.target is not None], 0, [self.judge])
        return real


def interval_figure(what: str, found: Interval, bar: float | None, form: str = ".3f") -> Figure:
    return Figure(what, found.mean, bar, found.low, found.high, found.n, form)


def mean_figure(what: str, values: Sequence[float], bar: float | None, form: str = ".2f") -> Figure:
    return interval_figure(what, bench_intervals({"all": np.array(values)[:, None]})["mean"], bar, form)


def nested_figure(what: str, values: dict[str, list[float]], bar: float | None) -> Figure:
    """From case -> value under every seed."""
    return interval_figure(what, bench_intervals({"all": np.array(list(values.values()))})["mean"], bar, ".1%")


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float, int]:
    """95 % score interval of a share of n (Wilson 1927), and n."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return middle - half, middle + half, n
