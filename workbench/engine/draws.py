"""The random numbers of one training step, each a function of (seed, stream, step, row of the global batch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from workbench.batch import Batch
from workbench.method import rng


class Numbers(Protocol):
    """The random numbers of one batch by name; the same name gives the same numbers."""

    def normal(self, name: str, num_channels: int) -> Tensor:
        """Noise for the target tokens: (B, N, C)."""

    def uniform(self, name: str) -> Tensor:
        """One number in [0, 1) per sample: (B,)."""


@dataclass(frozen=True)
class Draws:
    """step: student updates taken so far."""

    seed: int
    step: int

    def integer(self, high: int, stream: str) -> int:
        """One integer in [0, high), the same on every rank."""
        return rng.integer(high, seed=self.seed, stream=stream, step=self.step)

    def permutation(self, size: int, stream: str) -> list[int]:
        """The integers in [0, size) in an order that is the same on every rank."""
        return rng.permutation(size, seed=self.seed, stream=stream, step=self.step)

    def of(self, batch: Batch, stream: str) -> BatchNumbers:
        """Those of one batch for one purpose."""
        return BatchNumbers(self.seed, self.step, stream, batch)


@dataclass(frozen=True)
class BatchNumbers:
    """`Numbers`, drawn on the batch's device when asked for."""

    seed: int
    step: int
    stream: str
    batch: Batch

    def normal(self, name: str, num_channels: int) -> Tensor:
        """See `Numbers`."""
        batch = self.batch
        shape = (batch.condition.layout.num_target_tokens, num_channels)
        numbers = rng.normal(
            shape, batch.rows, seed=self.seed, stream=self._name(name), step=self.step, num_rows=batch.num_samples
        )
        return numbers.to(batch.condition.prompt.dtype)

    def uniform(self, name: str) -> Tensor:
        """See `Numbers`."""
        batch = self.batch
        return rng.uniform(
            batch.rows, seed=self.seed, stream=self._name(name), step=self.step, num_rows=batch.num_samples
        )

    def _name(self, name: str) -> str:
        return f"{self.stream}/{name}/{self.batch.task}/{self.batch.condition.layout}"


Request = tuple[str, int | None]
"""A name and the channels of its noise; None asks for uniform numbers."""


class NotedNumbers:
    """`Numbers` of a source that notes what it was asked for, so that a replayed step can be handed the same."""

    def __init__(self, source: Numbers) -> None:
        self.source = source
        self.found: dict[Request, Tensor] = {}

    def normal(self, name: str, num_channels: int) -> Tensor:
        """See `Numbers`."""
        return self._noted((name, num_channels))

    def uniform(self, name: str) -> Tensor:
        """See `Numbers`."""
        return self._noted((name, None))

    def _noted(self, request: Request) -> Tensor:
        if request not in self.found:
            self.found[request] = answer(self.source, request)
        return self.found[request]


@dataclass(frozen=True)
class GivenNumbers:
    """`Numbers` that were drawn before."""

    given: Mapping[Request, Tensor]

    def normal(self, name: str, num_channels: int) -> Tensor:
        """See `Numbers`."""
        return self.given[name, num_channels]

    def uniform(self, name: str) -> Tensor:
        """See `Numbers`."""
        return self.given[name, None]


def answer(numbers: Numbers, request: Request) -> Tensor:
    """The numbers drawn for a request."""
    name, num_channels = request
    return numbers.uniform(name) if num_channels is None else numbers.normal(name, num_channels)
