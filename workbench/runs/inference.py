"""Finished models at work: one picture, or both benchmarks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from rich.console import Console

from datamodules.openmoji.benchmark import FULL_CASES
from workbench.backbones import families
from workbench.common.clock import Clock
from workbench.common.errors import UserError
from workbench.common.files import whole_file
from workbench.common.images import check_sources, read_image
from workbench.common.outside import as_name
from workbench.common.progress import job
from workbench.common.tables import stdout_console
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.answers import work_of
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.case_file import write_jsonl
from workbench.evaluation.cases.choose import benchmark_cases
from workbench.evaluation.cases.count import case_counts, count_cases
from workbench.evaluation.evaluate import evaluate, select_few_step, selection_slice
from workbench.evaluation.judges.choose import judges_of, local_judge, named_judges
from workbench.evaluation.judges.judge import LOCAL, NEEDS_LOCAL
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.measures.ocr import chosen_reader
from workbench.evaluation.metrics_file import Metrics
from workbench.evaluation.model_card import add_scores
from workbench.evaluation.models import (
    FolderUnderTest,
    LoraFile,
    ModelUnderTest,
    few_step_candidates,
    lora_file,
    overridden,
    teacher_sampling,
)
from workbench.evaluation.panel_cost import Cost, cost, images_of, work
from workbench.evaluation.places import EvaluationFiles, evaluations, files_for
from workbench.evaluation.tables import print_metrics
from workbench.evaluation.trained_student import outdated, student_of
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping
from workbench.recipe.student_times import student_sampling
from workbench.reporting.hparams import log_run, student_scores
from workbench.runs.loggers import TENSORBOARD, disk_errors, log_scores
from workbench.runs.run_folder import RunFolder
from workbench.sampling.sampler import Request, fit


def evaluate_run(
    target: str | Path,
    overrides: list[str],
    dry_run: bool = False,
    *,
    shared: Store | None = None,
    loras: Sequence[str] = (),
) -> Metrics | None:
    """Score a run (teacher, best few-step teacher, student) or a pipeline folder on both benchmarks, and print it.

    A run's results go into the run folder, a pipeline folder's into `runs/evaluation/NAME`; those of other cases than
    the run's recipe names, or than were scored there first, next to them (`evaluation.places`). dry_run: only print how
    many images would be drawn, and how many calls and tokens vision-language judges would take; returns None. shared:
    of answers of a run's teacher, and of the cases' own targets: they are given once for all runs that share it. loras:
    FILE or FILE:strength, added to a pipeline folder's network.

    Raises:
        UserError: no run or pipeline folder, a run without its student, bad overrides, a judge that is not described in
            the environment or refuses.
    """
    folder = RunFolder(Path(target))
    added = [lora_file(text) for text in loras]
    if folder.is_run():
        if added:
            raise UserError(f"--lora is for a pipeline folder, and {target} is a run: name {folder.student}")
        recipe = folder.read_recipe(overrides)
        if not folder.student.is_dir():
            raise UserError(f"{target} has no student yet: run `workbench distill {folder.recipe}` to its end first")
        out, own = folder.path, folder.read_recipe().evaluation
    else:
        path = families.resolve(str(target))
        recipe = from_mapping({"model": {"folder": str(target)}}, overrides, origin="evaluate")
        name = as_name("+".join([_name_of(path), *(f"{p.stem}-{s:g}" for p, s in added)]))
        out, own = Path("runs/evaluation") / name, recipe.evaluation
    if dry_run:
        _print_cost(recipe, is_run=folder.is_run())
        return None
    # An error about a judge, or a reader of text, comes before anything is drawn.
    clock = Clock()
    with clock.phase("cases"):
        cases = benchmark_cases(recipe.data, recipe.evaluation)
    most = families.family_of(families.resolve(recipe.model.folder)).max_sources
    for case in cases:
        check_sources(len(case.sources), most, f"case {case.id}")
    judges = judges_of(recipe.evaluation, cases)
    for judge in judges:
        judge.check(cases)
    chosen_reader(recipe.evaluation.ocr, cases)
    if line := overridden(recipe.evaluation, recipe.model.folder):
        Console(markup=False).print(line, soft_wrap=True)
    models: dict[str, ModelUnderTest]
    files, student = files_for(out, recipe.evaluation, own), student_of(folder.path) if folder.is_run() else None
    with job("evaluating", _work(recipe, cases, folder.is_run())):
        if folder.is_run():
            models, selection = _models_of_run(recipe, folder, files, shared, clock, local_judge(judges))
        else:
            tested = _under_test(str(target), recipe, clock, added)
            models, selection = {"model": tested.model(teacher_sampling(recipe.evaluation, str(target)))}, []
        metrics = evaluate(
            models, recipe, files, cases=cases, judges=judges, selection=selection, shared=shared, clock=clock,
            overrides=overrides, student=student,
        )  # fmt: skip
    if folder.is_run():
        found = [of for _, of in evaluations(out).values()]
        add_scores(folder.student, [of for of in found if not outdated(out, of)])
        if shared is None:
            _log_scores(folder, files, metrics)
    print_metrics(metrics, stdout_console())
    return metrics


def _work(recipe: Recipe, cases: Sequence[Case], is_run: bool) -> int:
    """Units of the job of evaluating a run, or a pipeline folder."""
    chosen = recipe.evaluation
    full = teacher_sampling(chosen, recipe.model.folder)
    few_step = few_step_candidates(full.cfg_scale, full.cfg_rescale)
    if not is_run:
        return work([full.nfe], cases, recipe.data, chosen)
    nfes = [full.nfe, student_sampling(recipe.dmd).nfe]
    if LOCAL not in chosen.judges:
        return work(nfes, cases, recipe.data, chosen)
    choosing = count_cases(recipe.data, selection_slice(chosen)) * sum(work_of(how.nfe) for how in few_step)
    return work([*nfes, few_step[0].nfe], cases, recipe.data, chosen) + choosing


def _log_scores(folder: RunFolder, files: EvaluationFiles, metrics: Metrics) -> None:
    """To the loggers of the run; a study logs those of its trials itself."""
    recipe, found = folder.read_recipe(), evaluations(folder.path)
    update = (metrics.student.update if metrics.student else None) or recipe.trainer.updates
    if TENSORBOARD in recipe.trainer.loggers:
        with disk_errors(folder.path / TENSORBOARD):
            log_run(folder.path, recipe, {name: of for name, (_, of) in found.items()}, update)
    for name, (place, _) in found.items():
        if place == files:
            log_scores(recipe, folder.path, name, student_scores(metrics), update)


def write_cases(out: Path, overrides: list[str]) -> int:
    """Write the cases that the recipe keys choose, both full benchmarks when they choose nothing, to `out`, their
    images next to it; the number of cases.

    Raises:
        UserError: bad keys, a name that does not end in .jsonl.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"{out} must end in .jsonl")
    full = {"t2i_cases": FULL_CASES["t2i"], "editing_cases": FULL_CASES["edit"]}
    chosen = from_mapping({"evaluation": full}, overrides, origin="cases")
    cases = benchmark_cases(chosen.data, chosen.evaluation)
    write_jsonl(cases, out)
    return len(cases)


