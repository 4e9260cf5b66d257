"""One process of several that draw a ranking: `python -m studies.ranking.worker NUMBER FILE [key=value ...]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from studies.ranking.rank import draw, plan
from workbench.common.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Draw until nothing is missing, or the process that started this one has ended. NUMBER: of the student that it
    begins with."""
    number, path, *overrides = arguments
    parent = os.getppid()
    try:
        draw(plan(Path(path), overrides), int(number), lambda: os.getppid() == parent)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
