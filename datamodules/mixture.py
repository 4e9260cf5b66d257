"""Which samples make up the global batch of which step: a pure function of (data, weights, seed, stream, step).

Counts come from quotas rather than chance. A group (task, geometry) with share p has, after n samples in all,
floor(n p) or ceil(n p) of them, so its accumulated error stays below one sample at every step; within a group the same
holds for every category with respect to the group's own samples. Handing each seat to the largest accumulated error
does not guarantee that for more than two groups; handing it to the group whose next sample is due first does (the quota
method of Balinski and Young, 1975; Tijdeman's chairman assignment, 1980). All shares are exact fractions.

Samples of a category come in random permutations, one a pass, so every prompt is drawn once before any is drawn again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from threading import Lock

import numpy as np

from datamodules.shares import advance_quotas, category_shares, integers, used_samples
from workbench.batch import TASKS, Task
from workbench.recipe.config import Mixture

STUDENT = "student"
STEPS_SEEN = 1000
"""Steps of a plan whose shapes are looked at: counts differ by one from step to step, and come back soon."""


def fake_stream(update: int) -> str:
    """Name of the stream that the fake-score update of this number (within a step) draws its conditions from."""
    return f"fake{update}"


@dataclass(frozen=True)
class GroupRows:
    """One group of one global batch. samples: (n,) int64, dataset index of each row."""

    task: Task
    geometry: int
    samples: np.ndarray

    def of_rank(self, rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one rank, (ceil(n / world),) int64, and their weights, float32.

        Rank r has rows r, r + world, ...; where they run out the last row stands in with weight 0, so that all ranks
        run the same shapes.
        """
        num_rows = len(self.samples)
        rows = rank + world * np.arange(-(-num_rows // world), dtype=np.int64)
        return np.minimum(rows, num_rows - 1), (rows < num_rows).astype(np.float32)


def micro_batches(num_rows: int, micro_batch_size: int) -> list[slice]:
    """Slices that split a rank's rows into as few parts as fit `micro_batch_size`, sizes differing by one at most; none
    without rows."""
    parts = -(-num_rows // micro_batch_size)
    edges = [num_rows * part // max(parts, 1) for part in range(parts + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


@dataclass(frozen=True)
class _Group:
    task: Task
    geometry: int
    categories: tuple[int, ...]
    category_shares: tuple[int, ...]
    members: tuple[np.ndarray, ...]
    """Dataset indices of each category."""


class MixturePlan:
    """Global batches over samples with a category and a geometry each. Threads may share one.

    Args:
        category: (S,) index of each sample into `categories`. geometry: (S,) index of each sample's geometry.
        categories: qualified names, `task/category`.

    Raises:
        UserError: a task or category that has weight has no samples, or fewer than `mixture.prompts` asks for.
    """

    def __init__(
        self, category: np.ndarray, geometry: np.ndarray, categories: Sequence[str], mixture: Mixture, seed: int
    ) -> None:
        self.categories = tuple(categories)
        self.batch_size = mixture.batch_size
        self.micro_batch_size = mixture.micro_batch_size
        self.seed = seed
        available = np.bincount(category, minlength=len(categories)).tolist()
        shares = category_shares(categories, available, mixture)
        used = used_samples(categories, available, shares, mixture)
        self.num_samples = np.array(used)
        if used != available:
            category = _drawn_prompts(category, self.categories, used, seed)
        self._groups, self._group_shares = _groups(category, geometry, self.categories, self.num_samples, shares)
        self._offsets = np.cumsum([0, *(len(group.categories) for group in self._groups)])
        # (steps, cells): samples drawn of each category of each group before a step, one row a step, as far as asked
        self._drawn = np.zeros((1, int(self._offsets[-1])), dtype=np.int64)
        self._num_known = 1
        self._extending = Lock()
        self._period = _period(self._groups, self._group_shares, self.batch_size)
        self._permutations: dict[tuple[str, int], tuple[int, np.ndarray]] = {}

    def drawn(self, step: int) -> np.ndarray:
        """Samples that one stream drew before `step`, by cell (group, category)."""
        if step <= self._period:
            with self._extending:
                self._extend(step)
            return self._drawn[step]
        return step // self._period * self.drawn(self._period) + self.drawn(step % self._period)

    def _extend(self, step: int) -> None:
        """Replay the quotas up to `step`."""
        cells = self._split(self._drawn[self._num_known - 1])
        while self._num_known <= step:
            total = self._num_known * self.batch_size
            totals = advance_quotas([sum(group) for group in cells], total, self._group_shares)
            cells = [
                advance_quotas(counts, num, group.category_shares)
                for counts, num, group in zip(cells, totals, self._groups, strict=True)
            ]
            if self._num_known == len(self._drawn):
                self._drawn = np.concatenate([self._drawn, np.zeros_like(self._drawn)])
            self._drawn[self._num_known] = [count for group in cells for count in group]
            self._num_known += 1

    def _split(self, cells: np.ndarray) -> list[list[int]]:
        values = cells.tolist()
        return [values[a:b] for a, b in zip(self._offsets, self._offsets[1:], strict=False)]

    def global_batch(self, step: int, stream: str) -> tuple[GroupRows, ...]:
        """The groups of one global batch, all ranks together; a group without samples in this step is left out."""
        before, after = self.drawn(step), self.drawn(step + 1)
        shuffle = _generator(self.seed, "rows", stream, step)
        batch = []
        for group, start in zip(self._groups, self._offsets, strict=False):
            chosen = [
                self._take(stream, int(start) + i, members, int(before[start + i]), int(after[start + i]))
                for i, members in enumerate(group.members)
            ]
            samples = np.concatenate(chosen)
            if len(samples):
                # rows key what else is drawn for a sample, so no category may always sit in the same ones
                batch.append(GroupRows(group.task, group.geometry, shuffle.permutation(samples)))
        return tuple(batch)

    def _take(self, stream: str, cell: int, members: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Positions [start, stop) of a cell's endless sequence of permutations."""
        taken = []
        while start < stop:
            pass_, offset = divmod(start, len(members))
            num = min(stop - start, len(members) - offset)
            taken.append(members[self._permutation(stream, cell, pass_, len(members))[offset : offset + num]])
            start += num
        return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)

    def _permutation(self, stream: str, cell: int, pass_: int, size: int) -> np.ndarray:
        kept = self._permutations.get((stream, cell))
        if kept is None or kept[0] != pass_:
            kept = (pass_, _generator(self.seed, "pass", stream, cell, pass_).permutation(size))
            self._permutations[stream, cell] = kept
        return kept[1]

    def shapes(self, num_steps: int, world: int = 1) -> dict[tuple[int, int], np.ndarray]:
        """Shapes of a rank's micro-batches in the first `num_steps` steps, by geometry and number of rows, each with as
        many samples that have it, (rows,) int64."""
        found: dict[tuple[int, int], np.ndarray] = {}
        counts = [self.drawn(step) for step in range(min(num_steps, self._period, STEPS_SEEN) + 1)]
        for before, after in zip(counts, counts[1:], strict=False):
            for group, in_group in zip(self._groups, self._split(after - before), strict=True):
                of_rank = -(-sum(in_group) // world)
                for part in micro_batches(of_rank, self.micro_batch_size):
                    rows = part.stop - part.start
                    found.setdefault((group.geometry, rows), np.resize(np.concatenate(group.members), rows))
        return found

    def realised(self, num_steps: int) -> dict[str, int]:
        """Samples of each category that one stream draws in the first `num_steps` steps."""
        totals = dict.fromkeys(self.categories, 0)
        cells = [category for group in self._groups for category in group.categories]
        for category, count in zip(cells, self.drawn(num_steps).tolist(), strict=True):
            totals[self.categories[category]] += count
        return totals

    def passes(self, num_steps: int, num_streams: int = 1) -> dict[str, float]:
        """How often each prompt of a category has been drawn after `num_steps` steps, over `num_streams` streams."""
        return {
            name: num_streams * count / int(num)
            for (name, count), num in zip(self.realised(num_steps).items(), self.num_samples, strict=True)
        }


def _drawn_prompts(category: np.ndarray, categories: Sequence[str], used: Sequence[int], seed: int) -> np.ndarray:
    """(S,) `category`, or -1 for the samples that this seed leaves out. A larger set holds the smaller ones."""
    kept = np.full(len(category), -1, dtype=np.int64)
    for index, (name, num) in enumerate(zip(categories, used, strict=True)):
        members = np.flatnonzero(category == index)
        kept[members[_generator(seed, "prompts", name).permutation(len(members))[:num]]] = index
    return kept


def _groups(
    category: np.ndarray,
    geometry: np.ndarray,
    categories: tuple[str, ...],
    num_samples: np.ndarray,
    shares: Sequence[Fraction],
) -> tuple[list[_Group], list[int]]:
    """Groups in order of (task, geometry) with the integer shares of groups, and of categories within each."""
    groups, group_shares = [], []
    for task in TASKS:
        chosen = [c for c, share in enumerate(shares) if share and categories[c].startswith(f"{task}/")]
        for layout in np.unique(geometry[np.isin(category, chosen)]).tolist():
            members = {c: np.flatnonzero((category == c) & (geometry == layout)) for c in chosen}
            members = {c: indices for c, indices in members.items() if len(indices)}
            fractions = [shares[c] * Fraction(len(indices), int(num_samples[c])) for c, indices in members.items()]
            groups.append(_Group(task, layout, tuple(members), tuple(integers(fractions)), tuple(members.values())))
            group_shares.append(sum(fractions, Fraction(0)))
    return groups, integers(group_shares)


def _period(groups: Sequence[_Group], group_shares: Sequence[int], batch_size: int) -> int:
    """Steps after which every quota comes out even, so that the counts of the plan repeat."""
    quotas = [
        Fraction(batch_size * group_share * share, sum(group_shares) * sum(group.category_shares))
        for group, group_share in zip(groups, group_shares, strict=True)
        for share in group.category_shares
    ]
    return lcm(*(quota.denominator for quota in quotas))


def _generator(seed: int, *names: str | int) -> np.random.Generator:
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
