"""Recording on a GPU is in tests/gpu; here is what surrounds it."""

from __future__ import annotations

import gc
import weakref

import pytest

from workbench.engine.graphs import no_garbage_collected


class InCycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_in_cycles_stays_until_a_recording_ends(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(RuntimeError, match="recorded"), no_garbage_collected():
            kept = [weakref.ref(InCycle()) for _ in range(10 * gc.get_threshold()[0])]
            assert all(reference() is not None for reference in kept)
            raise RuntimeError("recorded")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
