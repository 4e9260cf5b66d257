"""Scene descriptions: every attribute of a picture, the free ones too, as frozen data. Lengths: shares of the side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datamodules.openmoji.tiles import NUM_VARIANTS
from datamodules.openmoji.vocabulary import COLOUR_HEADS, OBJECTS, PATTERNS, RECOLOURING, SHAPES, TYPEFACES

Tint = tuple[int, int, int]
LETTER_PITCH = (0.1, 0.12)
"""Width of a small letter with its gap."""


@dataclass(frozen=True)
class Placed:
    """A drawing in the picture. x: its middle; y: its lower edge; size: its longer side."""

    name: str
    x: float
    y: float
    size: float
    mirrored: bool


@dataclass(frozen=True)
class Cloud:
    """x, y: upper left corner."""

    variant: int
    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Look:
    """The free attributes of an outdoor backdrop, which stay when its sky or ground changes.

    disc: upper left corner and size of the sun or moon. Skies that hide it, and the clouds, do not draw them.
    """

    horizon: float
    variant: int
    roll: float
    flipped: bool
    sky_tint: Tint
    ground_tint: Tint
    disc: tuple[float, float, float] | None
    clouds: tuple[Cloud, ...]


@dataclass(frozen=True)
class Landscape:
    """A sky, a ground and objects; or, after an identity edit, one large portrait subject instead of objects."""

    sky: str
    ground: str
    look: Look
    items: tuple[Placed, ...] = ()
    subject: Placed | None = None

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items)


@dataclass(frozen=True)
class Portrait:
    """A subject before a background. tint: added to the colour; amplitude: of the pattern, in grey levels."""

    subject: Placed
    background: str
    tint: Tint
    pattern: str
    variant: int
    amplitude: int


@dataclass(frozen=True)
class Sign:
    """A text on a sign. word: one large word, or two small ones with a space between; stacked: each of two on a line of
    its own. x, y: the middle; angle in degrees; backdrop: an unnamed wall or an outdoor scene."""

    word: str
    sign: str
    ink: str
    typeface: str
    shape: str
    tint: Tint
    x: float
    y: float
    width: float
    height: float
    angle: float
    post: bool
    backdrop: Landscape | tuple[Tint, str, int]
    stacked: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self.word.split()) if self.stacked else (self.word,)


Scene = Landscape | Portrait | Sign


@dataclass(frozen=True)
class Picture:
    """A scene and what is done to its pixels. grain: picks the noise of a degraded picture."""

    scene: Scene
    style: str = "plain"
    quality: str = "clean"
    grain: int = 0

    def heads(self) -> dict[str, Any]:
        """The class of every head that the pixels show; the others are absent."""
        match self.scene:
            case Landscape(subject=None) as land:
                heads: dict[str, Any] = {"category": "landscape", "sky": land.sky, "ground": land.ground}
                heads["objects"] = sorted(land.objects)
            case Landscape(subject=Placed() as subject) as land:
                heads = {"category": "landscape", "sky": land.sky, "ground": land.ground, "subject": subject.name}
            case Portrait() as portrait:
                heads = {"category": "portrait", "subject": portrait.subject.name, "background": portrait.background}
            case Sign() as sign:
                heads = {"category": "text", "sign": sign.sign, "ink": sign.ink, "word": sign.word}
        if self.style in RECOLOURING:
            heads = {head: value for head, value in heads.items() if head not in COLOUR_HEADS}
        return heads | {"style": self.style, "quality": self.quality}


def _tint(rng: np.random.Generator, spread: int) -> Tint:
    common = int(rng.integers(-spread, spread + 1))
    red, green, blue = (common + int(value) for value in rng.integers(-spread // 3, spread // 3 + 1, 3))
    return red, green, blue


def _flip(rng: np.random.Generator, chance: float = 0.5) -> bool:
    return bool(rng.random() < chance)


def random_look(rng: np.random.Generator) -> Look:
    """The free attributes of an outdoor backdrop."""
    num_clouds = int(rng.choice(4, p=[0.4, 0.25, 0.2, 0.15]))
    clouds = tuple(
        Cloud(
            int(rng.integers(4)), rng.uniform(-0.08, 0.85), rng.uniform(0.02, 0.3), float(rng.choice([0.2, 0.26, 0.34]))
        )
        for _ in range(num_clouds)
    )
    disc = (
        (rng.uniform(0.02, 0.8), rng.uniform(0.03, 0.22), float(rng.choice([0.14, 0.18]))) if _flip(rng, 0.55) else None
    )
    return Look(
        horizon=rng.uniform(0.54, 0.7),
        variant=int(rng.integers(NUM_VARIANTS)),
        roll=rng.uniform(0, 1),
        flipped=_flip(rng),
        sky_tint=_tint(rng, 12),
        ground_tint=_tint(rng, 12),
        disc=disc,
        clouds=clouds,
    )


def place_objects(names: tuple[str, ...], horizon: float, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Objects side by side, those of the sky above the horizon and the others on the ground."""
    placed: list[Placed] = []
    for aloft in (False, True):
        row = [name for name in names if (OBJECTS[name].place == "sky") == aloft]
        slots = rng.permutation(len(row))
        placed += [_place(name, int(slot), len(row), horizon, rng) for name, slot in zip(row, slots, strict=True)]
    order = {name: at for at, name in enumerate(names)}
    return tuple(sorted(placed, key=lambda item: order[item.name]))


