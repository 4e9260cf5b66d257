"""AdamW with moments in 8 bits: near the one in float32, exact where it stops and goes on, and safe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from workbench.engine import moments
from workbench.engine.moments import AdamW8bit, dynamic_map
from workbench.runs import checkpoint

ROWS, WIDTH = 16, 2 * moments.BLOCK


def parameters() -> list[nn.Parameter]:
    """A matrix whose moments are in 8 bits, one with a row a block, and a vector."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((ROWS, WIDTH), (130, 48), (48,))]


def train(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], steps: range) -> None:
    """Gradients of very different size along a row, which fade after a while."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in trained:
            size = torch.logspace(-3, 0, parameter.shape[-1])
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (noise * (1.0 if step < 50 else 0.1) + 0.3) * size
        optimizer.step()


def moved(make: type[torch.optim.Optimizer], beta1: float, weight_decay: float = 0.0) -> list[Tensor]:
    trained, start = parameters(), parameters()
    optimizer = make(trained, lr=1e-3, betas=(beta1, 0.98), weight_decay=weight_decay)  # type: ignore[call-arg]
    train(optimizer, trained, range(200))
    return [(after - before).detach() for after, before in zip(trained, start, strict=True)]


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_it_goes_where_float32_goes(beta1: float) -> None:
    found, expected = (moved(make, beta1, weight_decay=0.1) for make in (AdamW8bit, torch.optim.AdamW))
    for ours, exact in zip(found[:2], expected[:2], strict=True):
        assert 1e-4 < (ours - exact).norm() / exact.norm() < 0.08
        assert abs(ours.mean() / exact.mean() - 1) < 5e-3, "rounding has no direction"
    torch.testing.assert_close(found[2], expected[2])


def test_the_map_spans_seven_decades_and_has_nought_and_one() -> None:
    for signed in (False, True):
        values = dynamic_map(signed, torch.device("cpu"))
        assert len(values) == 256 == len(values.unique()) and values.max() == 1 and (values == 0).any()
        assert (values.min() < 0) == signed and values[values > 0].min() < 1e-6
        top = values[values > 0.1]
        assert (top.diff() < 0.02).all()


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = parameters()
    train(AdamW8bit(whole, 1e-2, (0.5, 0.9), 0.0), whole, range(6))
    first = parameters()
    states = []
    for trained, optimizer in ((it, AdamW8bit(it, 1e-2, (0.5, 0.9), 0.0)) for it in (first, parameters())):
        checkpoint.prime(optimizer)
        named = {f"p{i}": parameter for i, parameter in enumerate(trained)}
        states.append((trained, optimizer, checkpoint.training_state(named, {}, [optimizer])))
    train(states[0][1], first, range(3))
    held = states[0][2]["moments"]["p0"]
    assert held["exp_avg"].dtype == held["exp_avg_sq"].dtype == torch.uint8
    saved = checkpoint.save(tmp_path, states[0][2], checkpoint.Progress(3, 0))
    trained, optimizer, state = states[1]
    checkpoint.load(saved, state)
    train(optimizer, trained, range(3, 6))
    assert all(torch.equal(left, right) for left, right in zip(trained, whole, strict=True))


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    trained = parameters()
    optimizer = AdamW8bit(trained, 1e-2, (0.5, 0.9), 0.1)
    train(optimizer, trained, range(2))
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    before = [tensor.clone() for tensor in [*trained, *states]]
    for parameter in trained:
        assert parameter.grad is not None
        parameter.grad[0] = float("nan")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(left, right) for left, right in zip(before, [*trained, *states], strict=True))


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_it_takes_the_memory_that_the_plan_counts(beta1: float) -> None:
    weight = nn.Parameter(torch.zeros(64, 1024))
    optimizer = AdamW8bit([weight], 1e-3, (beta1, 0.999), 0.0)
    optimizer.prime()
    taken = sum(tensor.numel() * tensor.element_size() for tensor in optimizer.state[weight].values() if tensor.ndim)
    assert taken == weight.numel() * moments.moment_bytes("8bit", beta1)
