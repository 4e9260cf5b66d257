"""Lines for the user, once however many ranks a run has."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console


@rank_zero_only
def say(line: str) -> None:
    """Print `line` as it is."""
    Console(markup=False).print(line, soft_wrap=True, markup=False)