def _place(name: str, slot: int, num_slots: int, horizon: float, rng: np.random.Generator) -> Placed:
    drawing = OBJECTS[name]
    size = min(rng.uniform(drawing.low, drawing.high), (1.0, 0.5, 0.35)[num_slots - 1])
    slack = max(0.0, 1 / num_slots - size) / 2
    x = min(max((slot + 0.5) / num_slots + rng.uniform(-slack, slack), size / 2), 1 - size / 2)
    if drawing.place == "sky":
        y = rng.uniform(0.02, max(0.03, horizon - 0.1 - size)) + size
    else:
        y = rng.uniform(max(horizon + 0.1, 0.02 + size), 0.97)
    return Placed(name, float(x), float(y), float(size), _flip(rng))


def place_beside(name: str, others: tuple[Placed, ...], horizon: float, rng: np.random.Generator) -> Placed:
    """An object of free size, place and mirroring: of some random places the one that covers `others` least."""
    tries = [_place(name, 0, 1, horizon, rng) for _ in range(6 if others else 1)]
    return min(tries, key=lambda item: sum(_overlap(item, other) for other in others))


def _overlap(a: Placed, b: Placed) -> float:
    """Area that the squares about two drawings share."""
    across = min(a.x + a.size / 2, b.x + b.size / 2) - max(a.x - a.size / 2, b.x - b.size / 2)
    down = min(a.y, b.y) - max(a.y - a.size, b.y - b.size)
    return max(0.0, across) * max(0.0, down)


def restaged(items: tuple[Placed, ...], horizon: float, rng: np.random.Generator) -> tuple[Placed, ...]:
    """The same objects about where they were, before a backdrop with another horizon."""
    moved = []
    for item in items:
        size = float(item.size * rng.uniform(0.88, 1.0))
        x = min(max(item.x + rng.uniform(-0.07, 0.07), size / 2), 1 - size / 2)
        y = item.y + rng.uniform(-0.06, 0.06)
        if OBJECTS[item.name].place == "sky":
            y = min(max(y, 0.02 + size), max(0.03 + size, horizon - 0.1))
        else:
            y = min(max(y, horizon + 0.1, 0.02 + size), 0.97)
        moved.append(replace(item, size=size, x=float(x), y=float(y)))
    return tuple(moved)


def random_subject(name: str, rng: np.random.Generator, low: float = 0.54, high: float = 0.8) -> Placed:
    """A portrait subject somewhere about the middle."""
    size = rng.uniform(low, high)
    room = (1 - size) / 2 * 0.85
    x, y = 0.5 + rng.uniform(-room, room), 0.5 + size / 2 + rng.uniform(-room, room)
    return Placed(name, float(x), float(y), float(size), _flip(rng))


def random_outdoor_subject(name: str, rng: np.random.Generator) -> Placed:
    """A portrait subject standing in a landscape."""
    size = float(rng.uniform(0.48, 0.64))
    x, y = float(rng.uniform(0.32, 0.68)), float(rng.uniform(0.85, 0.96))
    return Placed(name, x, y, size, _flip(rng))


def random_portrait(subject: str, background: str, rng: np.random.Generator) -> Portrait:
    """A portrait whose size, place, mirroring, shade and pattern are free."""
    pattern = "plain" if _flip(rng, 0.3) else str(rng.choice(PATTERNS[1:]))
    amplitude = 0 if pattern == "plain" else int(rng.integers(7, 15)) * (-1 if _flip(rng) else 1)
    placed = random_subject(subject, rng)
    return Portrait(placed, background, _tint(rng, 10), pattern, int(rng.integers(NUM_VARIANTS)), amplitude)


def random_sign(
    word: str, sign: str, ink: str, backdrop: Landscape | None, rng: np.random.Generator, *, stacked: bool = False
) -> Sign:
    """A sign as large as its text needs; typeface, shape, size and place are free, and of one word also its turn."""
    if " " in word:
        width, height = _small_print(word, stacked, rng)
    else:
        width = min(0.97, rng.uniform(0.66, 0.97) if len(word) < 4 else rng.uniform(0.86, 0.97))
        height = rng.uniform(0.36, 0.56)
    angle = 0.0 if " " in word or _flip(rng, 0.5) else rng.uniform(-6, 6)
    level = int(rng.integers(110, 215))
    wall = (int(level + rng.integers(-25, 26)), int(level + rng.integers(-25, 26)), int(level + rng.integers(-25, 26)))
    return Sign(
        word=word,
        sign=sign,
        ink=ink,
        typeface=str(rng.choice(TYPEFACES)),
        shape=str(rng.choice(SHAPES)),
        tint=_tint(rng, 8),
        x=0.5 + rng.uniform(-1, 1) * (1 - width) / 2,
        y=rng.uniform(0.34, 0.6),
        width=width,
        height=height,
        angle=float(angle),
        post=_flip(rng, 0.6),
        backdrop=backdrop
        if backdrop is not None
        else (wall, str(rng.choice(PATTERNS)), int(rng.integers(NUM_VARIANTS))),
        stacked=stacked,
    )


def _small_print(word: str, stacked: bool, rng: np.random.Generator) -> tuple[float, float]:
    """Width and height of a sign whose letters are LETTER_PITCH apart, about one token of the tiny model each."""
    longest = max(len(line) for line in (word.split() if stacked else [word]))
    width = min(0.97, longest * rng.uniform(*LETTER_PITCH) + 0.12)
    height = rng.uniform(0.5, 0.6) if stacked else rng.uniform(0.3, 0.38)
    return float(width), float(height)