def sample_image(
    folder: str,
    prompt: str,
    images: Sequence[Path],
    out: Path,
    seed: int,
    resolution: int | None = None,
    size: str | None = None,
) -> None:
    """Draw one picture with a pipeline folder (or a run's student), sampled as is its default, into `out`.

    images: that an edit reads. resolution: the picture has about its square in pixels, and the aspect of the last of
    `images`; that of the run's training, or the folder's own, when None. size: instead, WIDTHxHEIGHT, to which the last
    of `images` is cropped.

    Raises:
        UserError: no such folder, a picture that cannot be read, too many, a size that the family cannot draw.
    """
    run = RunFolder(Path(folder))
    folder = str(run.student) if run.is_run() and run.student.is_dir() else folder
    path = families.resolve(folder)
    family = families.family_of(path)
    multiple = family.side_multiple
    check_sources(len(images), family.max_sources, "--image")
    sides = None if size is None else _sides(size, multiple)
    resolution = resolution or _resolution_of(path)
    pictures = [read_image(image, "--image", "name another picture") for image in images]
    sources = [fit(picture, resolution, multiple) for picture in pictures]
    if sources and sides:
        sources[-1] = ImageOps.fit(pictures[-1], sides, Image.Resampling.LANCZOS)
    tested = FolderUnderTest(folder, resolution, batch_size=1)
    width, height = sides or (resolution, resolution)
    request = Request(prompt, seed=seed, sources=tuple(sources), height=height, width=width)
    drawn = tested.sampler()([request], tested.loaded.default_sampling())
    with whole_file(out) as file:
        Image.fromarray(drawn.images[0]).save(file, format=Image.registered_extensions()[out.suffix.lower()])


