"""Edits: one random composition, drawn twice with one attribute changed, and the instruction that asks for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datamodules.openmoji import phrases
from datamodules.openmoji.compose import (
    other_grounds,
    other_skies,
    pick,
    portrait_of_split,
    random_landscape,
    random_scene,
    random_word,
    sign_of_split,
)
from datamodules.openmoji.scenes import Landscape, Picture, Placed, Portrait, Scene, Sign, random_look, replace_object
from datamodules.openmoji.splits import objects_for, scenes_of
from datamodules.openmoji.vocabulary import BACKGROUNDS, LEGIBLE, OBJECTS, QUALITIES, SIGNS, STYLES, with_article

GENERAL_REPAIR_SHARE = 0.3


@dataclass(frozen=True)
class Edit:
    """named: heads of the target that source and instruction determine; kept: heads that stay as in the source."""

    source: Picture
    target: Picture
    text: str
    named: tuple[str, ...]
    kept: tuple[str, ...]


def propose(category: str, split: str, rng: np.random.Generator) -> Edit | None:
    """A random edit, its split still to be checked; None where the random choice leads nowhere."""
    match category:
        case "scene":
            return _scene(split, rng)
        case "enhance":
            return _enhance(split, rng)
        case "object":
            return _object(split, rng)
        case "text":
            return _text(split, rng)
        case "identity":
            return _identity(split, rng)
        case "style":
            return _style(split, rng)
        case _:
            raise ValueError(f"no edit category {category!r}")


def _edit(source: Scene, target: Scene, text: str, named: tuple[str, ...], kept: tuple[str, ...]) -> Edit:
    return Edit(Picture(source), Picture(target), text, named, kept)


def _content(scene: Scene) -> tuple[str, ...]:
    match scene:
        case Landscape():
            return ("sky", "ground", "objects")
        case Portrait():
            return ("subject", "background")
        case Sign():
            return ("word", "sign", "ink")


def _scene(split: str, rng: np.random.Generator) -> Edit | None:
    match pick(("sky", "ground", "background"), rng):
        case "sky":
            target = random_landscape(split, rng)
            source = replace(target, sky=pick(other_skies(target), rng))
            text = pick(phrases.CHANGE_SKY, rng).format(sky=pick(phrases.SKIES[target.sky], rng))
            return _edit(source, target, text, ("sky",), ("ground", "objects"))
        case "ground":
            target = random_landscape(split, rng)
            grounds = other_grounds(target)
            if not grounds:
                return None
            source = replace(target, ground=pick(grounds, rng))
            name = with_article(target.ground) if target.ground in ("road", "field") else target.ground
            text = pick(phrases.CHANGE_GROUND, rng).format(ground=name)
            return _edit(source, target, text, ("ground",), ("sky", "objects"))
        case _:
            portrait = portrait_of_split(split, rng)
            text = pick(phrases.CHANGE_BACKGROUND, rng).format(colour=portrait.background)
            return _edit(_repainted(portrait, rng), portrait, text, ("background",), ("subject",))


def _repainted(portrait: Portrait, rng: np.random.Generator) -> Portrait:
    return replace(portrait, background=pick([name for name in BACKGROUNDS if name != portrait.background], rng))


def _enhance(split: str, rng: np.random.Generator) -> Edit:
    scene = random_scene(pick(("landscape", "portrait", "text"), rng), split, rng)
    quality = pick(QUALITIES[1:], rng)
    text = pick(phrases.ENHANCE if rng.random() < GENERAL_REPAIR_SHARE else phrases.REPAIR[quality], rng)
    source = Picture(scene, quality=quality, grain=int(rng.integers(2**31)))
    return Edit(source, Picture(scene), text, ("quality",), _content(scene))


def _object(split: str, rng: np.random.Generator) -> Edit | None:
    kept = ("sky", "ground")
    match pick(("add", "remove", "replace"), rng):
        case "add":
            target = random_landscape(split, rng)
            at = int(rng.integers(len(target.items)))
            source = _without(target, at)
            text = pick(phrases.ADD, rng).format(new=with_article(target.items[at].name))
        case "remove":
            source = random_landscape(split, rng, min_objects=2)
            at = int(rng.integers(len(source.items)))
            target = _without(source, at)
            text = pick(phrases.REMOVE, rng).format(old=source.items[at].name)
        case _:
            target = random_landscape(split, rng)
            at = int(rng.integers(len(target.items)))
            fitting = _substitutes(target, at, split)
            if not fitting:
                return None
            source = replace(target, items=replace_object(target.items, at, pick(fitting, rng)))
            old, new = source.items[at].name, with_article(target.items[at].name)
            text = pick(phrases.REPLACE, rng).format(old=old, new=new)
    return _edit(source, target, text, ("objects",), kept)


def _without(scene: Landscape, at: int) -> Landscape:
    return replace(scene, items=scene.items[:at] + scene.items[at + 1 :])


def _substitutes(scene: Landscape, at: int, split: str) -> list[str]:
    """Objects that may stand in the place of the one at index `at`."""
    aloft = OBJECTS[scene.items[at].name].place == "sky"
    candidates = objects_for(scene.sky, scene.ground, split)
    return [name for name in candidates if name not in scene.objects and (OBJECTS[name].place == "sky") == aloft]


def _text(split: str, rng: np.random.Generator) -> Edit | None:
    target = sign_of_split(split, rng)
    match pick(("word", "word", "sign", "ink"), rng):
        case "word":
            old = random_word(split, rng)
            if old == target.word:
                return None
            text = pick(phrases.CHANGE_WORD, rng).format(word=target.word, old=old)
            return _edit(replace(target, word=old), target, text, ("word",), ("sign", "ink"))
        case "sign":
            others = [name for name in SIGNS if name != target.sign and target.ink in LEGIBLE[name]]
            text = pick(phrases.CHANGE_SIGN, rng).format(sign=target.sign)
            return _edit(replace(target, sign=pick(others, rng)), target, text, ("sign",), ("word", "ink"))
        case _:
            others = [ink for ink in LEGIBLE[target.sign] if ink != target.ink]
            text = pick(phrases.CHANGE_INK, rng).format(ink=target.ink)
            return _edit(replace(target, ink=pick(others, rng)), target, text, ("ink",), ("word", "sign"))


def _identity(split: str, rng: np.random.Generator) -> Edit:
    portrait = portrait_of_split(split, rng)
    match pick(("background", "background", "outdoors", "outdoors", "size", "mirror"), rng):
        case "background":
            return _elsewhere(portrait, rng)
        case "outdoors":
            return _outdoors(portrait, split, rng)
        case "size":
            return _size(portrait, rng)
        case _:
            return _mirror(portrait, rng)


def _elsewhere(portrait: Portrait, rng: np.random.Generator) -> Edit:
    """The subject, somewhat moved, before another background."""
    subject, colour = portrait.subject, portrait.background
    size = float(subject.size * rng.uniform(0.8, 1.1))
    moved = _resized(replace(subject, x=float(0.5 + rng.uniform(-0.1, 0.1))), size)
    source = replace(_repainted(portrait, rng), subject=moved, pattern="plain", amplitude=0)
    fields = {"subject": subject.name, "colour": colour, "a_colour": with_article(colour)}
    text = pick(phrases.KEEP_ON_BACKGROUND, rng).format(**fields)
    return _edit(source, portrait, text, ("background",), ("subject",))


def _outdoors(portrait: Portrait, split: str, rng: np.random.Generator) -> Edit:
    """The subject of a portrait, put into a landscape of which one part is named."""
    name = portrait.subject.name
    sky, ground = pick(scenes_of("outdoors", name, split), rng)
    subject = _resized(portrait.subject, float(rng.uniform(0.46, 0.6)))
    subject = replace(subject, x=float(rng.uniform(0.32, 0.68)), y=float(rng.uniform(0.85, 0.96)))
    target = Landscape(sky, ground, random_look(rng), subject=subject)
    if rng.random() < 0.5:
        text = pick(phrases.KEEP_UNDER_SKY, rng).format(subject=name, sky=pick(phrases.SKIES[sky], rng))
        return _edit(portrait, target, text, ("sky",), ("subject",))
    text = pick(phrases.KEEP_ON_GROUND, rng).format(subject=name, ground=pick(phrases.GROUNDS[ground], rng))
    return _edit(portrait, target, text, ("ground",), ("subject",))


def _size(portrait: Portrait, rng: np.random.Generator) -> Edit:
    """The same portrait with its subject much bigger or smaller."""
    small = replace(portrait, subject=_resized(portrait.subject, float(rng.uniform(0.4, 0.52))))
    large = replace(portrait, subject=_resized(portrait.subject, float(rng.uniform(0.74, 0.86))))
    grows = bool(rng.random() < 0.5)
    source, target = (small, large) if grows else (large, small)
    size = pick(phrases.BIGGER if grows else phrases.SMALLER, rng)
    text = pick(phrases.RESIZE, rng).format(subject=portrait.subject.name, size=size)
    return _edit(source, target, text, (), ("subject", "background"))


def _mirror(portrait: Portrait, rng: np.random.Generator) -> Edit:
    """The subject mirrored and on the other side: its off-centre place shows the change on symmetric ones too."""
    offset = float(rng.uniform(0.09, 0.11)) * (1 if rng.random() < 0.5 else -1)
    subject = replace(portrait.subject, x=0.5 + offset, size=min(portrait.subject.size, 0.7))
    source = replace(portrait, subject=replace(subject, x=0.5 - offset, mirrored=not subject.mirrored))
    text = pick(phrases.MIRROR, rng).format(subject=subject.name)
    return _edit(source, replace(portrait, subject=subject), text, (), ("subject", "background"))


def _resized(subject: Placed, size: float) -> Placed:
    """`subject` at another size about its middle, still inside the picture."""
    middle = subject.y - subject.size / 2
    y = min(max(middle + size / 2, 0.02 + size), 0.98)
    return replace(subject, size=size, y=y, x=min(max(subject.x, size / 2), 1 - size / 2))


def _style(split: str, rng: np.random.Generator) -> Edit:
    kind = pick(("landscape", "portrait", "text"), rng)
    scene = random_scene(kind, split, rng)
    style = pick(styles_for(scene), rng)
    target = Picture(scene, style=style)
    text = pick(phrases.STYLISE, rng).format(style=pick(phrases.STYLES[style], rng))
    kept = tuple(head for head in _content(scene) if head in target.heads())
    return Edit(Picture(scene), target, text, ("style",), kept)


def styles_for(scene: Scene) -> tuple[str, ...]:
    """Styles that leave the scene readable: letters do not survive big pixels."""
    return tuple(style for style in STYLES[1:] if not (isinstance(scene, Sign) and style == "pixelated"))
