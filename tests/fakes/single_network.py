"""One network with one role over a transformer that is not in a folder."""

from __future__ import annotations

from diffusers import QwenImage21Transformer2DModel

from workbench.backbones.base import RoleNetworks
from workbench.backbones.qwen_image_21.transformer import SplitTransformer


def single_role(transformer: QwenImage21Transformer2DModel, role: str = "teacher") -> RoleNetworks:
    """`transformer` as the network of `role` alone."""
    return RoleNetworks({role: SplitTransformer(transformer)}, {role: role})
