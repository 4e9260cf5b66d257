"""Studies whose trials are drawn from a known model instead of trained, with the files that reports read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from datamodules.openmoji import CATEGORIES
from studies.analysis import table
from studies.machine import study_file
from studies.study import Study, TrialFailed, objectives, vary
from workbench.evaluation.cases.case import BENCHES
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load, to_yaml
from workbench.sampling.contact_sheet import contact_sheet

SMOKE = Path(__file__).parents[2] / "studies" / "recipes" / "smoke.yaml"
SPECIALISTS = (
    "teachers.specialists={portrait: portrait.safetensors, text: text.safetensors, editing: editing.safetensors}"
)


def base_recipe(*overrides: str) -> Recipe:
    """The smoke recipe on the search split, with specialists named and guided teachers."""
    return load(SMOKE, [SPECIALISTS, "evaluation.split=search", "teachers.cfg_scale=3.0", *overrides])


@dataclass
class World:
    """score = 3 + effect(recipe) + N(0, seed_sd) of the run + N(0, case_sd) of the case + N(0, noise_sd) of both.

    effect: of a recipe, in each bench. cases: a category. fails: run folder names that raise instead. trend: what
    milestones after 10, 20... updates add to the scores of their cases. parts: difficulties that the T2I texts have in
    turn, and what each adds to the score of a recipe.
    """

    effect: Callable[[Recipe, str], float] = lambda recipe, bench: 0.0
    seed_sd: float = 0.05
    case_sd: float = 0.6
    noise_sd: float = 0.1
    cases: int = 8
    fails: Mapping[str, str] = field(default_factory=dict)
    sheets: bool = False
    milestones: Callable[[Recipe, float], dict[str, float]] = lambda recipe, score: {}
    trend: Callable[[Recipe], Sequence[float]] = lambda recipe: ()
    parts: Mapping[str, Callable[[Recipe], float]] = field(default_factory=dict)

    def __call__(self, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """The run folder of `recipe` at `folder`; returns its metrics.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(to_yaml(recipe))
        if folder.name in self.fails:
            raise TrialFailed(self.fails[folder.name])
        run = np.random.default_rng([recipe.seed, int(folder.name.split("-")[1])])
        deviation = self.seed_sd * run.standard_normal()
        student: dict[str, Any] = {"nfe": 4, "n": 9 * self.cases, "seconds_per_image": 0.05}
        lines = []
        for task, bench in BENCHES.items():
            intervals = {}
            for category in CATEGORIES[task]:
                of_case = np.random.default_rng([7, *map(ord, bench + category)])
                mean = 3 + self.effect(recipe, bench) + deviation
                scores = mean + self.case_sd * of_case.standard_normal(self.cases)
                scores = scores + self.noise_sd * run.standard_normal(self.cases)
                parts = [*self.parts] if (task, category) == ("t2i", "text") else []
                of_case_parts = [parts[i % len(parts)] if parts else "" for i in range(self.cases)]
                scores = scores + [self.parts[part](recipe) if part else 0.0 for part in of_case_parts]
                lines += [
                    {"model": "student", "bench": bench, "category": category, "case": f"{task}-{category}-{i}",
                     "seed": 0, "score": float(score), **({"difficulty": part} if part else {})}
                    for i, (score, part) in enumerate(zip(scores, of_case_parts, strict=True))
                ]  # fmt: skip
                intervals[category] = {"mean": float(scores.mean()), "low": None, "high": None, "n": self.cases}
            intervals["mean"] = {"mean": float(np.mean([of["mean"] for of in intervals.values()]))}
            student[bench] = intervals
        student["secondary"] = {"variety": {"value": 0.9 + 0.02 * run.standard_normal()}}
        student["frechet"] = {"value": 1500 + 50 * run.standard_normal(), "n": 3 * self.cases}
        metrics = {"split": "search", "models": {"student": student}}
        (folder / "evaluation").mkdir(exist_ok=True)
        (folder / "evaluation" / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "environment.json").write_text(json.dumps({"cuda_devices": [], "cpu_threads": 2}))
        self._curves(recipe, folder, run)
        self._milestone_cases(recipe, folder, run)
        if self.sheets:
            write_sheets(folder, recipe.seed)
        return metrics

    def _milestone_cases(self, recipe: Recipe, folder: Path, run: np.random.Generator) -> None:
        rows = []
        for place, added in enumerate(self.trend(recipe), start=1):
            noise = self.noise_sd * run.standard_normal(self.cases) + 0.1 * self.seed_sd * run.standard_normal()
            scores = {f"case-{i}": 3 + added + float(of_case) for i, of_case in enumerate(noise)}
            rows.append({"update": 10 * place, "t2i_bench": {"text": scores, "portrait": scores}})
        if rows:
            (folder / "milestone_cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _curves(self, recipe: Recipe, folder: Path, run: np.random.Generator) -> None:
        rows = [
            {"update": u, "x0_gap/t2i": 0.3 / u**0.5 + 0.02 * run.random(), "gradient_norm/student": 1 + run.random(),
             "per_step/spread/t2i/text/step0": 1 + 0.1 * run.random(), "loss/student/t2i": run.random()}
            for u in range(1, 1 + max(4, recipe.trainer.updates))
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_sheets(folder: Path, seed: int) -> None:
    """A contact sheet of each T2I category: columns of one colour, the student's its seed."""
    place = folder / "samples" / "evaluation"
    place.mkdir(parents=True)
    index = []
    for category in CATEGORIES["t2i"]:
        colours = {"target": 10, "teacher": 90, "teacher_few_step": 120, "student": 200 + seed}
        columns = {
            name: [np.full((32, 32, 3), colour + 5 * j, np.uint8) for j in range(3)] for name, colour in colours.items()
        }
        contact_sheet(columns).save(place / f"t2i-{category}.png")
        prompts = [{"prompt": f"prompt {j} of {category}", "scores": {}} for j in range(3)]
        entry = {"file": f"t2i-{category}.png", "task": "t2i", "category": category}
        index.append({**entry, "columns": list(colours), "rows": prompts})
    (place / "index.json").write_text(json.dumps(index))


def conduct(
    study: Study, folder: Path, world: World, *, base: Recipe | None = None, seeds: Sequence[int] = (0, 1),
    draws: int = 0, storage: str | None = None, unfinished: int = 0, optuna_study: optuna.Study | None = None,
) -> optuna.Study:  # fmt: skip
    """Every arm under every seed, or `draws` recipes of the space, then `study.json`. unfinished: trials left
    running. optuna_study: of a study that this goes on with."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    base, folder = base or base_recipe(), folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    optuna_study = optuna_study or optuna.create_study(
        directions=["maximize"] * len(study.OBJECTIVES), storage=storage, study_name=folder.name,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    table.describe(optuna_study, study, base, [folder.name])
    recipes = {} if draws else {arm: vary(base, differences) for arm, differences in study.ARMS.items()}
    for seed in () if draws else seeds:
        for arm in study.ARMS:
            optuna_study.enqueue_trial({"arm": arm, "seed": seed}, user_attrs={"entry": f"{arm}@{seed}"})
    for _ in range(draws or len(seeds) * len(study.ARMS)):
        _run(optuna_study, study, optuna_study.ask(), base, folder, world, recipes)
    for _ in range(unfinished):
        optuna_study.enqueue_trial(
            {"arm": next(iter(study.ARMS)), "seed": 99}, user_attrs={"entry": f"{next(iter(study.ARMS))}@99"}
        )
        trial = optuna_study.ask()
        trial.suggest_categorical("arm", tuple(study.ARMS))
        trial.suggest_int("seed", 0, 99)
    table.write_json(optuna_study, study, folder.name, storage or "sqlite", folder / "study.json")
    return optuna_study


def _run(
    optuna_study: optuna.Study,
    study: Study,
    trial: optuna.Trial,
    base: Recipe,
    folder: Path,
    world: World,
    recipes: Mapping[str, Recipe],
) -> None:
    """recipes: of the arms; none for a draw."""
    if not recipes:
        recipe, seed = study.suggest(trial, base), 0
    else:
        recipe = recipes[trial.suggest_categorical("arm", tuple(study.ARMS))]
        seed = trial.suggest_int("seed", 0, 99)
    run = f"trial-{trial.number:04d}"
    recipe = replace(recipe, seed=seed)
    trial.set_user_attr("run", run)
    trial.set_user_attr("hparams", study_file.differences(recipe, base))
    try:
        metrics = world(recipe, folder / run)
    except TrialFailed as error:
        trial.set_user_attr("error", f"TrialFailed: {error}")
        optuna_study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    found = study_file.headline(metrics)
    trial.set_user_attr("metrics", found)
    trial.set_user_attr("milestones", world.milestones(recipe, found["score"]))
    trial.set_user_attr("cost", {"distill": 2.0, "evaluate": 1.0})
    optuna_study.tell(trial, objectives(metrics, study.OBJECTIVES))