def _resolution_of(path: Path) -> int:
    """`data.resolution` of the run that a student is of, else what the folder draws at."""
    run = RunFolder(path.parent)
    return run.read_recipe().data.resolution if run.is_run() and run.student == path else families.resolution_of(path)


def _sides(size: str, multiple: int) -> tuple[int, int]:
    """Width and height of `--size`. Raises: UserError for other words, and sizes that the family cannot draw."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size, re.ASCII | re.IGNORECASE)
    if found is None:
        raise UserError(f"--size {size} is not of the form WIDTHxHEIGHT, as in 1024x768")
    sides = int(found[1]), int(found[2])
    most = families.LARGEST_SIDE // multiple
    near = tuple(min(max(1, round(side / multiple)), most) * multiple for side in sides)
    if sides != near:
        raise UserError(
            f"--size {size}: sides are multiples of {multiple} up to {most * multiple}; the nearest is "
            f"{near[0]}x{near[1]}"
        )
    return sides


def _models_of_run(
    recipe: Recipe,
    folder: RunFolder,
    files: EvaluationFiles,
    shared: Store | None,
    clock: Clock,
    local: LocalJudge | None,
) -> tuple[dict[str, ModelUnderTest], list[dict[str, Any]]]:
    """The run's models, and how the few-step teacher was chosen; without a local judge there is none to choose."""
    teacher = _under_test(recipe.model.folder, recipe, clock)
    own = teacher_sampling(recipe.evaluation, recipe.model.folder)
    hows = [own, *few_step_candidates(own.cfg_scale, own.cfg_rescale)]
    full, *candidates = [replace(teacher.model(how), store=shared) for how in hows]
    student = _under_test(str(folder.student), recipe, clock).model(student_sampling(recipe.dmd))
    if local is None:
        Console(markup=False).print(
            f"no local judge to choose the few-step teacher: it is left out ({NEEDS_LOCAL})", soft_wrap=True
        )
        return {"teacher": full, "student": student}, []
    few_step, selection = select_few_step(candidates, recipe, local, store=Store(files.partial))
    return {"teacher": full, "teacher_few_step": few_step, "student": student}, selection


def _under_test(folder: str, recipe: Recipe, clock: Clock, loras: Sequence[LoraFile] = ()) -> FolderUnderTest:
    return FolderUnderTest(folder, recipe.data.resolution, recipe.evaluation.batch_size, clock, loras=loras)


def _name_of(folder: Path) -> str:
    """Name for the results of a pipeline folder; folders with equal base names, `a/student` and `b/student`, differ."""
    if folder in families.SHIPPED.values():
        return folder.name
    full, here = folder.resolve(), Path.cwd()
    return "-".join((full.relative_to(here) if full.is_relative_to(here) else full).parts).strip("/-")


def _print_cost(recipe: Recipe, is_run: bool) -> None:
    chosen, num_models = recipe.evaluation, 1
    # Nothing is drawn only to be counted.
    cases = benchmark_cases(recipe.data, chosen) if chosen.cases or "vlm" in chosen.judges else None
    chooses = is_run and LOCAL in named_judges(chosen, cases)
    if is_run:
        num_models = 3 if chooses else 2
    scale = teacher_sampling(chosen, recipe.model.folder).cfg_scale
    if cases is not None:
        number, planned = len(cases), cost(cases, num_models, recipe.data, chosen)
    else:
        counts = case_counts(recipe.data, chosen)
        number, planned = counts.total(), Cost(num_models * images_of(counts, True, chosen), 0, 0, 0)
    choosing = len(few_step_candidates(scale)) * count_cases(recipe.data, selection_slice(chosen)) if chooses else 0
    console = Console(markup=False)
    console.print(
        f"{number} cases of split {chosen.split}, {num_models} model(s), {len(chosen.seeds)} seed(s), some for "
        f"diversity: {planned.images:,} images"
        + (f", and {choosing:,} to choose the few-step teacher" if choosing else "")
    )
    judges = ", ".join(chosen.vlm.judges) if "vlm" in chosen.judges else "none"
    console.print(
        f"vision-language judges: {judges}; at most {planned.calls:,} calls (fewer with {chosen.vlm.cache}, more with "
        f"retries), about {planned.prompt_tokens:,} tokens in and {planned.reply_tokens:,} out; hidden reasoning and "
        "each vendor's own count of image tokens come on top"
    )
