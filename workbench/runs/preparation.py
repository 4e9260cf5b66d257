"""What a run does before its first update where compiling or memory asks for it; then it watches for compilations."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from datamodules.distillation import DistillationData
from workbench.common import progress, ranks
from workbench.common.console import say
from workbench.engine.optimisation import uncached_casts
from workbench.modules import rehearsal
from workbench.modules.distiller import Distiller
from workbench.modules.rehearsal import Pair
from workbench.recipe.config import Recipe

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
COMPILER_CACHE = ".compiled"
"""Folder next to the runs that torch's compiler keeps its kernels in, so that the next one starts warm."""


def keep_compiled(run: Path) -> None:
    """Let torch's compiler keep its kernels next to the run at `run`, unless the environment names another place."""
    default = default_cache_dir()
    # torch itself writes its default there, as soon as something imports the compiler.
    if os.environ.get(CACHE_VARIABLE, default) == default:
        os.environ[CACHE_VARIABLE] = str(run.absolute().parent / COMPILER_CACHE)


class Preparation(L.Callback):
    """Rehearses every shape of batch once, so that compiling is over before the first update, and stores as many
    blocks as memory allows where the recipe leaves it to the run. It follows the callback that loads a checkpoint:
    optimisers have their moments by then.

    Compilations since the first update are told, and logged under `throughput/compilations`.
    """

    def __init__(self, data: DistillationData) -> None:
        self.data = data
        self._known: int | None = None
        self._later = 0
        self._compiles = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self._compiles = any(network.compiled for network in module.denoiser.transformers())
        chooses = stores_by_memory(module.recipe) and module.device.type == "cuda"
        if not (self._compiles or chooses):
            return
        started = time.perf_counter()
        pairs = [Pair(*batches) for batches in self.data.of_each_shape(trainer.world_size)]
        limit = rehearsal.available_bytes(module.device) if chooses else None
        what, total = "compiling" if self._compiles else "measuring memory", rehearsal.rehearsals(len(pairs), chooses)
        shown = progress.job(what, total) if trainer.is_global_zero else nullcontext()
        with shown, trainer.precision_plugin.train_step_context(), uncached_casts():
            stored = rehearsal.prepare(module, pairs, limit, partial(progress.advance, 1))
        blocks = len(next(iter(module.denoiser.transformers())).blocks)
        kept = f"; {stored} of {blocks} blocks keep their activations" if chooses else ""
        say(f"prepared {len(pairs)} shapes of batches in {time.perf_counter() - started:.0f} s{kept}")

    def on_train_batch_start(self, *_: Any) -> None:
        if self._known is None:
            # Callbacks behind this one may have drawn pictures before the first update.
            self._known = rehearsal.compilations()
            if torch.cuda.is_initialized():
                torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller) and self._known is not None
        later = rehearsal.compilations() - self._known
        if later > self._later:
            say(f"update {module.num_updates}: {later - self._later} graphs compiled for what was not rehearsed")
        self._later = later
        if self._compiles:
            module.means.add("throughput/compilations", module.lambdas.new_full((1,), float(later)))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if module.device.type == "cuda":
            peak = max(ranks.gathered(torch.cuda.max_memory_allocated(module.device)))
            size = torch.cuda.get_device_properties(module.device).total_memory
            say(f"peak memory {peak / 2**30:.1f} GiB of a GPU's {size / 2**30:.1f} since the first update")


def stores_by_memory(recipe: Recipe) -> bool:
    """Whether the run chooses how many blocks keep their activations."""
    return recipe.model.gradient_checkpointing and recipe.model.stored_blocks == "auto"
