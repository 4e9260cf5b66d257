"""Muon in batches is Muon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from workbench.engine.muon import BatchedMuon, orthogonalised

SHAPES = ((8, 8), (8, 24), (24, 8), (8, 8))


def matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_steps_equal_those_of_torch(as_tensor: bool) -> None:
    ours, theirs = matrices(0), matrices(0)
    rate = torch.tensor(0.02) if as_tensor else 0.02
    batched = BatchedMuon([{"params": ours, "lr": rate}])
    single = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        batched.step()
        single.step()
    for mine, other in zip(ours, theirs, strict=True):
        # The iteration runs in bfloat16: a batched product may round otherwise than a single one.
        torch.testing.assert_close(mine, other, atol=0.02 * 3 * 0.05, rtol=0)
        assert not torch.equal(mine, matrices(0)[0]) or mine.shape != SHAPES[0]


def test_an_update_has_singular_values_near_one() -> None:
    x = orthogonalised(torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(1)), (3.4445, -4.7750, 2.0315), 5)
    values = torch.linalg.svdvals(x.float())
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    parameters = matrices(2)
    optimizer = BatchedMuon(parameters, lr=0.1)
    give_gradients(parameters, 0)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    weights = [parameter.detach().clone() for parameter in parameters]
    momenta = [optimizer.state[parameter]["momentum_buffer"].clone() for parameter in parameters]
    parameters[0].grad = torch.full_like(parameters[0], torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for parameter, weight, momentum in zip(parameters, weights, momenta, strict=True):
        assert torch.equal(parameter, weight)
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum)


def test_a_closure_gives_the_gradients() -> None:
    given, asked = matrices(3), matrices(3)
    give_gradients(given, 1)
    BatchedMuon(given, lr=0.1).step()
    BatchedMuon(asked, lr=0.1).step(lambda: give_gradients(asked, 1))
    assert all(torch.equal(a, b) for a, b in zip(given, asked, strict=True))
