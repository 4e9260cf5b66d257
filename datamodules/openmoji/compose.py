"""Random scenes of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from datamodules.openmoji.scenes import (
    Landscape,
    Portrait,
    Scene,
    Sign,
    place_objects,
    random_look,
    random_portrait,
    random_sign,
)
from datamodules.openmoji.splits import common_words, objects_for, scenes_of, split_of
from datamodules.openmoji.vocabulary import (
    GROUNDS,
    LEGIBLE,
    LENGTHS,
    LINE_LETTERS,
    OBJECTS,
    SIGNS,
    SKIES,
    SUBJECTS,
    grounds_of,
)

Lettering = Literal["one word", "two words", "two lines"]
LETTERINGS: dict[Lettering, float] = {"one word": 0.5, "two words": 0.25, "two lines": 0.25}
"""What signs say -> share: one large word, or two in small letters, side by side or one below the other."""

T = TypeVar("T")

COMMON_SHARE = {"train": 0.3, "search": 0.1, "report": 0.1, "calibration": 0.1}
"""How many of the words are common ones; the held-out splits own but a few of these."""

NUM_OBJECTS = (0.46, 0.46, 0.08)
"""Shares of landscapes with one, two and three objects."""

_ONSETS = "B C D F G H J K L M N P QU R S T V W X Y Z BR CH CL CR DR FL FR GL GR PL PR SH SL ST TH TR"
_VOWELS = "A E I O U A E I O U EA OO AI OU IE"
_CODAS = "B D F G K L M N P R S T X Z CK LD LL LT MP ND NG NK NT RD RK RM RN RT SH SS ST TH"


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of `options`, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def random_word(split: str, rng: np.random.Generator) -> str:
    """A word of `split`: a common one, or pronounceable nonsense."""
    if rng.random() < COMMON_SHARE[split] and common_words(split):
        return pick(common_words(split), rng)
    while True:
        length = int(rng.choice(list(LENGTHS), p=list(LENGTHS.values())))
        word = "" if rng.random() < 0.75 else pick(_VOWELS.split(), rng)
        while len(word) < length:
            word += pick(_ONSETS.split(), rng) + pick(_VOWELS.split(), rng)
            word += pick(_CODAS.split(), rng) if rng.random() < 0.33 else ""
        if split_of(("word", word[:length])) == split:
            return word[:length]


def random_names(
    sky: str, ground: str, split: str, first: tuple[str, ...], count: int, rng: np.random.Generator
) -> tuple[str, ...]:
    """`count` different objects that `split` may show there, `first` first, at most two of them in the sky."""
    names = list(first)
    pool = objects_for(sky, ground, split)
    while len(names) < count:
        name = pick(pool, rng)
        aloft = sum(OBJECTS[other].place == "sky" for other in (*names, name))
        if name not in names and aloft <= 2:
            names.append(name)
    return tuple(names)


def random_landscape(split: str, rng: np.random.Generator, min_objects: int = 1, max_objects: int = 3) -> Landscape:
    """A landscape whose first object makes it belong to `split`."""
    anchor: tuple[str, ...]
    if split == "train":
        sky, ground = pick(SKIES, rng), pick(GROUNDS, rng)
        afloat = [name for name in objects_for(sky, ground, split) if OBJECTS[name].place == "water"]
        # Boats have one ground only: without this they would be drawn five times less often than houses.
        anchor = (pick(afloat, rng),) if afloat and rng.random() < 0.5 else ()
    else:
        name = pick(tuple(OBJECTS), rng)
        sky, ground = pick(scenes_of("object", name, split), rng)
        anchor = (name,)
    count = min(max(int(rng.choice(3, p=NUM_OBJECTS)) + 1, min_objects), max_objects)
    look = random_look(rng)
    names = random_names(sky, ground, split, anchor, count, rng)
    return Landscape(sky, ground, look, place_objects(names, look.horizon, rng))


def portrait_of_split(split: str, rng: np.random.Generator) -> Portrait:
    """A portrait whose subject and background belong to `split`."""
    subject = pick(tuple(SUBJECTS), rng)
    (background,) = pick(scenes_of("portrait", subject, split), rng)
    return random_portrait(subject, background, rng)


def sign_of_split(split: str, rng: np.random.Generator, lettering: Lettering = "one word") -> Sign:
    """A sign with one or two words of `split`, before a wall or an empty landscape."""
    sign = pick(tuple(SIGNS), rng)
    outdoors = Landscape(pick(SKIES, rng), pick(GROUNDS, rng), random_look(rng)) if rng.random() < 0.5 else None
    word = random_text(split, lettering, rng)
    return random_sign(word, sign, pick(LEGIBLE[sign], rng), outdoors, rng, stacked=lettering == "two lines")


def random_text(split: str, lettering: Lettering, rng: np.random.Generator) -> str:
    """A word of `split`, or two with a space between them, of which a line holds at most LINE_LETTERS."""
    while True:
        text = " ".join(random_word(split, rng) for _ in range(1 if lettering == "one word" else 2))
        if lettering != "two words" or len(text) <= LINE_LETTERS:
            return text


def lettering_of(sign: Sign) -> Lettering:
    """What the sign says."""
    return "one word" if " " not in sign.word else "two lines" if sign.stacked else "two words"


def random_lettering(rng: np.random.Generator) -> Lettering:
    """What a sign says, by the shares of LETTERINGS."""
    names = tuple(LETTERINGS)
    return names[int(rng.choice(len(names), p=list(LETTERINGS.values())))]


def random_scene(kind: str, split: str, rng: np.random.Generator, *, small_print: bool = False) -> Scene:
    """A scene of T2I category `kind`. small_print: signs may say two words, in small letters."""
    match kind:
        case "landscape":
            return random_landscape(split, rng)
        case "portrait":
            return portrait_of_split(split, rng)
        case "text":
            return sign_of_split(split, rng, random_lettering(rng) if small_print else "one word")
        case _:
            raise ValueError(f"no scene of category {kind!r}")


def other_skies(scene: Landscape) -> tuple[str, ...]:
    """Every sky but the scene's own."""
    return tuple(sky for sky in SKIES if sky != scene.sky)


def other_grounds(scene: Landscape) -> tuple[str, ...]:
    """Every ground but the scene's own on which all its objects may stand."""
    return tuple(
        ground
        for ground in GROUNDS
        if ground != scene.ground and all(ground in grounds_of(name) for name in scene.objects)
    )
