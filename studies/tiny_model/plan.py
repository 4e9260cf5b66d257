"""What the tiny model is built by: a YAML file of differences from `Plan`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from studies.tiny_model import vae
from studies.tiny_model.assemble import CORPUS_TEXTS
from studies.tiny_model.curation import Curation
from studies.tiny_model.judge import Options as JudgeOptions
from workbench.common.errors import UserError
from workbench.recipe.checks import require

PLAN = Path(__file__).parent / "zoo.yaml"


@dataclass(frozen=True)
class RecipeStage:
    """Pretraining by `recipe` with `overrides`. minutes: expected, for the plan alone. curation: what is done to the
    samples."""

    recipe: str = ""
    overrides: list[str] = field(default_factory=list)
    minutes: float = 0.0
    curation: Curation = field(default_factory=Curation)


@dataclass(frozen=True)
class WorldStage(RecipeStage):
    """On the world, drawn anew every `fresh_every` updates; `chunks_kept` drawings, the newest and those before it, are
    trained on in turns."""

    fresh_every: int = 1000
    chunks_kept: int = 1


@dataclass(frozen=True)
class BestStage(RecipeStage):
    """A specialist goes on, on the best of so many of its own answers to each caption, as the second judge has them:
    from the nearest adapter of the recipe's rank, where it has a larger one."""

    answers: int = 8


@dataclass(frozen=True)
class Shipped:
    """A specialist that ships: the mean of the adapters of these stages, with as many parameters as one of `rank`."""

    of: list[str] = field(default_factory=list)
    rank: int = 16


@dataclass(frozen=True)
class Plan:
    """All stages' settings.

    folder: where everything goes. sizes: of the transformer and all else, see `assemble.SIZES`. corpus_texts: lines
    that the tokenizer is trained on. teacher: learns the world. base: goes on from it, on what a web has. given: assets
    that exist, from which the judges and the teacher go on; the autoencoder and the tokenizer are theirs then.
    autoencoder: folder of one that exists; none is trained then. only: stages to run, all when empty; two calls with
    different ones may work in one folder at once. best: specialists, by name, that go on once more, as the stage
    `NAME-best`. ships: the specialists that ship, by name; when empty, each as its last stage left it.
    """

    folder: str = "runs/zoo"
    sizes: Literal["tiny", "smallest", "small", "large"] = "tiny"
    seed: int = 0
    corpus_texts: int = CORPUS_TEXTS
    vae: vae.Options = field(default_factory=vae.Options)
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    second_judge: JudgeOptions = field(default_factory=JudgeOptions)
    teacher: WorldStage = field(default_factory=WorldStage)
    base: WorldStage = field(default_factory=WorldStage)
    given: str = ""
    autoencoder: str = ""
    only: list[str] = field(default_factory=list)
    specialists: dict[str, WorldStage] = field(default_factory=dict)
    best: dict[str, BestStage] = field(default_factory=dict)
    ships: dict[str, Shipped] = field(default_factory=dict)


def stage_of_best(name: str) -> str:
    """In which the specialist `name` goes on, on the best of its answers."""
    return f"{name}-best"


def read(arguments: list[str]) -> Plan:
    """The plan of a YAML file, if one is named first, and `key=value` words.

    Raises:
        UserError: no such file, broken YAML, an unknown key or an impossible value.
    """
    path = Path(arguments.pop(0)) if arguments and "=" not in arguments[0] else PLAN
    if not path.is_file():
        raise UserError(f"no plan at {path}")
    try:
        words = OmegaConf.from_dotlist(arguments)
        plan = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Plan), OmegaConf.load(path), words))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(plan, Plan)
    stages = {"teacher": plan.teacher, "base": plan.base, **plan.specialists}
    for name, stage in stages.items():
        require(stage.chunks_kept >= 1, f"{name}.chunks_kept={stage.chunks_kept}: at least the newest chunk is kept")
    for name, best in plan.best.items():
        require(name in plan.specialists, f"best.{name}: there is no such specialist to go on")
        require(best.answers >= 2, f"best.{name}.answers={best.answers}: a choice is of two at least")
    trained = {*plan.specialists, *map(stage_of_best, plan.best)}
    for name, shipped in plan.ships.items():
        unknown = sorted({*shipped.of} - trained)
        require(
            bool(shipped.of) and not unknown,
            f"ships.{name}.of={shipped.of}: name stages of {', '.join(sorted(trained))}",
        )
        require(shipped.rank >= 1, f"ships.{name}.rank={shipped.rank}: at least 1")
    require(not (plan.given and plan.autoencoder), "given goes on with its own autoencoder: leave out autoencoder")
    require(
        not plan.autoencoder or (Path(plan.autoencoder) / "config.json").is_file(),
        f"autoencoder: no config.json in {plan.autoencoder}",
    )
    return plan
