"""A case: one prompt of a benchmark, with all that a judge may hold the answer against."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from workbench.batch import Task

BENCHES: dict[Task, str] = {"t2i": "t2i_bench", "edit": "editing_bench"}
"""Task -> name of its benchmark."""


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt to answer. source, target: (H, W, 3) uint8 or None. more_sources: further ones of an edit, in order.
    seed: of its noise; its id when absent.

    scene, source_scene: attributes of a right answer and of the source. named, kept: attributes that the prompt
    determines, and that an edit must leave alone. accepted: every right value of an attribute that has several. exact:
    whether `target` is an edit's only right answer. text: what a right answer shows in letters, if it must. order:
    names of `objects` that the prompt gives from left to right. difficulty: the part of its category that the case is
    in, if in any; parts have scores of their own and stand in no mean.
    """

    id: str
    task: Task
    category: str
    prompt: str
    source: np.ndarray | None = None
    target: np.ndarray | None = None
    scene: dict[str, Any] = field(default_factory=dict)
    source_scene: dict[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    accepted: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    exact: bool = True
    seed: int | None = None
    text: str = ""
    order: tuple[str, ...] = ()
    difficulty: str = ""
    more_sources: tuple[np.ndarray, ...] = ()

    @property
    def sources(self) -> tuple[np.ndarray, ...]:
        """All that an edit reads, in order."""
        return () if self.source is None else (self.source, *self.more_sources)

    @property
    def only_source(self) -> np.ndarray | None:
        """What an answer can be compared with place by place; None where several sources make up the answer."""
        return None if self.more_sources else self.source

    @property
    def only_target(self) -> np.ndarray | None:
        """The one right answer; None where there are many, or none is known."""
        return self.target if self.exact else None

    @property
    def bench(self) -> str:
        """Name of the benchmark the case belongs to."""
        return BENCHES[self.task]

    def noise_seed(self, seed: int | str) -> int:
        """Seed of this case's noise under evaluation seed `seed`: the same for every model, independent of the other
        cases."""
        chosen = self.id if self.seed is None else self.seed
        return int.from_bytes(hashlib.sha256(f"{seed}/{chosen}".encode()).digest()[:6], "little")

    def asked(self) -> str:
        """Hash of what a model is asked: the prompt, and the pixels of the sources."""
        found = hashlib.sha256(self.prompt.encode())
        for source in self.sources:
            found.update(str(source.shape).encode() + source.tobytes())
        return found.hexdigest()[:16]


def slice_indices(available: int, count: int, seed: int) -> list[int]:
    """`count` of `available` cases, or all: the first ones under seed 0, else those that a seeded shuffle has first."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(available) if seed else np.arange(available)
    return [int(index) for index in order[:count]]
