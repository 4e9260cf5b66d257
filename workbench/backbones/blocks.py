"""What the blocks of every family share: attention, and one compiled body for all blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_COMPILED_BODIES = 64
"""Where nobody says how many shapes there will be."""
BODIES_OF_A_SHAPE = 16
"""Prefix and velocity, under the prompt and the empty one, with and without gradient and adapter, and some to spare."""
Body = TypeVar("Body", bound=Callable[..., object])


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    """(B, S, heads, head_dim), (B, K, heads, head_dim) twice -> (B, S, heads, head_dim). mask: False is not seen."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal).transpose(1, 2)


def allow_shapes(count: int) -> None:
    """Let compiled bodies have so many shapes of batches: beyond torch's limits blocks run uncompiled in silence."""
    config, bodies = torch._dynamo.config, max(MAX_COMPILED_BODIES, count * BODIES_OF_A_SHAPE)
    config.recompile_limit = max(config.recompile_limit, bodies)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, bodies)


@cache
def compiled_body(body: Body, backend: str) -> Body:
    """One compiled body per process, whose compiled graphs all blocks share."""
    allow_shapes(1)
    # Layouts are few and static, and static shapes give the faster kernels.
    return cast(Body, torch.compile(body, backend=backend, dynamic=False))
