"""Finished models at work: one picture, or both benchmarks."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImage21Pipeline
from PIL import Image
from rich.console import Console

from workbench import export, pipeline, sampling
from workbench.backbone import RoleDenoiser, single_role
from workbench.config import Recipe
from workbench.errors import UserError
from workbench.evaluation.evaluate import benchmark_cases, evaluate, select_few_step
from workbench.evaluation.models import (
    Encodings,
    ModelUnderTest,
    Sampling,
    few_step_candidates,
    from_sampler,
    student_sampling,
    teacher_sampling,
)
from workbench.evaluation.remembered import identity_of, remembered
from workbench.evaluation.tables import print_metrics
from workbench.evaluation.vlm_judge import panel
from workbench.evaluation.vlm_plan import cost
from workbench.recipes import from_mapping
from workbench.roles import TEACHER
from workbench.run_folder import RunFolder

DEFAULT_STEPS = 40


def evaluate_run(
    target: str | Path,
    overrides: list[str],
    dry_run: bool = False,
    *,
    drawn: Path | None = None,
    timed: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Score a run (teacher, best few-step teacher, student) or a pipeline folder on both benchmarks, and print it.

    A run's results go into the run folder, a pipeline folder's into `runs/evaluation/NAME`. dry_run: only print
    how many images would be drawn, and how many calls and tokens vision-language judges would take. drawn: folder of
    what a run's teacher drew, which is drawn there once for all runs that share it. timed: is given the seconds of
    `evaluate`, that of the choice among few-step teachers included, loading aside.

    Raises:
        UserError: no run or pipeline folder, a run without its student, bad overrides, a judge that is not described in
            the environment or refuses.
    """
    folder = RunFolder(Path(target))
    if folder.is_run():
        recipe = folder.read_recipe(overrides)
        if not folder.student.is_dir():
            raise UserError(f"{target} has no student yet: run `workbench distill {folder.recipe}` to its end first")
        out = folder.path
    else:
        path = pipeline.resolve(str(target))
        recipe = from_mapping({"model": {"folder": str(target)}}, overrides, origin="evaluate")
        out = Path("runs/evaluation") / path.resolve().name
    if dry_run:
        _print_cost(recipe, 3 if folder.is_run() else 1)
        return {}
    # A judge that is not there is said before anything is drawn.
    judges = panel(recipe.evaluation.vlm) if "vlm" in recipe.evaluation.judges else None
    clock = Stopwatch()
    if folder.is_run():
        models, selection = _models_of_run(recipe, folder, drawn, clock)
    else:
        models, selection = _models_of_folder(recipe, str(target))
    with clock:
        metrics = evaluate(models, recipe, out, panel=judges, selection=selection)
    if timed is not None:
        timed["evaluate"] = clock.seconds
    if folder.is_run():
        export.add_scores(folder.student, metrics)
    print_metrics(metrics, Console())
    return metrics


def sample_image(folder: str, prompt: str, image: Path | None, out: Path, seed: int, resolution: int = 128) -> None:
    """Draw one picture with a pipeline folder (or a run's student) and its own sampling grid, into `out`.

    Raises:
        UserError: no such folder, or a picture that cannot be read.
    """
    run = RunFolder(Path(folder))
    loaded = _load(str(run.student) if run.is_run() and run.student.is_dir() else folder)
    source = sampling.fit(Image.open(image), resolution) if image is not None else None
    request = sampling.Request(prompt, seed=seed, source=source, height=resolution, width=resolution)
    drawn = _sampler(loaded, 1)([request], _own_sampling(loaded).grid())
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    Image.fromarray(drawn.images[0]).save(partial, format=Image.registered_extensions()[out.suffix.lower()])
    os.replace(partial, out)


class Stopwatch:
    """Seconds spent inside its blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


def _models_of_run(
    recipe: Recipe, folder: RunFolder, drawn: Path | None, clock: Stopwatch
) -> tuple[dict[str, ModelUnderTest], list[dict[str, Any]]]:
    @cache
    def teacher() -> tuple[sampling.Sampler, Encodings]:
        loaded = _load(recipe.model.folder)
        return _sampler(loaded, recipe.evaluation.batch_size), _encodings(loaded, recipe)

    def taught(how: Sampling) -> ModelUnderTest:
        # Where all that the teacher is asked was drawn before, it is not even loaded.
        model = ModelUnderTest(lambda *asked: from_sampler(*teacher(), how).draw(*asked), how.nfe, how.as_dict())
        return model if drawn is None else remembered(model, identity, drawn)

    identity = ""
    if drawn is not None:
        files = identity_of(pipeline.resolve(recipe.model.folder))
        identity = f"{files} at {recipe.data.resolution} on {_device()}"

    candidates = [taught(how) for how in few_step_candidates(recipe)]
    with clock:
        few_step, selection = select_few_step(candidates, recipe)
    models = {
        "teacher": taught(teacher_sampling(recipe)),
        "teacher_few_step": few_step,
        "student": _model(recipe, str(folder.student), student_sampling(recipe)),
    }
    return models, selection


def _models_of_folder(recipe: Recipe, folder: str) -> tuple[dict[str, ModelUnderTest], list[dict[str, Any]]]:
    return {"model": _model(recipe, folder, None)}, []


def _print_cost(recipe: Recipe, num_models: int) -> None:
    chosen = recipe.evaluation
    cases = benchmark_cases(recipe, chosen.split, chosen.t2i_cases, chosen.editing_cases)
    planned = cost(cases, num_models, recipe)
    console = Console()
    console.print(
        f"{len(cases)} cases of split {chosen.split}, {num_models} model(s), {len(chosen.seeds)} seed(s): "
        f"{planned.images:,} images"
    )
    judges = ", ".join(chosen.vlm.judges) if "vlm" in chosen.judges else "none"
    console.print(
        f"vision-language judges: {judges}; at most {planned.calls:,} calls (fewer with {chosen.vlm.cache}, more with "
        f"retries), about {planned.prompt_tokens:,} tokens in and {planned.reply_tokens:,} out; hidden reasoning and "
        "each vendor's own count of image tokens come on top"
    )


def _model(recipe: Recipe, folder: str, how: Sampling | None) -> ModelUnderTest:
    loaded = _load(folder)
    sampler = _sampler(loaded, recipe.evaluation.batch_size)
    return from_sampler(sampler, _encodings(loaded, recipe), how or _own_sampling(loaded))


def _own_sampling(loaded: QwenImage21Pipeline) -> Sampling:
    """The grid that the folder ships, or the pipeline's default number of steps through its own scheduler's shift."""
    sigmas = loaded.config.sample_sigmas
    if sigmas:
        return Sampling(len(sigmas), times=tuple(float(sigma) for sigma in sigmas))
    return Sampling(DEFAULT_STEPS, shift=float(loaded.scheduler.config.shift))


def _load(folder: str) -> QwenImage21Pipeline:
    return pipeline.load(folder, device=_device())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _sampler(loaded: QwenImage21Pipeline, batch_size: int) -> sampling.Sampler:
    return sampling.Sampler(loaded, RoleDenoiser(single_role(loaded.transformer, TEACHER), TEACHER), batch_size)


def _encodings(loaded: QwenImage21Pipeline, recipe: Recipe) -> Encodings:
    return Encodings(loaded, recipe.data.resolution, recipe.evaluation.batch_size)
