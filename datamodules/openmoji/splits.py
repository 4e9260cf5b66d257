"""Which combinations belong to which split: each held-out split owns some of every object and every subject."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from datamodules.openmoji.scenes import Landscape, Portrait, Scene, Sign
from datamodules.openmoji.vocabulary import BACKGROUNDS, COMMON_WORDS, GROUNDS, OBJECTS, SKIES, SPLITS, grounds_of

HELD_OUT = SPLITS[1:]
RESERVED_SCENES = 2
"""Number of an object's 30 or 36 (sky, ground) pairs in each held-out split; one of 6 or 10 choices."""

Combination = tuple[str, ...]


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("/".join(parts).encode(), digest_size=8).digest(), "little")


def _choices(kind: str, name: str) -> list[Combination]:
    """Every (sky, ground) or (background,) that a named drawing of this kind may meet."""
    match kind:
        case "object":
            return [(sky, ground) for sky in SKIES for ground in grounds_of(name)]
        case "outdoors":
            return [(sky, ground) for sky in SKIES for ground in GROUNDS]
        case "portrait":
            return [(background,) for background in BACKGROUNDS]
        case _:
            raise ValueError(f"no combinations of kind {kind!r}")


@lru_cache(maxsize=256)
def _reserved(kind: str, name: str) -> dict[Combination, str]:
    choices = _choices(kind, name)
    order = sorted(choices, key=lambda choice: _hash(kind, name, *choice))
    count = RESERVED_SCENES if len(choices) > len(BACKGROUNDS) else 1
    owners = [split for split in HELD_OUT for _ in range(count)]
    return dict(zip(order, owners, strict=False))


@lru_cache(maxsize=65536)
def split_of(combination: Combination) -> str:
    """The split that owns a combination, as `combinations` lists them; most belong to train."""
    kind, name, *rest = combination
    if kind == "word":
        return {0: "search", 1: "report", 2: "calibration"}.get(_hash("word", name) % 16, "train")
    return _reserved(kind, name).get(tuple(rest), "train")


def combinations(scene: Scene) -> frozenset[Combination]:
    """(object, sky, ground), (subject outdoors, sky, ground), (subject, background) and words of a scene."""
    match scene:
        case Landscape():
            pairs = [("object", name) for name in scene.objects]
            pairs += [("outdoors", scene.subject.name)] if scene.subject is not None else []
            return frozenset((*pair, scene.sky, scene.ground) for pair in pairs)
        case Portrait():
            return frozenset({("portrait", scene.subject.name, scene.background)})
        case Sign():
            return frozenset(("word", word) for word in scene.word.split())


def allowed(scene: Scene, split: str) -> bool:
    """Whether `split` may show the scene at all: none of its combinations is another held-out split's."""
    return all(split_of(combination) in ("train", split) for combination in combinations(scene))


def belongs(scene: Scene, split: str) -> bool:
    """Whether `split` may ask for the scene: allowed and, when held out, with a combination of its own."""
    owned = any(split_of(combination) == split for combination in combinations(scene))
    return allowed(scene, split) and (split == "train" or owned)


@lru_cache(maxsize=256)
def scenes_of(kind: str, name: str, split: str) -> tuple[Combination, ...]:
    """(sky, ground) or (background,) that `split` owns for an object or subject."""
    return tuple(choice for choice in _choices(kind, name) if split_of((kind, name, *choice)) == split)


@lru_cache(maxsize=256)
def objects_for(sky: str, ground: str, split: str) -> tuple[str, ...]:
    """Objects that `split` may show under this sky on this ground."""
    fitting = [name for name in OBJECTS if ground in grounds_of(name)]
    return tuple(name for name in fitting if split_of(("object", name, sky, ground)) in ("train", split))


@lru_cache(maxsize=4)
def common_words(split: str) -> tuple[str, ...]:
    """The common words that `split` owns."""
    return tuple(word for word in COMMON_WORDS if split_of(("word", word)) == split)
