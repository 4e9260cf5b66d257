"""`workbench encode --dry-run`: what is there already, the sizes of the pictures, the disk and the time it takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from rich.console import Console

from datamodules.shards.buckets import Size, buckets_of
from datamodules.shards.counts import INDEX
from datamodules.shards.encode import Inputs, finished_shards, output_folder
from datamodules.shards.encode_batch import FamilyLimits
from datamodules.shards.encode_plan import Look, Pace, look_at, pace_of
from datamodules.shards.encode_shard import ShardEncoder
from datamodules.shards.left_out import lines
from workbench.backbones import families
from workbench.backbones.family import PipelineModel
from workbench.common import files
from workbench.common.tables import Table
from workbench.recipe.config import Data, Recipe
from workbench.runs.encoding import EncoderLoader, dtype_of, encoder_fingerprint


def show(recipe: Recipe, console: Console) -> None:
    """Print what `workbench encode` would do; nothing is written.

    Raises:
        UserError: as `workbench encode` would, as far as some of the samples show it.
    """
    data, dtype = recipe.data, dtype_of(recipe)
    folder = output_folder(data)
    inputs = Inputs.of(data, encoder_fingerprint(recipe.model.folder), str(dtype))
    complete = files.is_complete(folder, inputs.settings, INDEX, "data.encoded", "encode")
    done = len(inputs.shards) if complete else sum(r is not None for r in finished_shards(inputs.jobs(folder)))
    family = families.family_of(families.resolve(recipe.model.folder))
    found = look_at(data, inputs.shards, FamilyLimits(family.side_multiple, family.max_sources))
    known = inputs.packed.num_samples if inputs.packed else found.num_samples if found.is_all else None
    num_samples = known or round(found.num_samples / found.num_shards * len(inputs.shards))
    console.print(f"{data.raw}: {'' if known else 'about '}{num_samples:,} samples in {len(inputs.shards):,} shards")
    for line in lines(found.tally, "no file yet"):
        console.print(line, soft_wrap=True)
    console.print(_sizes(data, found, family))
    console.print(f"{folder}: {done:,} of {len(inputs.shards):,} shards are there")
    console.print(_machine(data, dtype))
    if done < len(inputs.shards) and found.kept:
        console.print(f"timing {len(found.kept)} samples, which nothing keeps ...")
        pace = pace_of(data, ShardEncoder(data, EncoderLoader(recipe.model.folder, dtype)(0)), found.kept)
        remaining = num_samples * (len(inputs.shards) - done) // len(inputs.shards)
        console.print(_disk(folder, pace, remaining), soft_wrap=True)
        console.print(_time(data, found, pace, remaining), soft_wrap=True)


def _sizes(data: Data, found: Look, family: type[PipelineModel]) -> Table:
    """Samples of each size that pictures are brought to; where an edit's sources are others than one of that size,
    theirs too."""
    seen = "all samples" if found.is_all else f"{found.num_samples:,} samples of {found.num_shards:,} shards"
    open_to = len(buckets_of(data, family.side_multiple))
    num_sizes = len({size for _, size, _ in found.sizes})
    title = f"sizes of {seen}: {num_sizes} of {open_to} buckets, {len(found.sizes)} layouts"
    table = Table("pixels", title=title, title_justify="left")
    for name in ("sources", "latent tokens", "t2i", "edit", "share"):
        table.add_column(name, justify="right")
    of_size: dict[tuple[Size, tuple[Size, ...]], Counter[str]] = {}
    for (task, size, sources), count in found.sizes.items():
        others = () if sources == (size,) else sources
        of_size.setdefault((size, others), Counter())[task] += count
    for (size, sources), counts in sorted(of_size.items(), key=lambda item: -item[1].total()):
        tokens = size[0] * size[1] // family.pixels_per_token**2
        share = counts.total() / found.num_samples
        named = " + ".join(map(_pixels, sources))
        table.add_row(_pixels(size), named, f"{tokens:,}", str(counts["t2i"]), str(counts["edit"]), f"{share:.1%}")
    return table


def _pixels(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _machine(data: Data, dtype: torch.dtype) -> str:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    where = f"{min(data.encode_workers, gpus)} of {gpus} GPUs" if gpus else "the CPU"
    how = f"{where}, {str(dtype).removeprefix('torch.')}, at most {data.encode_batch_size} at once"
    more = f"; data.encode_workers={gpus} takes all GPUs" if data.encode_workers < gpus else ""
    return f"data.encode_workers={data.encode_workers} on {how}{more}"


def _disk(folder: Path, pace: Pace, num_samples: int) -> str:
    needed, free = pace.sample_bytes * num_samples, files.free_bytes(folder)
    line = f"disk: about {needed / 1e6:,.0f} MB more in {folder}; {free / 1e6:,.0f} MB are free"
    return f"{line}: free some, or choose another data.encoded" if free < needed else line


def _time(data: Data, found: Look, pace: Pace, num_samples: int) -> str:
    """Reading and encoding go side by side: the slower one counts."""
    slower = min(pace.samples_per_s, found.read_per_s or pace.samples_per_s)
    seconds = num_samples / slower / data.encode_workers
    return (
        f"time: a process reads {found.read_per_s:,.1f} samples/s and encodes {pace.samples_per_s:,.1f}: "
        f"{seconds / 60:,.1f} min for {num_samples:,} samples with data.encode_workers={data.encode_workers}"
    )
