"""What `pack` and `encode` did not take as it is: samples left out, files ignored, captions that deserve a warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from workbench.common.errors import UserError
from workbench.common.outside import Count, Outside
from workbench.recipe.config import Data

KINDS = 50
_LONGEST_KIND = 40


class LeftOut(Outside):
    """A tally as `pack.json` and `index.json` hold it."""

    broken: list[str] = Field(default_factory=list)
    ignored: dict[str, Count] = Field(default_factory=dict)
    warned: dict[str, Count] = Field(default_factory=dict)


@dataclass
class Tally:
    """Counts along the way.

    skip: whether broken samples are left out, `most` of them, instead of ending the command. broken: one line each.
    ignored: files that belong to no sample, by kind. warned: samples that were taken all the same, by what about them.
    """

    skip: bool = False
    most: int = 0
    broken: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    warned: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, data: Data) -> Tally:
        """An empty one under the rules of a recipe."""
        return cls(data.broken == "skip", data.max_broken)

    @contextmanager
    def sample(self) -> Iterator[None]:
        """Around the reading of one sample: what is wrong with it leaves it out, where broken samples are skipped.

        Raises:
            UserError: the block's own where they are not, or one that names `data.max_broken`.
        """
        try:
            yield
        except UserError as error:
            if not self.skip:
                raise UserError(f"{error} (data.broken=skip leaves such samples out and counts them)") from error
            self.broken.append(str(error))
            self.check()

    def check(self) -> None:
        """Raises: UserError for more broken samples than `most`."""
        if len(self.broken) > self.most:
            raise UserError(
                f"{len(self.broken)} broken samples, more than data.max_broken={self.most}; the last: {self.broken[-1]}"
            )

    def ignore(self, kind: str) -> None:
        """Count a file of some kind; few kinds have a name of their own."""
        kind = kind[:_LONGEST_KIND]
        self.ignored[kind if kind in self.ignored or len(self.ignored) < KINDS else "others"] += 1

    def add(self, other: Tally | LeftOut) -> None:
        """Count what another one has counted. Raises: UserError as `check`."""
        self.broken += other.broken
        self.ignored.update(other.ignored)
        self.warned.update(other.warned)
        if self.skip:
            self.check()

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"broken": self.broken, "ignored": dict(self.ignored), "warned": dict(self.warned)}


def lines(found: Tally | LeftOut, where: str) -> list[str]:
    """What a summary says of it; nothing where all was taken. where: the file that names the broken samples."""
    said = []
    if found.broken:
        said.append(f"{len(found.broken):,} broken samples left out, named in {where}; the first: {found.broken[0]}")
    if found.ignored:
        said.append(f"ignored: {_counted(found.ignored.items())}")
    return said + [f"warning: {count:,} samples {what}" for what, count in found.warned.items()]


def _counted(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(items, key=lambda item: -item[1]))
