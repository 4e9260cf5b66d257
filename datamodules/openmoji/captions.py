"""Captions: what a user would type. They under-specify, and return the heads that they determine; the rest is free."""

from __future__ import annotations

import numpy as np

from datamodules.openmoji import phrases
from datamodules.openmoji.compose import pick
from datamodules.openmoji.scenes import Landscape, Portrait, Scene, Sign
from datamodules.openmoji.vocabulary import with_article

Caption = tuple[str, tuple[str, ...]]


def caption(scene: Scene, style: str, rng: np.random.Generator) -> Caption:
    """A caption and the heads that it determines. It names the style unless that is plain."""
    # With a style the caption names things only: of a recoloured picture nobody could check a colour.
    chance = 0.0 if style != "plain" else rng.random()
    match scene:
        case Landscape():
            text, named = _landscape(scene, chance, rng)
        case Portrait():
            text, named = _portrait(scene, chance, rng)
        case Sign():
            text, named = _sign(scene, chance, rng)
    if style == "plain":
        return text, named
    phrase = pick(phrases.STYLES[style], rng)
    return (f"{text} {phrase}" if rng.random() < 0.7 else f"{phrase}: {text}"), (*named, "style")


def _listing(names: tuple[str, ...], rng: np.random.Generator) -> str:
    """`a tree, a house and a car`, in any order."""
    things = [with_article(names[at]) for at in rng.permutation(len(names))]
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def _landscape(scene: Landscape, chance: float, rng: np.random.Generator) -> Caption:
    """All objects, or all with the sky or the ground, or one of these alone: never everything."""
    fields = {
        "objects": _listing(scene.objects, rng),
        "sky": pick(phrases.SKIES[scene.sky], rng),
        "ground": pick(phrases.GROUNDS[scene.ground], rng),
    }
    if chance < 0.3:
        return pick(phrases.OBJECTS, rng).format(**fields), ("objects",)
    if chance < 0.55:
        return pick(phrases.OBJECTS_SKY, rng).format(**fields), ("sky", "objects")
    if chance < 0.8:
        return pick(phrases.OBJECTS_GROUND, rng).format(**fields), ("ground", "objects")
    if chance < 0.9:
        return pick(phrases.SKY, rng).format(**fields), ("sky",)
    return pick(phrases.GROUND, rng).format(**fields), ("ground",)


def _portrait(scene: Portrait, chance: float, rng: np.random.Generator) -> Caption:
    """The subject, in half of the cases with the background."""
    subject, colour = with_article(scene.subject.name), scene.background
    if chance < 0.5:
        return pick(phrases.SUBJECT, rng).format(subject=subject), ("subject",)
    text = pick(phrases.SUBJECT_BACKGROUND, rng)
    return text.format(subject=subject, colour=colour, a_colour=with_article(colour)), ("subject", "background")


def _sign(scene: Sign, chance: float, rng: np.random.Generator) -> Caption:
    """The word, in most cases with the colour of the sign or of the letters, never both."""
    fields = {"word": scene.word, "sign": scene.sign, "ink": scene.ink}
    if chance < 0.3:
        return pick(phrases.WORD, rng).format(**fields), ("word",)
    if chance < 0.7:
        return pick(phrases.WORD_SIGN, rng).format(**fields), ("word", "sign")
    return pick(phrases.WORD_INK, rng).format(**fields), ("word", "ink")
