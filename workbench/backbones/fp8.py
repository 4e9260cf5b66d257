"""Frozen linear layers in 8-bit floats: weights and what they multiply in e4m3 (arXiv 2209.05433), a scale a row.

The forward pass scales activations by token and weights by output channel. The backward pass goes through the weights
to the input alone: their scales are folded into the incoming gradient, which is quantised by token in its turn, so that
the same codes serve both, transposed. torchao 0.18 has no such layer: its training layer quantises a weight in higher
precision anew at every evaluation, and its quantised weights have no backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.common.errors import UserError

E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(E4M3).max
_SMALLEST_ROW = 1e-30
"""Largest absolute value of a row below which it counts as zeros: its scale stays a normal float32."""
MULTIPLE = 16
"""Hardware products need sides that are multiples of it."""
LEAST_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply e4m3."""


class Fp8Weight(NamedTuple):
    """W = scale^T codes: codes (out, in) e4m3, scale (1, out) float32.

    transposed: codes (in, out), or None where no gradient passes. dtype: of the product.
    """

    codes: Tensor
    transposed: Tensor | None
    scale: Tensor
    dtype: torch.dtype


class Fp8Linear(nn.Module):
    """A frozen linear layer with its weight in e4m3; the bias, if any, keeps its dtype. One without values stays so.

    differentiable: whether gradients pass to the input, for which a transposed copy of the codes is kept.

    Raises:
        UserError: a layer whose sides the hardware does not multiply.
    """

    scale: Tensor
    transposed: Tensor | None

    def __init__(self, linear: nn.Linear, *, differentiable: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if self.in_features % MULTIPLE or self.out_features % MULTIPLE:
            raise UserError(
                f"model.frozen=fp8 needs layers whose sides are multiples of {MULTIPLE}, and this model has one of "
                f"{self.in_features} x {self.out_features}: leave it at auto"
            )
        self.differentiable, self.bias = differentiable, linear.bias
        for name in ("scale", "transposed"):
            self.register_buffer(name, None, persistent=False)
        self.take(linear.weight.detach())

    def take(self, weight: Tensor) -> None:
        """Quantise `weight` (out, in), on its device, in place of what the layer has."""
        codes, scale = quantise_rows(weight)
        # A parameter as in any layer, so that the weights of a network are counted alike.
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = scale.T.contiguous()
        self.transposed = codes.T.contiguous() if self.differentiable else None

    def quantised(self, dtype: torch.dtype) -> Fp8Weight:
        """The weight for products in `dtype`."""
        return Fp8Weight(self.weight, self.transposed, self.scale, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.quantised(x.dtype), self.bias)


def quantise(root: nn.Module, unquantised: Sequence[str], *, differentiable: bool) -> None:
    """Put an `Fp8Linear` in the place of every frozen linear layer below `root`, in place, under adapters too.

    unquantised: ends of the names of layers that stay as they are.
    """
    # Names alone: a layer's weight is to go as its codes come.
    frozen = [
        name
        for name, layer in root.named_modules()
        if isinstance(layer, nn.Linear)
        and ".lora_" not in f".{name}"
        and not name.removesuffix(".base_layer").endswith(tuple(unquantised))
    ]
    for name in frozen:
        owner, leaf = root.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        setattr(owner, leaf, Fp8Linear(getattr(owner, leaf), differentiable=differentiable))


def is_quantised(root: nn.Module) -> bool:
    """Whether any layer below `root` holds its weight in e4m3."""
    return any(isinstance(module, Fp8Linear) for module in root.modules())


def bytes_besides(root: nn.Module) -> int:
    """Memory of what quantised layers below `root` hold besides their parameters: scales and transposed copies."""
    layers = [module for module in root.modules() if isinstance(module, Fp8Linear)]
    return sum(buffer.numel() * buffer.element_size() for layer in layers for buffer in layer.buffers())


def linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
    """W x + b over the last dimension of x, in the dtype of `weight`; differentiable in x."""
    codes, transposed, scale, dtype = weight
    y = _product(x.reshape(-1, x.shape[-1]), codes, transposed, scale, dtype)
    y = y if bias is None else y + bias.to(dtype)
    return y.view(*x.shape[:-1], y.shape[-1])


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (M, K) e4m3 and scale (M, 1) float32 of a matrix x = scale codes: the largest of each row becomes the
    largest number of e4m3."""
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST_ROW) / _LARGEST
    return (x / scale).to(E4M3).contiguous(), scale


class _Product(torch.autograd.Function):
    """x (M, in) -> (M, out); x alone gets a gradient, and none of it is saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, transposed: Tensor | None, scale: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(transposed, scale)
        ctx.dtype = x.dtype
        return _multiply(*quantise_rows(x), codes, scale, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        transposed, scale = ctx.saved_tensors
        assert transposed is not None, "the layer was made without a backward pass"
        folded, row_scale = quantise_rows(gradients[0].float() * scale)
        ones = scale.new_ones(1, len(transposed))
        return _multiply(folded, row_scale, transposed, ones, ctx.dtype), None, None, None, None


@torch.compiler.allow_in_graph
def _product(x: Tensor, codes: Tensor, transposed: Tensor | None, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`_Product`, which autograd and not dynamo looks into: that of torch 2.11 takes the result of a function for
    constant whose forward pass has no differentiable product, and compiled layers would pass gradients of zeros."""
    y: Tensor = _Product.apply(x, codes, transposed, scale, dtype)
    return y


def _multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """a (M, K), b (N, K), both e4m3, scales (M, 1) and (1, N) -> scaled a b^T (M, N) in `dtype`.

    Elsewhere than on a GPU the same numbers are multiplied in float32.
    """
    if a.is_cuda:
        product = torch._scaled_mm(
            a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return product.to(dtype)
    return ((a.float() @ b.float().t()) * a_scale * b_scale).to(dtype)
