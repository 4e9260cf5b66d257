"""Before the first update: each kind of batch once, so that nothing is left to compile, and so many blocks keep their
activations as the device has memory for.

Every rank rehearses the same shapes. Random numbers are functions of the update, so nothing of it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from workbench.backbones import blocks
from workbench.backbones.base import RoleNetworks, TransformerDenoiser
from workbench.backbones.roles import FAKE_SCORE, STUDENT
from workbench.batch import Batch
from workbench.common import ranks
from workbench.engine.graph_steps import GraphStep, StepInput, run_eagerly
from workbench.engine.means import Means
from workbench.modules.distiller import Distiller

INFINITE = float("inf")
USED_SHARE = 0.9
"""Of the memory that is there before the first update: what is freed comes back in pieces that do not always fit."""


@dataclass(frozen=True)
class Pair:
    """Batches of one shape, as the student's update has them and as the fake score's has them."""

    student: Batch
    fake: Batch

    def to(self, device: torch.device) -> Pair:
        """Same batches on `device`."""
        return Pair(self.student.to(device), self.fake.to(device))


def prepare(module: Distiller, pairs: Sequence[Pair], limit_bytes: int | None, done: Callable[[], None]) -> int:
    """Rehearse `pairs`, with blocks stored as their network has it or, with a limit, as many as leave the peak of
    every pair below it; returns blocks stored.

    Each is rehearsed without stored blocks first, where a compiler finds memory to try its kernels. Then all blocks are
    tried, or, where they do not fit or ranks share a network, the pair of the highest peak says how many, and the
    others are held against the limit. done: called at most `rehearsals(...)` times.
    """
    networks = _trained_networks(module)
    blocks.allow_shapes(len(pairs))
    if limit_bytes is None:
        for pair in pairs:
            _rehearse(module, pair)
            done()
        return len(networks[0].blocks) - networks[0].num_recomputed
    lowest = []
    for pair in pairs:
        lowest.append(max(ranks.gathered(_peak(module, networks, pair, 0))))
        done()
    # A rank of a sharded network that ran out of memory would leave the others waiting for its shards.
    if module.device_mesh is None and _all_blocks_fit(module, networks, pairs, limit_bytes, done):
        return len(networks[0].blocks)
    hardest = max(range(len(pairs)), key=lowest.__getitem__)
    stored = _affordable_for(module, pairs[hardest], lowest[hardest], limit_bytes)
    done()
    for pair in pairs:
        while stored and not _fits(module, networks, pair, stored, limit_bytes):
            stored -= max(1, stored // 8)
        done()
    store(networks, stored)
    return stored


def rehearsals(num_pairs: int, chooses: bool) -> int:
    """How often `prepare` calls back for so many pairs, at most."""
    return 3 * num_pairs if chooses else num_pairs


def _all_blocks_fit(
    module: Distiller,
    networks: Sequence[TransformerDenoiser],
    pairs: Sequence[Pair],
    limit_bytes: int,
    done: Callable[[], None],
) -> bool:
    """Whether every pair stays below the limit with all blocks stored, on all ranks."""
    with _memory_left_to_others(module.device, limit_bytes):
        for pair in pairs:
            if not _fits(module, networks, pair, len(networks[0].blocks), limit_bytes):
                return False
            done()
    return True


@contextmanager
def _memory_left_to_others(device: torch.device, limit_bytes: int) -> Iterator[None]:
    """Tensors that outgrow the limit are refused while half of the memory above it is still free: kernels that are
    loaded just then, libraries and other ranks need some, and do not say so in words that can be caught."""
    if device.type != "cuda":
        yield
        return
    _, total = torch.cuda.mem_get_info(device)
    largest = (limit_bytes + _obtainable_bytes(device)) / 2
    before = torch.cuda.get_per_process_memory_fraction(device)
    torch.cuda.set_per_process_memory_fraction(min(before, largest / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def _affordable_for(module: Distiller, pair: Pair, lowest: float, limit_bytes: int) -> int:
    """Blocks that may be stored for one pair, whose peak is `lowest` without any.

    All ranks of a sharded network go on, from a single block, only while the peaks so far lead each to expect that the
    next one fits.
    """
    networks, sharded = _trained_networks(module), module.device_mesh is not None
    num_blocks = len(networks[0].blocks)
    few, more = max(1, num_blocks // 8), max(2, num_blocks // 4)
    peaks = {0: lowest}
    for stored in dict.fromkeys((1, few, more) if sharded else (few, more)):
        tries = not sharded or all(ranks.gathered(expected_peak(peaks, stored) < limit_bytes))
        peaks[stored] = _peak(module, networks, pair, stored) if tries else INFINITE
    found = affordable({few: peaks[few], more: peaks[more]}, num_blocks, limit_bytes)
    found = found or int(peaks.get(1, INFINITE) < limit_bytes)
    # Recomputed blocks are gathered again, which all ranks do together.
    return min(ranks.gathered(found))


def expected_peak(peaks: Mapping[int, float], stored: int) -> float:
    """Peak with so many blocks stored, on a line through the last two of `peaks`; the last one where it is alone."""
    if len(peaks) < 2:
        return max(peaks.values(), default=0.0)
    (fewer, low), (last, high) = sorted(peaks.items())[-2:]
    return INFINITE if high == INFINITE else high + (stored - last) * (high - low) / (last - fewer)


def affordable(peaks: dict[int, float], num_blocks: int, limit_bytes: int) -> int:
    """Stored blocks, of `num_blocks`, whose peak stays below a limit: a line through two measured peaks, in bytes by
    number of stored blocks. None fit where a peak is infinite."""
    (few, low), (more, high) = sorted(peaks.items())
    if high == INFINITE:
        return few if low < limit_bytes else 0
    each = max(1.0, (high - low) / (more - few))
    return max(0, min(num_blocks, more + int((limit_bytes - high) // each)))


def available_bytes(device: torch.device) -> int:
    """Memory that tensors may take on a GPU, those that are there included."""
    return int(USED_SHARE * _obtainable_bytes(device))


def _obtainable_bytes(device: torch.device) -> int:
    """What is free on a GPU and what torch holds."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def compilations() -> int:
    """Graphs that torch has compiled so far in this process."""
    return counters["stats"]["unique_graphs"]


