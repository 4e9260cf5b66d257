"""Lightning's trainer on the CPU for one pass over what it is given, without bars, logs and checkpoints."""

from __future__ import annotations

from typing import Any

import lightning as L


def quiet_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    """`options` go to the trainer as they are."""
    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
