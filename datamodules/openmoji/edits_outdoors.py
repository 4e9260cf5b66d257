"""Edits of the backdrop (`scene`) and of the things in a landscape (`object`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datamodules.openmoji import instructions, phrases
from datamodules.openmoji.compose import other_grounds, other_skies, pick, portrait_of_split, random_landscape
from datamodules.openmoji.edit import Edit, closed, free, object_sets, others
from datamodules.openmoji.scenes import Landscape, place_beside, random_look, random_portrait, restaged
from datamodules.openmoji.splits import objects_for
from datamodules.openmoji.vocabulary import (
    BACKGROUNDS,
    GROUNDS,
    OBJECT_GROUPS,
    OBJECTS,
    SKIES,
    groups_of,
    with_article,
)

SCENE_SHARES = {
    "sky": 0.12,
    "ground": 0.12,
    "background": 0.1,
    "elsewhere": 0.34,
    "place": 0.14,
    "any sky": 0.07,
    "any ground": 0.05,
    "any background": 0.06,
}
"""Kind of scene edit -> share; the first three have one right answer."""
OBJECT_SHARES = {"add": 0.4, "replace": 0.45, "remove": 0.15}
OPEN_SHARE = 0.5
"""Share of additions and replacements that name a group, or nothing, instead of an object."""
ANYTHING_SHARE = 0.3
"""Share of the open ones that ask for just something."""


def scene_edit(split: str, rng: np.random.Generator) -> Edit | None:
    """Another sky, ground or background; or all of the backdrop redrawn behind the same objects."""
    kind = str(rng.choice(list(SCENE_SHARES), p=list(SCENE_SHARES.values())))
    match kind:
        case "background" | "any background":
            return _background(kind == "background", split, rng)
        case "elsewhere" | "place":
            return _redrawn(kind == "place", split, rng)
        case "sky" | "any sky":
            return _sky(kind == "sky", split, rng)
        case _:
            return _ground(kind == "ground", split, rng)


def _sky(precise: bool, split: str, rng: np.random.Generator) -> Edit:
    target = random_landscape(split, rng)
    source = replace(target, sky=pick(other_skies(target), rng))
    if precise:
        text = pick(instructions.CHANGE_SKY, rng).format(sky=pick(phrases.SKIES[target.sky], rng))
        return closed(source, target, text, ("sky",), ("ground", "objects"))
    other, look = random_look(rng), target.look
    look = replace(look, sky_tint=other.sky_tint, disc=other.disc, clouds=other.clouds)
    text, accepted = pick(instructions.ANOTHER_SKY, rng), {"sky": others(SKIES, source.sky)}
    return free(replace(source, look=look), target, text, ("sky",), ("ground", "objects"), accepted)


def _ground(precise: bool, split: str, rng: np.random.Generator) -> Edit | None:
    target = random_landscape(split, rng)
    grounds = other_grounds(target)
    if not grounds:
        return None
    source = replace(target, ground=pick(grounds, rng))
    if precise:
        name = with_article(target.ground) if target.ground in ("road", "field") else target.ground
        text = pick(instructions.CHANGE_GROUND, rng).format(ground=name)
        return closed(source, target, text, ("ground",), ("sky", "objects"))
    text, accepted = pick(instructions.ANOTHER_GROUND, rng), {"ground": others(GROUNDS, source.ground)}
    return free(source, target, text, ("ground",), ("sky", "objects"), accepted)


def _background(precise: bool, split: str, rng: np.random.Generator) -> Edit:
    target = portrait_of_split(split, rng)
    colour = pick(others(BACKGROUNDS, target.background), rng)
    if precise:
        text = pick(instructions.CHANGE_BACKGROUND, rng).format(colour=target.background)
        return closed(replace(target, background=colour), target, text, ("background",), ("subject",))
    source = replace(random_portrait(target.subject.name, colour, rng), subject=target.subject)
    text, accepted = pick(instructions.ANOTHER_BACKGROUND, rng), {"background": others(BACKGROUNDS, colour)}
    return free(source, target, text, ("background",), ("subject",), accepted)


def _redrawn(precise: bool, split: str, rng: np.random.Generator) -> Edit | None:
    """Sky, ground and all that is free about them drawn anew, the objects about where they were."""
    target = random_landscape(split, rng)
    grounds = other_grounds(target)
    if not grounds:
        return None
    look = random_look(rng)
    items = restaged(target.items, look.horizon, rng)
    source = Landscape(pick(other_skies(target), rng), pick(grounds, rng), look, items)
    named, kept, many = ("sky", "ground"), ("objects",), len(items) > 1
    fields = {"it": "them" if many else "it", "old": items[0].name}
    if precise:
        fields |= {"ground": pick(phrases.GROUNDS[target.ground], rng), "sky": pick(phrases.SKIES[target.sky], rng)}
        return free(source, target, pick(instructions.MOVE_TO, rng).format(**fields), named, kept)
    accepted = {"sky": others(SKIES, source.sky), "ground": others(GROUNDS, source.ground)}
    return free(source, target, pick(instructions.ELSEWHERE, rng).format(**fields), named, kept, accepted)


def object_edit(split: str, rng: np.random.Generator) -> Edit | None:
    """An object more, another one or one less."""
    match str(rng.choice(list(OBJECT_SHARES), p=list(OBJECT_SHARES.values()))):
        case "add":
            return _add(split, rng)
        case "replace":
            return _replace(split, rng)
        case _:
            source = random_landscape(split, rng, min_objects=2)
            at = int(rng.integers(len(source.items)))
            text = pick(instructions.REMOVE, rng).format(old=source.items[at].name)
            return closed(source, _without(source, at), text, ("objects",), ("sky", "ground"))


def _add(split: str, rng: np.random.Generator) -> Edit:
    target = random_landscape(split, rng)
    at = int(rng.integers(len(target.items)))
    source, new = _without(target, at), target.items[at].name
    phrase, options = _wanted(new, "", rng)
    accepted = {"objects": object_sets(source.objects, options)} if options else {}
    text = pick(instructions.ADD, rng).format(new=phrase)
    return free(source, target, text, ("objects",), ("sky", "ground"), accepted)


def _replace(split: str, rng: np.random.Generator) -> Edit | None:
    target = random_landscape(split, rng)
    at = int(rng.integers(len(target.items)))
    new, rest = target.items[at].name, _without(target, at).items
    fitting = others(objects_for(target.sky, target.ground, split), *target.objects)
    related = [name for name in fitting if set(groups_of(name, OBJECT_GROUPS)) & set(groups_of(new, OBJECT_GROUPS))]
    if not fitting:
        return None
    old = pick(related if related and rng.random() < 0.5 else fitting, rng)
    placed = place_beside(old, rest, target.look.horizon, rng)
    source = replace(target, items=(*target.items[:at], placed, *target.items[at + 1 :]))
    phrase, options = _wanted(new, old, rng)
    accepted = {"objects": object_sets((item.name for item in rest), options)} if options else {}
    text = pick(instructions.REPLACE, rng).format(old=old, new=phrase)
    return free(source, target, text, ("objects",), ("sky", "ground"), accepted)


def _wanted(new: str, old: str, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """What an instruction calls the object `new` (in the place of `old`), and the objects that fulfil it if open."""
    groups = groups_of(new, OBJECT_GROUPS)
    if rng.random() >= OPEN_SHARE:
        return with_article(new), ()
    if not groups or rng.random() < ANYTHING_SHARE:
        return pick(instructions.SOMETHING_ELSE if old else instructions.SOMETHING, rng), others(OBJECTS, old)
    group = pick(groups, rng)
    variants = instructions.ANOTHER if old in OBJECT_GROUPS[group] else phrases.ANY_OBJECT
    return pick(variants[group], rng), others(OBJECT_GROUPS[group], old)


def _without(scene: Landscape, at: int) -> Landscape:
    return replace(scene, items=scene.items[:at] + scene.items[at + 1 :])
