"""Edits: a source, one right target and the instruction; most leave much of the target free, as users do."""

from __future__ import annotations

import numpy as np

from datamodules.openmoji import instructions, phrases
from datamodules.openmoji.compose import pick, random_scene
from datamodules.openmoji.edit import Edit, content
from datamodules.openmoji.edits_outdoors import object_edit, scene_edit
from datamodules.openmoji.edits_subject import identity_edit
from datamodules.openmoji.edits_text import text_edit
from datamodules.openmoji.scenes import Picture, Scene, Sign
from datamodules.openmoji.vocabulary import COLOUR_HEADS, QUALITIES, STYLES

GENERAL_REPAIR_SHARE = 0.3
ANOTHER_STYLE_SHARE = 0.2
DEFECT_SHARES = {"blurry": 0.25, "noisy": 0.25, "dark": 0.125, "faded": 0.125, "blocky": 0.25}
"""What has to be made up again comes more often than what a curve brings back."""


def propose(category: str, split: str, rng: np.random.Generator) -> Edit | None:
    """A random edit, its split still to be checked; None where the random choice leads nowhere."""
    match category:
        case "scene":
            return scene_edit(split, rng)
        case "enhance":
            return _enhance(split, rng)
        case "object":
            return object_edit(split, rng)
        case "text":
            return text_edit(split, rng)
        case "identity":
            return identity_edit(split, rng)
        case "style":
            return _style(split, rng)
        case _:
            raise ValueError(f"no edit category {category!r}")


def _enhance(split: str, rng: np.random.Generator) -> Edit:
    scene = random_scene(pick(("landscape", "portrait", "text"), rng), split, rng)
    quality = str(rng.choice(QUALITIES[1:], p=[DEFECT_SHARES[name] for name in QUALITIES[1:]]))
    general = rng.random() < GENERAL_REPAIR_SHARE
    text = pick(instructions.ENHANCE if general else instructions.REPAIR[quality], rng)
    source = Picture(scene, quality=quality, grain=int(rng.integers(2**31)))
    return Edit(source, Picture(scene), text, ("quality",), content(scene))


def _style(split: str, rng: np.random.Generator) -> Edit:
    scene = random_scene(pick(("landscape", "portrait", "text"), rng), split, rng)
    source, target = Picture(scene), Picture(scene, style=pick(styles_for(scene), rng))
    if rng.random() < ANOTHER_STYLE_SHARE:
        text = pick(instructions.ANOTHER_STYLE, rng)
        kept = tuple(head for head in content(scene) if head not in COLOUR_HEADS)
        return Edit(source, target, text, ("style",), kept, {"style": styles_for(scene)}, exact=False)
    text = pick(instructions.STYLISE, rng).format(style=pick(phrases.STYLES[target.style], rng))
    kept = tuple(head for head in content(scene) if head in target.heads())
    return Edit(source, target, text, ("style",), kept)


def styles_for(scene: Scene) -> tuple[str, ...]:
    """Styles that leave the scene readable: letters do not survive big pixels."""
    return tuple(style for style in STYLES[1:] if not (isinstance(scene, Sign) and style == "pixelated"))
