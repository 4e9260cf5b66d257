"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import os
import threading
import time

_LOOK_S = 1.0


def end_with_parent() -> None:
    """From now on end this process once its parent is gone, killed or not. A rank that waits for another on a GPU would
    wait for half an hour, and keep its memory."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
