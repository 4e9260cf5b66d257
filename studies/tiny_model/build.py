"""Everything that ships, from nothing: `python -m studies.tiny_model.build [PLAN] [key=value ...]` (`make zoo`).

judges, vae -> start -> teacher -> base -> specialists -> their best answers -> assets. PLAN is a YAML file of
differences from `Plan`, zoo.yaml by default. Every stage ends by itself; interrupted, the same command goes on from
what the stage saved, and a stage that is done under the same settings, with all that it builds on unchanged, is left
alone. What ships is then in FOLDER/assets, to be copied over `workbench/assets`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from studies.tiny_model import judge, vae
from studies.tiny_model.adapters import write_mean
from studies.tiny_model.assemble import SIZES, Sizes, assemble, put_autoencoder
from studies.tiny_model.best_answers import Choice, best_answers
from studies.tiny_model.judge import Options as JudgeOptions
from studies.tiny_model.plan import BestStage, Plan, RecipeStage, WorldStage, read, stage_of_best
from studies.tiny_model.shipped import ship
from studies.tiny_model.stages import Stage, key_of, world_fingerprint
from studies.tiny_model.world_source import world_sources
from workbench.backbones import families
from workbench.common.errors import UserError
from workbench.common.fingerprint import fingerprint
from workbench.common.tables import Table
from workbench.recipe import reading
from workbench.recipe.config import Recipe
from workbench.runs.run_folder import RunFolder
from workbench.runs.runner import pretrain

CONSOLE = Console(markup=False)

Report = dict[str, Any]


JUDGES = ("judge", "second_judge")
PLACES = ("vae", *JUDGES, "start", "teacher", "base", "assets")
"""Folders of the stages, specialists aside."""


@dataclass(frozen=True)
class Step:
    """One stage as the builder sees it. minutes: of training, planned. run: does it; what it found out.

    run_folder: that goes on by itself from what is in it, so it must be of the same settings.
    """

    name: str
    minutes: float
    stage: Stage
    run: Callable[[], Report]
    run_folder: Path | None = None


def steps_of(plan: Plan) -> list[Step]:
    """All stages in order. Nothing is written before every recipe among them is valid."""
    root = Path(plan.folder)
    names = (*PLACES, *plan.specialists, *map(stage_of_best, plan.best))
    places = {name: root / name for name in names}
    if len(places) != len(names):
        raise UserError(f"specialists may not be called {', '.join(PLACES)}, nor one as another's `NAME-best`")
    keys: dict[str, str] = {}

    def stage(name: str, settings: Mapping[str, Any], *builds_on: str) -> Stage:
        """A stage whose record lies outside its pipeline or run folder, which hold nothing else."""
        record = {"world": world_fingerprint(), **settings, "on": [keys[other] for other in builds_on]}
        keys[name] = key_of(record)
        return Stage(root / "stages" / name, record)

    def pretraining(name: str, of: WorldStage, start: Path, builds_on: str) -> Step:
        recipe = _recipe(plan, of, start, places[name])
        return _pretraining(name, of, recipe, stage(name, {**_settings(of, recipe), **_drawing(of)}, builds_on))

    start, autoencoder = places["start"], Path(plan.autoencoder or places["vae"])
    if plan.autoencoder:
        keys["vae"] = fingerprint(autoencoder)
    if plan.given:
        start = Path(plan.given) / "tiny"
        keys["start"] = fingerprint(start)
    steps = [*_judges(plan, places, stage), *([] if plan.given else _parts(plan, places, autoencoder, stage))]
    base = places["base"] / "teacher"
    steps.append(pretraining("teacher", plan.teacher, start, "start"))
    steps.append(pretraining("base", plan.base, places["teacher"] / "teacher", "teacher"))
    steps += [pretraining(name, of, base, "base") for name, of in plan.specialists.items()]
    adapters = {name: RunFolder(places[name]).specialist for name in plan.specialists}
    for name, best in plan.best.items():
        of = stage_of_best(name)
        begin_at = root / f"{of}-start.safetensors"
        recipe = _recipe(plan, best, base, places[of], f"pretrain.lora_start={begin_at}")
        settings = {**_settings(best, recipe), "answers": best.answers}
        kept_in, chosen_by = root / f"{of}.safetensors", places["second_judge"]
        choice = Choice(best.answers, chosen_by, adapters[name], best.curation, kept_in)
        steps.append(_best(of, best, recipe, choice, stage(of, settings, name, "second_judge")))
        adapters[of] = RunFolder(places[of]).specialist
    stages = {step.name: step.stage for step in steps}

    def assets() -> Report:
        reports = {name: {**of.report, "wall_s": of.wall_s} for name, of in stages.items()}
        judges = {name: places[name] for name in JUDGES}
        smaller = {name: root / f"{name}-shipped.safetensors" for name in plan.ships}
        kept = {
            f"kept_{name}": write_mean([adapters[of] for of in one.of], smaller[name], one.rank)
            for name, one in plan.ships.items()
        }
        last = {name: adapters.get(stage_of_best(name), adapters[name]) for name in plan.specialists}
        return {**ship(places["assets"], base, smaller or last, judges, reports), **kept}

    ships = {name: asdict(one) for name, one in plan.ships.items()}
    steps.append(Step("assets", 0.0, stage("assets", {"ships": ships}, *list(keys)), assets))
    unknown = {*plan.only} - {step.name for step in steps}
    if unknown:
        known = ", ".join(step.name for step in steps)
        raise UserError(f"only: no stage {', '.join(sorted(unknown))}; there are {known}")
    return [step for step in steps if step.name in (plan.only or (step.name,))]


def _judges(plan: Plan, places: Mapping[str, Path], stage: Callable[..., Stage]) -> list[Step]:
    steps = []
    for name, options in zip(JUDGES, (plan.judge, plan.second_judge), strict=True):
        chosen = replace(options, init=str(Path(plan.given) / name)) if plan.given else options
        run = partial(_judge, places[name], chosen)
        steps.append(Step(name, chosen.minutes, stage(name, judge.settings(chosen)), run))
    return steps


def _parts(plan: Plan, places: Mapping[str, Path], autoencoder: Path, stage: Callable[..., Stage]) -> list[Step]:
    """The autoencoder, unless one is named, and the pipeline that the teacher starts from."""
    sizes, steps = SIZES[plan.sizes], []
    if not plan.autoencoder:
        run = partial(vae.train, autoencoder, plan.vae, sizes)
        steps.append(Step("vae", plan.vae.minutes, stage("vae", vae.settings(plan.vae, sizes)), run))
    assembled = {"sizes": asdict(sizes), "texts": plan.corpus_texts, "seed": plan.seed}
    begin = partial(_start, plan, sizes, places["start"], autoencoder)
    return [*steps, Step("start", 0.0, stage("start", assembled, "vae"), begin)]


def _judge(folder: Path, options: JudgeOptions) -> Report:
    return judge.brief(judge.run(folder, options))


def build(plan: Plan) -> dict[str, Report]:
    """Run what is not done yet; what every stage found out."""
    steps = steps_of(plan)
    CONSOLE.print(_planned(steps))
    with SummaryWriter(str(Path(plan.folder) / "tensorboard")) as log:
        for number, step in enumerate(steps, 1):
            if step.stage.done:
                continue
            CONSOLE.rule(f"{number} of {len(steps)}: {step.name}")
            began = time.monotonic()
            begin(step)
            report = step.run()
            wall_s = step.stage.wall_s + time.monotonic() - began
            step.stage.write(1, wall_s, done=True, report=report)
            log.add_scalar(f"seconds/{step.name}", wall_s, 0)
    CONSOLE.print(_summary(steps))
    return {step.name: step.stage.report for step in steps}


def begin(step: Step) -> None:
    """Claim the stage's place for its settings.

    Raises:
        UserError: a run of other settings is in its way.
    """
    if step.stage.is_other and step.run_folder is not None and step.run_folder.exists():
        raise UserError(f"{step.run_folder} was trained under other settings, or on another start: delete it")
    step.stage.write(0, step.stage.wall_s, done=False)


def _recipe(plan: Plan, of: RecipeStage, model: Path, run: Path, *more: str) -> Recipe:
    where = [f"model.folder={model}", f"trainer.folder={run}", f"seed={plan.seed}", *more]
    return reading.load(of.recipe, [*of.overrides, *where])


def _settings(of: RecipeStage, recipe: Recipe) -> dict[str, Any]:
    """What decides the result, apart from the machine."""
    plain = asdict(recipe)
    trainer = {name: plain["trainer"][name] for name in ("precision", "max_skipped_updates")}
    chosen = {name: plain[name] for name in ("data", "mixture", "pretrain", "seed")}
    return chosen | {"trainer": trainer, "curation": asdict(of.curation)}


def _drawing(of: WorldStage) -> dict[str, Any]:
    """What decides it besides on a stage that draws the world."""
    return {"fresh_every": of.fresh_every, "chunks_kept": of.chunks_kept}


def _pretraining(name: str, of: WorldStage, recipe: Recipe, stage: Stage) -> Step:
    folder = Path(recipe.trainer.folder)

    def run() -> Report:
        pretrain(recipe, *world_sources(recipe, of.fresh_every, of.curation, of.chunks_kept))
        return {"steps": recipe.pretrain.steps, **last_losses(folder / "metrics.jsonl")}

    return Step(name, of.minutes, stage, run, folder)


def _best(name: str, of: BestStage, recipe: Recipe, choice: Choice, stage: Stage) -> Step:
    folder = Path(recipe.trainer.folder)

    def run() -> Report:
        best, pictured, scores = best_answers(recipe, choice)
        begin_at = Path(recipe.pretrain.lora_start)
        if not begin_at.exists() or not folder.exists():
            rank = recipe.pretrain.lora_rank
            scores["kept"] = write_mean([choice.adapter], begin_at, rank, most=rank)
        pretrain(recipe, best, pictured)
        return {"steps": recipe.pretrain.steps, **scores, **last_losses(folder / "metrics.jsonl")}

    return Step(name, of.minutes, stage, run, folder)


def _start(plan: Plan, sizes: Sizes, out: Path, autoencoder: Path) -> Report:
    from datamodules.openmoji import corpus

    with CONSOLE.status("training the tokenizer, assembling the pipeline folder"):
        assemble(out, corpus(plan.corpus_texts, seed=plan.seed), seed=plan.seed, sizes=sizes)
        put_autoencoder(autoencoder, out)
    families.resolve(str(out))
    return {}


def last_losses(scalars: Path) -> Report:
    """Training losses of the last line of a run's `metrics.jsonl`."""
    last = json.loads(scalars.read_text().splitlines()[-1])
    return {name: value for name, value in last.items() if name.startswith("loss/")}


def _planned(steps: list[Step]) -> Table:
    table = Table("stage", "minutes of training", "state", title="the plan")
    for step in steps:
        state = "done" if step.stage.done else "begun" if step.stage.wall_s else "to do"
        table.add_row(step.name, f"{step.minutes:g}" if step.minutes else "-", state)
    todo = sum(step.minutes for step in steps if not step.stage.done)
    table.add_row("left in all", f"{todo:g}", "")
    return table


def _summary(steps: list[Step]) -> Table:
    table = Table("stage", "seconds", "found", title="what was built")
    for step in steps:
        found = (f"{name} {value:.4g}" for name, value in step.stage.report.items() if isinstance(value, int | float))
        table.add_row(step.name, f"{step.stage.wall_s:.0f}", ", ".join(found))
    return table


def main(arguments: list[str]) -> int:
    """Command line: [PLAN] name=value ..."""
    # The libraries' chatter drowns the plan, the bars and the table.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build(read(list(arguments)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        logging.disable(before)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