def store(networks: Iterable[TransformerDenoiser], count: int) -> None:
    """Let the last `count` blocks of each network keep their activations."""
    for network in networks:
        network.num_recomputed = max(0, len(network.blocks) - count)


def _trained_networks(module: Distiller) -> list[TransformerDenoiser]:
    assert isinstance(module.denoiser, RoleNetworks)
    return [module.denoiser.network(role) for role in (STUDENT, FAKE_SCORE)]


def _fits(
    module: Distiller, networks: Sequence[TransformerDenoiser], pair: Pair, stored: int, limit_bytes: int
) -> bool:
    """Whether the peak of a rehearsal stays below the limit on all ranks (collective)."""
    return all(ranks.gathered(_peak(module, networks, pair, stored) <= limit_bytes))


def _peak(module: Distiller, networks: Sequence[TransformerDenoiser], pair: Pair, stored: int) -> float:
    """Highest memory of a rehearsal, infinite where it ran out; in bytes."""
    store(networks, stored)
    torch.cuda.reset_peak_memory_stats(module.device)
    try:
        _rehearse(module, pair)
    except torch.OutOfMemoryError:
        if stored == 0:
            raise
        module.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return INFINITE
    return torch.cuda.max_memory_allocated(module.device)


def _rehearse(module: Distiller, pair: Pair) -> None:
    """Losses and gradients of both roles, of the student at steps that run every teacher."""
    pair, skipped = pair.to(module.device), module.teachers.skips_unweighted
    module.teachers.skips_unweighted = False
    try:
        for step in _covering(module.active[pair.student.task]):
            _graded(module, pair.student, STUDENT, partial(module.student_loss, step=step))
        step = min(1, module.student.num_steps - 1)
        _graded(module, pair.fake, FAKE_SCORE, partial(module.fake_score_loss, step=step))
    finally:
        module.teachers.skips_unweighted = skipped
        module.zero_grad(set_to_none=True)


def _graded(module: Distiller, batch: Batch, role: str, loss: Callable[[StepInput, Means], Tensor]) -> None:
    """The loss of `role`, with its gradient."""

    def run(inputs: Sequence[StepInput], means: Means) -> list[Tensor]:
        (given,) = inputs
        loss(given, means).sum().backward()
        return []

    run_eagerly(GraphStep((role, "rehearsal"), role, (batch,), run), module.draws, Means())


def _covering(active: Sequence[Sequence[bool]]) -> list[int]:
    """Few student steps at which every teacher of a task runs, the one of most teachers first. Of equals the second,
    then those after it: its rollout is short, and the first has none."""
    missing = {m for row in active for m, runs in enumerate(row) if runs}
    chosen: list[int] = []
    while missing:
        gains = [len(missing.intersection(m for m, runs in enumerate(row) if runs)) for row in active]
        step = max(range(len(active)), key=lambda k: (gains[k], k > 0, -k))
        chosen.append(step)
        missing -= {m for m, runs in enumerate(active[step]) if runs}
    return chosen
