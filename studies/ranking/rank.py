"""`workbench rank`: every student draws every case once, the judges score them, one page says which and by how much."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from studies.ranking import page
from studies.ranking.pictures import GROUP, Group, Pictures, groups
from studies.ranking.side_by_side import helpers
from studies.ranking.students import Ranking, Student, read
from workbench.backbones import families
from workbench.common.files import alone
from workbench.common.outside import as_name
from workbench.common.progress import job
from workbench.evaluation import panel_cost
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.choose import benchmark_cases
from workbench.evaluation.diversity import DIVERSITY_SAMPLES, answered_often
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.judges.choose import judges_of, local_judge
from workbench.evaluation.judges.judge import Judge
from workbench.evaluation.measures.ocr import chosen_reader
from workbench.evaluation.models import FolderUnderTest, ModelUnderTest
from workbench.recipe.config import Recipe

LARGE_BYTES = 2 << 30
"""Transformers of this size and more are drawn with in bfloat16 on a GPU, as their own pipelines are used."""
CONSOLE = Console(markup=False)


@dataclass(frozen=True)
class Plan:
    """All that is to be drawn: students by name with their pictures, and the groups of each, alike for all."""

    ranking: Ranking
    recipe: Recipe
    cases: Sequence[Case]
    judges: Sequence[Judge]
    groups: Sequence[Group]
    pictures: Mapping[str, Pictures]
    models: Mapping[str, ModelUnderTest]

    @property
    def num_pictures(self) -> int:
        return len(self.pictures) * sum(map(len, self.groups))

    def evaluations_left(self) -> int:
        """Network evaluations that the missing pictures take."""
        return sum(
            len(group) * self.models[name].nfe
            for name, pictures in self.pictures.items()
            for group in self.groups
            if not pictures.has(group)
        )

    def missing(self) -> int:
        """Pictures that are not drawn yet."""
        return sum(
            len(group) for pictures in self.pictures.values() for group in self.groups if not pictures.has(group)
        )


def plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """What a file of students asks for. Raises: UserError before anything is drawn; see `students.read`."""
    ranking, recipe = read(path, overrides)
    cases = benchmark_cases(recipe.data, recipe.evaluation)
    judges = judges_of(recipe.evaluation, cases)
    for judge in judges:
        judge.check(cases)
    chosen_reader(recipe.evaluation.ocr, cases)
    size = recipe.evaluation.batch_size or GROUP
    wanted = list(groups(cases, recipe.evaluation.seeds, size))
    has_targets = sum(case.task == "t2i" and case.target is not None for case in cases) > 1
    if local_judge(judges) is not None and has_targets:
        wanted += groups(answered_often(cases), [f"diversity/{seed}" for seed in range(DIVERSITY_SAMPLES)], size)
    folder = Path(ranking.folder)
    made = {
        name: _made(student, folder / "pictures" / as_name(name), recipe, size)
        for name, student in ranking.students.items()
    }
    return Plan(
        ranking,
        recipe,
        cases,
        judges,
        wanted,
        {name: pictures for name, (pictures, _) in made.items()},
        {name: model for name, (_, model) in made.items()},
    )


def _made(student: Student, folder: Path, recipe: Recipe, size: int) -> tuple[Pictures, ModelUnderTest]:
    """A student's pictures, and the student as an evaluation sees it: through them."""
    how = student.sampling()

    def load() -> ModelUnderTest:
        return _under_test(student, recipe, size).model(how)

    described = load()  # which reads no weights
    pictures = Pictures(folder, load, (described.fingerprint, str(described.sampling)), size)
    return pictures, ModelUnderTest(pictures.draw, how.nfe, how.as_dict(), described.fingerprint)


def _under_test(student: Student, recipe: Recipe, size: int) -> FolderUnderTest:
    weights = sum(
        path.stat().st_size for path in (families.resolve(student.folder) / "transformer").glob("*.safetensors")
    )
    rounded = torch.cuda.is_available() and weights >= LARGE_BYTES
    return FolderUnderTest(
        student.folder,
        recipe.data.resolution,
        size,
        loras=student.loras,
        dtype=torch.bfloat16 if rounded else torch.float32,
    )


def draw(work: Plan, first: int = 0, go_on: Callable[[], bool] = lambda: True) -> None:
    """Draw what is missing, student by student from number `first` on, leaving out what another process draws."""
    names = list(work.pictures)
    for name in [*names[first % len(names) :], *names[: first % len(names)]]:
        pictures = work.pictures[name]
        for group in work.groups:
            if not go_on():
                return
            pictures.fill(group, wait=False)
        pictures.release()


def rank(path: Path, overrides: Sequence[str] = (), devices: Sequence[str] = ()) -> Path:
    """Draw, judge and report; the path of the page. The same command goes on where it was stopped.

    devices: GPUs that draw side by side; all there are when empty.

    Raises:
        UserError: see `plan`.
    """
    work = plan(path, overrides)
    out = Path(work.ranking.folder)
    CONSOLE.print(
        f"{len(work.pictures)} students, {len(work.cases)} cases, {len(work.recipe.evaluation.seeds)} seed(s): "
        f"{work.num_pictures:,} pictures, {work.num_pictures - work.missing():,} drawn already"
    )
    with alone(out):
        _draw_all(work, path, overrides, devices)
        reference = work.ranking.compared_with
        compared = [(name, reference) for name in work.models if name != reference]
        nfes = [model.nfe for model in work.models.values()]
        with job("judging", panel_cost.work(nfes, work.cases, work.recipe.data, work.recipe.evaluation)):
            evaluate(work.models, work.recipe, out, cases=work.cases, judges=work.judges, compared=compared)
        costs = {name: pictures.cost(work.groups) for name, pictures in work.pictures.items()}
        written = page.write(work.ranking, work.recipe, costs, command(path, overrides))
    CONSOLE.print(page.answer(work.ranking, out), soft_wrap=True)
    return written


def command(path: Path, overrides: Sequence[str]) -> str:
    return shlex.join(["workbench", "rank", str(path), *overrides])


def _draw_all(work: Plan, path: Path, overrides: Sequence[str], devices: Sequence[str]) -> None:
    """Draw all pictures, on several GPUs side by side, under one bar."""
    if not work.missing():
        return
    devices = devices or [str(index) for index in range(torch.cuda.device_count())]
    with job("pictures", work.evaluations_left()):
        if len(devices) > 1:
            helpers(path, overrides, devices, work.evaluations_left)
        draw(work)
    # What another process held a moment ago, or left when it was killed.
    for pictures in work.pictures.values():
        for group in work.groups:
            pictures.fill(group)
        pictures.release()
