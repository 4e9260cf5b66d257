"""Two lanes of a recorded step on the CPU: one after the other, but what one makes the other may not read before both
are joined, as two streams of a GPU would not have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.engine import lanes


class Stream:
    """A stream by name, which notes whom it waits for."""

    def __init__(self, name: str, lanes: HostLanes) -> None:
        self.name, self.lanes = name, lanes

    def wait_stream(self, other: Stream) -> None:
        self.lanes.wait(self.name, other.name)


class HostLanes(TorchDispatchMode):
    """Fails where an operator of one lane reads or changes what the other made. joined: sections that have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.current, self.side = Stream("current", self), Stream("side", self)
        self.running, self.forked, self.joined = "current", False, 0
        # Kept until the lanes join, so that no storage is given out twice.
        self.made: dict[int, tuple[str, Any]] = {}

    def wait(self, waits: str, other: str) -> None:
        if (waits, other) == ("side", "current"):
            assert not self.forked
            self.forked = True
        else:
            assert (waits, other) == ("current", "side") and self.forked and self.running == "current"
            self.forked, self.joined = False, self.joined + 1
            self.made.clear()

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """`torch.cuda.stream`."""
        assert self.forked, "the side lane works before it waits for what it reads"
        self.running = stream.name
        try:
            yield
        finally:
            self.running = "current"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lanes are open, over these streams."""
        with pytest.MonkeyPatch.context() as patch, lanes.opened(self.side), self:
            patch.setattr(torch.cuda, "current_stream", lambda: self.current)
            patch.setattr(torch.cuda, "stream", self.on)
            yield
        assert not self.forked, "the lanes are not joined"

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        found = function(*arguments, **options)
        if not self.forked:
            return found
        read = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
        for tensor in read:
            lane, _ = self.made.get(_key(tensor), (self.running, None))
            assert lane == self.running, f"{function.name()} of the {self.running} lane reads what {lane} makes"
        before = {_key(tensor) for tensor in read}
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and (function._schema.is_mutable or _key(leaf) not in before):
                self.made[_key(leaf)] = (self.running, leaf.untyped_storage())
        return found


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
