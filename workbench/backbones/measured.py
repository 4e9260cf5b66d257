"""What is asked of a family so that time and memory can be measured at any size, without its weights: folders and
networks of random ones, and diffusers' own forward to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from workbench.batch import Condition
from workbench.common.errors import UserError

HEAD = 128
"""Channels of a head in the public models."""
ROPE_AXES = (16, 56, 56)
"""Of these, channels that turn with frame, row and column."""
DYNAMIC_SHIFT: Mapping[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
"""As the public schedulers have it."""


@dataclass(frozen=True)
class FolderSizes:
    """Sizes of the networks of a folder; the defaults are tiny.

    blocks, heads: of the transformer, each head 128 wide. text_blocks, text_heads: of the text encoder, likewise.
    vae, vae_decoder: channels of the autoencoder's first level and of its last, where the family has them apart.
    """

    blocks: int = 2
    heads: int = 1
    text_blocks: int = 2
    text_heads: int = 1
    vae: int = 8
    vae_decoder: int = 8

    def __post_init__(self) -> None:
        counts = (self.blocks, self.heads, self.text_blocks, self.text_heads, self.vae, self.vae_decoder)
        if min(counts) < 1:
            raise UserError(f"a folder of {self}: blocks, heads and channels must be at least 1")


@dataclass(frozen=True)
class NetworkSizes:
    """Sizes of a transformer alone. text: width of prompt embeddings. channels: of a latent token."""

    blocks: int = 8
    width: int = 256
    heads: int = 4
    text: int = 192
    channels: int = 64

    @property
    def rope_axes(self) -> tuple[int, int, int]:
        """Channels of a head that turn with frame, row and column."""
        head = self.width // self.heads
        frame = head // 4 if head < HEAD else head // 8
        return frame, (head - frame) // 2, (head - frame) // 2


@dataclass(frozen=True)
class Measured:
    """A family as it is measured.

    public: sizes of the public model. write_folder: (folder, like, class name, sizes) writes all but the weights of a
    pipeline folder of that class, and gives its networks by component, without values; `like` is a folder whose
    tokenizer serves. network: (class name, sizes) -> transformer of such a folder.
    stock_velocity: (transformer, condition, x_t (B, N, C), t (B,)) -> velocity of the target tokens by one forward of
    diffusers over the full sequence. text_slots: (height, width) of a reference in latent tokens -> text positions
    that its image takes.
    """

    public: FolderSizes
    write_folder: Callable[[Path, Path, str, FolderSizes], dict[str, nn.Module]]
    network: Callable[[str, NetworkSizes], nn.Module]
    stock_velocity: Callable[[Any, Condition, Tensor, Tensor], Tensor]
    text_slots: Callable[[int, int], int]

    @property
    def public_network(self) -> NetworkSizes:
        """Sizes of the public transformer."""
        return NetworkSizes(
            self.public.blocks, HEAD * self.public.heads, self.public.heads, HEAD * self.public.text_heads
        )


@contextmanager
def without_values() -> Iterator[None]:
    """Networks made inside have no values, but for their tables."""
    with init_empty_weights(include_buffers=False):
        yield


def write_scheduler(folder: Path) -> None:
    """Write the scheduler of a pipeline folder."""
    FlowMatchEulerDiscreteScheduler(shift=1.0, **DYNAMIC_SHIFT).save_pretrained(folder / "scheduler")
