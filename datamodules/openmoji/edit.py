"""What an edit is, and what the edits of all categories share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from datamodules.openmoji.scenes import Landscape, Picture, Portrait, Scene, Sign

Accepted = Mapping[str, Sequence[str | tuple[str, ...]]]
"""Head -> every value that fulfils the text, where these are many; a value of `objects` is a whole set, sorted."""


@dataclass(frozen=True)
class Edit:
    """named: heads of the target that source and instruction determine, up to `accepted`; kept: heads that stay as in
    the source; exact: nothing of the target is left free, so that pixels can be compared."""

    source: Picture
    target: Picture
    text: str
    named: tuple[str, ...]
    kept: tuple[str, ...]
    accepted: Accepted = field(default_factory=dict)
    exact: bool = True


def closed(source: Scene, target: Scene, text: str, named: tuple[str, ...], kept: tuple[str, ...]) -> Edit:
    """An edit with one right answer."""
    return Edit(Picture(source), Picture(target), text, named, kept)


def free(
    source: Scene,
    target: Scene,
    text: str,
    named: tuple[str, ...],
    kept: tuple[str, ...],
    accepted: Accepted | None = None,
) -> Edit:
    """An edit of which `target` is one right answer of many."""
    return Edit(Picture(source), Picture(target), text, named, kept, accepted or {}, exact=False)


def others(classes: Iterable[str], *but: str) -> tuple[str, ...]:
    """All of `classes` but those named."""
    return tuple(name for name in classes if name not in but)


def content(scene: Scene) -> tuple[str, ...]:
    """The heads that tell what is in a scene."""
    match scene:
        case Landscape():
            return ("sky", "ground", "objects")
        case Portrait():
            return ("subject", "background")
        case Sign():
            return ("word", "sign", "ink")


def object_sets(kept: Iterable[str], options: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Every set of objects that has `kept` and one more of `options`, sorted."""
    already = tuple(kept)
    return tuple(tuple(sorted((*already, name))) for name in options if name not in already)
