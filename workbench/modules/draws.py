"""The random numbers of one training step, each a function of (seed, stream, step, row of the global batch)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench import rng
from workbench.batch import Batch


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

    def normal(self, batch: Batch, stream: str, num_channels: int) -> Tensor:
        """Noise for the target tokens of a batch: (B, N, C)."""
        shape = (batch.condition.layout.num_target_tokens, num_channels)
        name = self._name(batch, stream)
        numbers = rng.normal(shape, batch.rows, seed=self.seed, stream=name, step=self.step, num_rows=batch.num_samples)
        return numbers.to(batch.condition.prompt.dtype)

    def uniform(self, batch: Batch, stream: str) -> Tensor:
        """One number in [0, 1) a sample: (B,)."""
        name = self._name(batch, stream)
        return rng.uniform(batch.rows, seed=self.seed, stream=name, step=self.step, num_rows=batch.num_samples)

    @staticmethod
    def _name(batch: Batch, stream: str) -> str:
        return f"{stream}/{batch.task}/{batch.condition.layout}"
