"""How often the processes of a study look at each other, and how long they wait."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Intervals:
    """All in seconds.

    supervisor: between two looks at workers and storage. idle: before a worker that found nothing to run asks the queue
    again. trial: between two looks of a worker at its trial's process. heartbeat: between two signs of life of a trial
    in the storage (whole seconds). grace: after so long without one its worker counts as dead (whole seconds).
    """

    supervisor: float = 1.0
    idle: float = 2.0
    trial: float = 1.0
    heartbeat: int = 15
    grace: int = 60


DEFAULT = Intervals()
