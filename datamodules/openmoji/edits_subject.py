"""Edits of portraits (`identity`): the same subject elsewhere, or another subject in the same place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datamodules.openmoji import instructions, phrases
from datamodules.openmoji.compose import pick, portrait_of_split
from datamodules.openmoji.edit import Accepted, Edit, closed, free, others
from datamodules.openmoji.scenes import (
    Landscape,
    Placed,
    Portrait,
    random_look,
    random_outdoor_subject,
    random_portrait,
    random_subject,
)
from datamodules.openmoji.splits import scenes_of
from datamodules.openmoji.vocabulary import (
    BACKGROUNDS,
    GROUNDS,
    SKIES,
    SUBJECT_GROUPS,
    SUBJECTS,
    groups_of,
    with_article,
)

SHARES = {"outdoors": 0.32, "background": 0.2, "elsewhere": 0.16, "exchange": 0.22, "size": 0.05, "mirror": 0.05}
OPEN_SHARE = 0.5


def identity_edit(split: str, rng: np.random.Generator) -> Edit:
    """The subject stays and all else is drawn anew; or it is exchanged; few only resize or mirror it."""
    portrait = portrait_of_split(split, rng)
    match str(rng.choice(list(SHARES), p=list(SHARES.values()))):
        case "outdoors":
            return _outdoors(portrait, split, rng)
        case "background":
            return _background(portrait, rng)
        case "elsewhere":
            return _elsewhere(portrait.subject.name, split, rng)
        case "exchange":
            return _exchange(portrait, rng)
        case "size":
            return _size(portrait, rng)
        case _:
            return _mirror(portrait, rng)


def _landscape(name: str, sky: str, ground: str, rng: np.random.Generator) -> Landscape:
    return Landscape(sky, ground, random_look(rng), subject=random_outdoor_subject(name, rng))


def _outdoors(portrait: Portrait, split: str, rng: np.random.Generator) -> Edit:
    """The subject of a portrait put into a landscape, of which the sky, the ground or nothing is named."""
    name = portrait.subject.name
    sky, ground = pick(scenes_of("outdoors", name, split), rng)
    target = _landscape(name, sky, ground, rng)
    if rng.random() < OPEN_SHARE:
        text = pick(instructions.OUTDOORS, rng).format(subject=name)
        return free(portrait, target, text, ("category",), ("subject",))
    if rng.random() < 0.5:
        text = pick(instructions.UNDER_SKY, rng).format(subject=name, sky=pick(phrases.SKIES[sky], rng))
        return free(portrait, target, text, ("category", "sky"), ("subject",))
    text = pick(instructions.ON_GROUND, rng).format(subject=name, ground=pick(phrases.GROUNDS[ground], rng))
    return free(portrait, target, text, ("category", "ground"), ("subject",))


def _background(portrait: Portrait, rng: np.random.Generator) -> Edit:
    """The subject in another size and place before another background, named or any."""
    name, colour = portrait.subject.name, portrait.background
    before = pick(others(BACKGROUNDS, colour), rng)
    source = random_portrait(name, before, rng)
    accepted: Accepted = {}
    if rng.random() < OPEN_SHARE:
        text = pick(instructions.BEFORE_ANOTHER, rng).format(subject=name)
        accepted = {"background": others(BACKGROUNDS, before)}
    else:
        fields = {"subject": name, "colour": colour, "a_colour": with_article(colour)}
        text = pick(instructions.ON_BACKGROUND, rng).format(**fields)
    return free(source, portrait, text, ("background",), ("subject",), accepted)


def _elsewhere(name: str, split: str, rng: np.random.Generator) -> Edit:
    """The subject outdoors, moved under another sky and onto another ground, whichever."""
    sky, ground = pick(scenes_of("outdoors", name, split), rng)
    source = _landscape(name, pick(others(SKIES, sky), rng), pick(others(GROUNDS, ground), rng), rng)
    text = pick(instructions.SUBJECT_ELSEWHERE, rng).format(subject=name)
    accepted: Accepted = {"sky": others(SKIES, source.sky), "ground": others(GROUNDS, source.ground)}
    return free(source, _landscape(name, sky, ground, rng), text, ("sky", "ground"), ("subject",), accepted)


def _exchange(portrait: Portrait, rng: np.random.Generator) -> Edit:
    """Another subject, named or any of the same group, before the same background."""
    new = portrait.subject.name
    groups = groups_of(new, SUBJECT_GROUPS)
    accepted: Accepted = {}
    if groups and rng.random() < OPEN_SHARE:
        group = groups[0]
        old = pick(others(SUBJECT_GROUPS[group], new), rng)
        accepted = {"subject": others(SUBJECT_GROUPS[group], old)}
        text = pick(instructions.EXCHANGE_ANY, rng).format(subject=old, other=f"another {group}")
    else:
        old = pick(others(SUBJECTS, new), rng)
        text = pick(instructions.EXCHANGE, rng).format(subject=old, new=with_article(new))
    source = replace(portrait, subject=random_subject(old, rng))
    return free(source, portrait, text, ("subject",), ("background",), accepted)


def _size(portrait: Portrait, rng: np.random.Generator) -> Edit:
    """The same portrait with its subject much bigger or smaller."""
    small = replace(portrait, subject=_resized(portrait.subject, float(rng.uniform(0.4, 0.52))))
    large = replace(portrait, subject=_resized(portrait.subject, float(rng.uniform(0.74, 0.86))))
    grows = bool(rng.random() < 0.5)
    source, target = (small, large) if grows else (large, small)
    size = pick(instructions.BIGGER if grows else instructions.SMALLER, rng)
    text = pick(instructions.RESIZE, rng).format(subject=portrait.subject.name, size=size)
    return closed(source, target, text, (), ("subject", "background"))


def _mirror(portrait: Portrait, rng: np.random.Generator) -> Edit:
    """The subject mirrored and on the other side: its off-centre place shows the change on symmetric ones too."""
    offset = float(rng.uniform(0.09, 0.11)) * (1 if rng.random() < 0.5 else -1)
    subject = replace(portrait.subject, x=0.5 + offset, size=min(portrait.subject.size, 0.7))
    source = replace(portrait, subject=replace(subject, x=0.5 - offset, mirrored=not subject.mirrored))
    text = pick(instructions.MIRROR, rng).format(subject=subject.name)
    return closed(source, replace(portrait, subject=subject), text, (), ("subject", "background"))


def _resized(subject: Placed, size: float) -> Placed:
    """`subject` at another size about its middle, still inside the picture."""
    middle = subject.y - subject.size / 2
    y = min(max(middle + size / 2, 0.02 + size), 0.98)
    return replace(subject, size=size, y=y, x=min(max(subject.x, size / 2), 1 - size / 2))
