"""Captions: what a user would type. They under-specify, and return the heads that they determine; the rest is free."""

from __future__ import annotations

import numpy as np

from datamodules.openmoji import phrases
from datamodules.openmoji.compose import pick
from datamodules.openmoji.edit import Accepted, object_sets, others
from datamodules.openmoji.scenes import Landscape, Placed, Portrait, Scene, Sign
from datamodules.openmoji.vocabulary import OBJECT_GROUPS, SUBJECT_GROUPS, groups_of, with_article

OPEN_SHARE = 0.15
"""So many captions name a group, or no word, where the others name one thing."""
Caption = tuple[str, tuple[str, ...], Accepted]
"""Text, named heads, and the values that fulfil the text where these are many."""


def caption(scene: Scene, style: str, rng: np.random.Generator) -> Caption:
    """A caption, the heads that it determines and what fulfils it. It names the style unless that is plain."""
    # With a style the caption names things only: of a recoloured picture nobody could check a colour.
    chance = 0.0 if style != "plain" else rng.random()
    match scene:
        case Landscape():
            text, named, accepted = _landscape(scene, chance, rng)
        case Portrait():
            text, named, accepted = _portrait(scene, chance, rng)
        case Sign():
            text, named, accepted = _sign(scene, chance, rng)
    if style == "plain":
        return text, named, accepted
    phrase = pick(phrases.STYLES[style], rng)
    return (f"{text} {phrase}" if rng.random() < 0.7 else f"{phrase}: {text}"), (*named, "style"), accepted


def _listing(things: list[str]) -> str:
    """`a tree, a house and a car`."""
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def _objects(items: tuple[Placed, ...], rng: np.random.Generator) -> tuple[str, Accepted]:
    """The objects from left to right, as people tell them; in few of the cases one of them goes by its group."""
    names = [item.name for item in sorted(items, key=lambda item: item.x)]
    things, at = [with_article(name) for name in names], int(rng.integers(len(names)))
    groups = groups_of(names[at], OBJECT_GROUPS)
    if not groups or rng.random() >= OPEN_SHARE:
        return _listing(things), {}
    group = pick(groups, rng)
    things[at] = pick(phrases.ANY_OBJECT[group], rng)
    return _listing(things), {"objects": object_sets(others(names, names[at]), OBJECT_GROUPS[group])}


def _landscape(scene: Landscape, chance: float, rng: np.random.Generator) -> Caption:
    """All objects, or all with the sky or the ground, or one of these alone: never everything."""
    objects, accepted = _objects(scene.items, rng)
    fields = {
        "objects": objects,
        "sky": pick(phrases.SKIES[scene.sky], rng),
        "ground": pick(phrases.GROUNDS[scene.ground], rng),
    }
    if chance < 0.3:
        return pick(phrases.OBJECTS, rng).format(**fields), ("objects",), accepted
    if chance < 0.55:
        return pick(phrases.OBJECTS_SKY, rng).format(**fields), ("sky", "objects"), accepted
    if chance < 0.8:
        return pick(phrases.OBJECTS_GROUND, rng).format(**fields), ("ground", "objects"), accepted
    if chance < 0.9:
        return pick(phrases.SKY, rng).format(**fields), ("sky",), {}
    return pick(phrases.GROUND, rng).format(**fields), ("ground",), {}


def _portrait(scene: Portrait, chance: float, rng: np.random.Generator) -> Caption:
    """The subject or its group, in half of the cases with the background."""
    subject, colour = with_article(scene.subject.name), scene.background
    accepted: Accepted = {}
    groups = groups_of(scene.subject.name, SUBJECT_GROUPS)
    if groups and rng.random() < OPEN_SHARE:
        subject, accepted = pick(phrases.ANY_SUBJECT[groups[0]], rng), {"subject": SUBJECT_GROUPS[groups[0]]}
    if chance < 0.5:
        return pick(phrases.SUBJECT, rng).format(subject=subject), ("subject",), accepted
    text = pick(phrases.SUBJECT_BACKGROUND, rng)
    text = text.format(subject=subject, colour=colour, a_colour=with_article(colour))
    return text, ("subject", "background"), accepted


def _sign(scene: Sign, chance: float, rng: np.random.Generator) -> Caption:
    """The text, in most cases with the colour of the sign or of the letters, never both; in few any word will do."""
    fields = {"word": phrases.OVER.join(scene.lines), "sign": scene.sign, "ink": scene.ink}
    one = " " not in scene.word
    forms = phrases.WORD, phrases.WORD_SIGN, phrases.WORD_INK
    text, with_sign, with_ink = forms if one else (phrases.WORDS, phrases.WORDS_SIGN, phrases.WORDS_INK)
    if one and 0 < chance < OPEN_SHARE:
        return pick(phrases.ANY_WORD, rng).format(**fields), ("sign",), {}
    if chance < 0.4:
        return pick(text, rng).format(**fields), ("word",), {}
    if chance < 0.72:
        return pick(with_sign, rng).format(**fields), ("word", "sign"), {}
    return pick(with_ink, rng).format(**fields), ("word", "ink"), {}
