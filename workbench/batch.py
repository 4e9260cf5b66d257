"""The contract between data and modules: conditions and batches, tensors only.

Symbols: B samples, L text positions of the vision-language sequence (padded), D embedding width,
N target tokens, R reference tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

Task = Literal["t2i", "edit"]
TASKS: tuple[Task, ...] = ("t2i", "edit")


@dataclass(frozen=True, order=True)
class Reference:
    """A reference image: its size in latent tokens, and its first slot and number of slots in the text.

    The text encoder may read an image at another size than the autoencoder does, so `num_slots` does not follow from
    the latent size. `repr`, from which the names of noise streams are made, leaves it out.
    """

    slot: int
    height: int
    width: int
    num_slots: int = field(repr=False)

    @property
    def num_tokens(self) -> int:
        return self.height * self.width

    @property
    def end(self) -> int:
        """First text position after its slots."""
        return self.slot + self.num_slots


@dataclass(frozen=True, order=True)
class Layout:
    """The shape of a sequence, shared by all samples of a batch. Sizes in latent tokens.

    padded: whether a row of `text_tokens` may hold padding.
    The name of a batch's noise stream is `repr(layout)`, which leaves `padded` out.
    """

    text_tokens: int
    height: int
    width: int
    references: tuple[Reference, ...] = ()
    padded: bool = field(default=True, repr=False)

    @property
    def num_target_tokens(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Condition:
    """Input of a network besides x_t and t.

    prompt: (B, L, D) embeddings of the vision-language sequence, image slots included, right-padded.
    lengths: (B,) int64, valid positions of each row of `prompt`.
    references: (B, R, C) packed latents of all references in order, or None.
    """

    prompt: Tensor
    lengths: Tensor
    layout: Layout
    references: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Condition:
        """Same condition on `device`."""
        return _moved(self, device, non_blocking)


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, encoded together with its images.

    embeddings: (L, D), system message dropped, image slots included. references: positions of the images' slots in it.
    """

    embeddings: Tensor
    references: tuple[Reference, ...]


def conditions(
    encoded: Sequence[EncodedPrompt], references: Tensor | None, height: int, width: int, text_tokens: int | None = None
) -> Condition:
    """One batch of samples that share their references' places, right-padded to `text_tokens` or to the longest.

    references: (B, R, C) packed latents. height, width: of the target, in latent tokens.

    Raises:
        ValueError: the samples differ in layout, or one is longer than `text_tokens`.
    """
    layouts = {item.references for item in encoded}
    if len(layouts) != 1:
        raise ValueError(f"samples of one batch must share their references, got {sorted(layouts)}")
    lengths = [len(item.embeddings) for item in encoded]
    padded = max(lengths) if text_tokens is None else text_tokens
    if max(lengths) > padded:
        raise ValueError(f"a prompt of {max(lengths)} tokens does not fit into {padded}")
    first = encoded[0].embeddings
    prompt = first.new_zeros(len(encoded), padded, first.shape[1])
    for row, item in zip(prompt, encoded, strict=True):
        row[: len(item.embeddings)] = item.embeddings
    layout = Layout(padded, height, width, encoded[0].references, padded=min(lengths) < padded)
    return Condition(prompt, torch.tensor(lengths, device=first.device), layout, references)


@dataclass(frozen=True)
class Batch:
    """Samples of one task and one layout: this rank's rows of one group of the global batch.

    uncond: the same samples under the empty prompt, references kept; None where no guidance is wanted.
    target: (B, N, C) packed latents, or None for prompt-only data.
    rows: (B,) int64, row of each sample in the global batch of its group; keys the noise.
    weight: (B,) float32, 1 for a sample, 0 for a row that only pads the batch to a shared shape.
    num_samples: samples (not padding) of this group over all ranks, the denominator of its mean.
    category: (B,) int64, index into the datamodule's `categories`.
    sample_ids: keys of the samples, for error messages and for counting passes.
    uncond_is_constant: whether the empty prompt is one for all samples of this layout in the run (T2I); `uncond` then
    has a single row, and frozen teachers read it once.
    """

    task: Task
    condition: Condition
    uncond: Condition | None
    target: Tensor | None
    rows: Tensor
    weight: Tensor
    num_samples: int
    category: Tensor
    sample_ids: tuple[str, ...]
    uncond_is_constant: bool = False

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Same batch on `device`."""
        return _moved(self, device, non_blocking)


@dataclass(frozen=True)
class StepData:
    """Data of one student update: its groups, and the groups of each fake-score update before it."""

    step: int
    student: tuple[Batch, ...]
    fake: tuple[tuple[Batch, ...], ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> StepData:
        """Same data on `device`."""
        return self._each(lambda batch: batch.to(device, non_blocking))

    def pin_memory(self) -> StepData:
        """Same data in page-locked host memory, from which copies to a GPU need not wait."""
        return self._each(lambda batch: _mapped(batch, Tensor.pin_memory))

    def _each(self, change: Callable[[Batch], Batch]) -> StepData:
        return replace(
            self,
            student=tuple(change(batch) for batch in self.student),
            fake=tuple(tuple(change(batch) for batch in group) for group in self.fake),
        )


@dataclass(frozen=True)
class CaptionBatch:
    """Samples of one layout for pretraining, where the text encoder is trained along and so reads tokens.

    token_ids: (B, S) int64 of the prompt with its system message, right-padded.
    images: (B, H, W, 3) uint8 that the text encoder reads (edits), or None.
    lengths, layout, references: as in `Condition`, counted without the system message.
    """

    task: Task
    token_ids: Tensor
    images: Tensor | None
    lengths: Tensor
    layout: Layout
    references: Tensor | None
    target: Tensor
    rows: Tensor
    weight: Tensor
    num_samples: int
    sample_ids: tuple[str, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> CaptionBatch:
        """Same batch on `device`."""
        return _moved(self, device, non_blocking)


@dataclass(frozen=True)
class CaptionStep:
    """Data of one pretraining update."""

    step: int
    batches: tuple[CaptionBatch, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> CaptionStep:
        """Same data on `device`."""
        return replace(self, batches=tuple(batch.to(device, non_blocking) for batch in self.batches))


def tensors_of(batch: CaptionBatch) -> dict[str, Tensor]:
    """Tensors of a batch by the names of its fields, in their order."""
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}


Movable = TypeVar("Movable", Condition, Batch, CaptionBatch)


def _moved(item: Movable, device: torch.device, non_blocking: bool) -> Movable:
    """`item` on `device`. non_blocking: the host does not wait for the copy, for which tensors are pinned first."""
    pins = non_blocking and device.type == "cuda"

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if pins and not tensor.is_cuda else tensor).to(device, non_blocking=non_blocking)

    return _mapped(item, move)


def _mapped(item: Movable, change: Callable[[Tensor], Tensor]) -> Movable:
    """`item` with its tensors changed, and those of the conditions inside it."""
    changed = {
        name: change(value) if isinstance(value, Tensor) else _mapped(value, change)
        for name, value in vars(item).items()
        if isinstance(value, Tensor | Condition)
    }
    return replace(item, **changed)  # type: ignore[arg-type]
