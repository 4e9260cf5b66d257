"""The world as an endless source of pretraining samples: drawn in processes while the device trains, never on disk.

Every `every` updates a fresh chunk of the same composition comes. Chunk c holds the samples c n, ..., c n + n - 1 of
each category; updates take the `kept` newest chunks in turns, since drawing is slower than training and a chunk alone
would be learnt by heart before the next one is there. What an update sees is a function of its number, so a resumed run
goes on with the chunks that it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from datamodules.openmoji import Plan, samples_of
from datamodules.openmoji.paint import render
from datamodules.pretraining import Held, padded_ids, places
from datamodules.shards.encoded import Geometry
from studies.tiny_model.curation import AS_IT_IS, Curation, curated, damage
from workbench.backbones import families
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.prompts import PromptTokenizer
from workbench.backbones.qwen_image_21.sequence import LATENT_TOKENS_PER_SLOT, PIXELS_PER_TOKEN
from workbench.batch import TASKS, Reference, Task
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.parent import spawned_pool
from workbench.recipe.config import Data, Recipe
from workbench.runs.machine import accelerator

EncodeImages = Callable[[Tensor], Tensor]
"""Images (B, H, W, 3) uint8 -> latents (B, N, C)."""

SAMPLES_PER_JOB = 64
IMAGES_PER_PASS = 512


def _geometries(resolution: int, tokenizer: PromptTokenizer) -> dict[Task, Geometry]:
    """Those of the world's pictures: one reference image in an edit, as large as the target."""
    side = resolution // PIXELS_PER_TOKEN
    slots = side * side // LATENT_TOKENS_PER_SLOT
    first = tokenizer.first_slot(tokenizer("", slots)) - tokenizer.num_system_tokens
    references = (Reference(first, side, side, slots),)
    return {"t2i": Geometry("t2i", side, side), "edit": Geometry("edit", side, side, references, references)}


@dataclass(frozen=True)
class _Job:
    """Samples `first`, `first` + 1, ... of a category, drawn to rows `row`, ... of the files."""

    task: Task
    category: str
    first: int
    count: int
    row: int
    num_rows: int
    resolution: int
    curation: Curation
    files: tuple[Path, Path]


@dataclass(frozen=True)
class _Coming:
    """A chunk in the making: the texts of each job as it gets done."""

    chunk: int
    jobs: list[_Job]
    texts: Iterator[list[str]]


@dataclass(frozen=True)
class _Drawn:
    """A chunk's pictures of one task, (n, H, W, 3) uint8 each, and their texts."""

    targets: np.ndarray
    sources: np.ndarray | None
    texts: tuple[str, ...]


def world_sources(
    recipe: Recipe, every: int, curation: Curation = AS_IT_IS, kept: int = 1
) -> tuple[WorldSource, WorldSource]:
    """What a pretraining run trains on, `kept` chunks of which a new one comes every `every` updates, and what its
    sample pictures are of: two samples a category."""
    device = device_of(recipe)
    model = QwenImage21Model.load(families.resolve(recipe.model.folder), device, transformer=False, text_encoder=False)
    tokenizer = PromptTokenizer(model.pipeline)

    def encode(images: Tensor) -> Tensor:
        """In half precision on a GPU, since training waits for it: latents differ by 0.1 %."""
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            return model.encode_images(images)

    def world(data: Data) -> WorldSource:
        return WorldSource(
            data,
            tokenizer,
            encode=encode,
            every=every,
            kept=kept,
            num_steps=recipe.pretrain.steps,
            device=device,
            curation=curation,
        )

    few = {task: {name: min(count, 2) for name, count in of.items()} for task, of in samples_of(recipe.data).items()}
    return world(recipe.data), world(replace(recipe.data, samples=few, num_workers=0))


def device_of(recipe: Recipe) -> torch.device:
    """Where the recipe's run trains."""
    return torch.device("cuda" if accelerator(recipe.trainer) == "gpu" else "cpu")


class WorldSource:
    """Samples of the OpenMoji world by `data.samples`, drawn anew every `every` updates.

    Args:
        encode: the pipeline's autoencoder on `device`, where the samples are kept.
        kept: chunks that updates take in turns, the newest and those before it.
        num_steps: updates of the run; nothing is drawn for later ones.
        curation: what is done to the samples.

    Raises:
        UserError: no samples are asked for, or of a category that the world lacks.
    """

    def __init__(
        self,
        data: Data,
        tokenizer: PromptTokenizer,
        *,
        encode: EncodeImages,
        every: int,
        kept: int,
        num_steps: int,
        device: torch.device,
        curation: Curation,
    ) -> None:
        self._data, self._tokenizer, self._encode, self._curation = data, tokenizer, encode, curation
        self._every, self._kept, self._last_chunk, self._device = every, kept, (num_steps - 1) // every, device
        self._cells = [
            (task, name, count) for task in TASKS for name, count in samples_of(data).get(task, {}).items() if count > 0
        ]
        if not self._cells:
            raise UserError("data.samples asks for no samples; give at least one category a count above 0")
        tasks = [task for task in TASKS if any(cell[0] == task for cell in self._cells)]
        geometries = _geometries(data.resolution, tokenizer)
        self.geometries = tuple(geometries[task] for task in tasks)
        self.categories = tuple(f"{task}/{name}" for task, name, _ in self._cells)
        self.category = np.repeat(np.arange(len(self._cells)), [count for *_, count in self._cells])
        self.geometry = np.array([tasks.index(self._cells[i][0]) for i in self.category])
        self._place = places(self.geometry, len(self.geometries))
        self._first = np.cumsum([0, *(count for *_, count in self._cells)])
        self._folder = TemporaryDirectory(prefix="workbench-world-")
        self._pool: ProcessPoolExecutor | None = None
        self._ahead: _Coming | None = None
        self._widths: dict[Task, int] = {}
        self._chunks: dict[int, list[Held]] = {}

    def held(self, geometry: int, step: int) -> Held:
        """See `Source`."""
        self._keep(step // self._every)
        return self._chunks[self._chunk_of(step)][geometry]

    def key(self, index: int, step: int) -> str:
        """See `Source`."""
        task, name, count = self._cells[int(self.category[index])]
        number = self._chunk_of(step) * count + index - int(self._first[self.category[index]])
        return f"{task}-{name}-train-{number:08d}"

    def text(self, index: int) -> str:
        """See `Source`."""
        return self.planned(index)[2].text

    def planned(self, index: int) -> tuple[Task, str, Plan]:
        """Task, category and plan of a sample as update 0 sees it."""
        task, name, _ = self._cells[int(self.category[index])]
        return task, name, curated(task, name, index - int(self._first[self.category[index]]), self._curation)

    def _chunk_of(self, step: int) -> int:
        newest = step // self._every
        return newest - step % min(self._kept, newest + 1)

    def _keep(self, newest: int) -> None:
        """Hold chunk `newest` and as many before it as are kept; those that are missing are drawn."""
        if newest in self._chunks:
            return
        wanted = range(max(0, newest - self._kept + 1), newest + 1)
        chunks = {chunk: self._chunks.get(chunk) or self._load(chunk) for chunk in wanted}
        self._chunks = {
            chunk: [self._widened(held, shape) for held, shape in zip(of, self.geometries, strict=True)]
            for chunk, of in chunks.items()
        }

    def _widened(self, held: Held, shape: Geometry) -> Held:
        """All chunks are as wide as the widest: each new width is compiled and captured again."""
        more = self._widths[shape.task] - held.token_ids.shape[1]
        return replace(held, token_ids=torch.nn.functional.pad(held.token_ids, (0, more))) if more else held

    def _load(self, chunk: int) -> list[Held]:
        """Chunk `chunk`, encoded; the next one begins to be drawn."""
        coming = self._ahead if self._ahead is not None and self._ahead.chunk == chunk else self._start(chunk)
        drawn = self._finish(coming)
        held = [self._encoded(part, shape, chunk) for part, shape in zip(drawn, self.geometries, strict=True)]
        self._ahead = self._start(chunk + 1) if chunk < self._last_chunk else None
        return held

    def _encoded(self, drawn: _Drawn, shape: Geometry, chunk: int) -> Held:
        ids, lengths = padded_ids(drawn.texts, shape, self._tokenizer)
        self._widths[shape.task] = max(self._widths.get(shape.task, 0), ids.shape[1])
        images = None if drawn.sources is None else torch.from_numpy(np.array(drawn.sources)).to(self._device)
        generator = torch.Generator(self._device).manual_seed(2 * chunk + (images is not None))
        latents = self._latents(torch.from_numpy(np.array(drawn.targets)).to(self._device), generator)
        references = None if images is None else self._latents(images)
        return Held(ids.to(self._device), lengths.to(self._device), latents, references, images)

    def _latents(self, images: Tensor, damaged_by: torch.Generator | None = None) -> Tensor:
        latents = []
        with torch.no_grad():
            for part in images.split(IMAGES_PER_PASS):
                seen = part if damaged_by is None else damage(part, self._curation, damaged_by)
                latents.append(self._encode(seen).half())
        return torch.cat(latents)

    def _start(self, chunk: int) -> _Coming:
        jobs = list(self._jobs(chunk))
        if not self._data.num_workers:
            return _Coming(chunk, jobs, map(_draw, jobs))
        if self._pool is None:
            self._pool = spawned_pool(self._data.num_workers)
        return _Coming(chunk, jobs, self._pool.map(_draw, jobs))

    def _jobs(self, chunk: int) -> Iterator[_Job]:
        sizes = np.bincount(self.geometry)
        for cell, (task, name, count) in enumerate(self._cells):
            begin = int(self._first[cell])
            geometry = int(self.geometry[begin])
            for start in range(0, count, SAMPLES_PER_JOB):
                yield _Job(
                    task,
                    name,
                    first=chunk * count + start,
                    count=min(SAMPLES_PER_JOB, count - start),
                    row=int(self._place[begin]) + start,
                    num_rows=int(sizes[geometry]),
                    resolution=self._data.resolution,
                    curation=self._curation,
                    files=self._files(chunk, geometry),
                )

    def _finish(self, coming: _Coming) -> list[_Drawn]:
        with files.progress() as bar:
            description = f"drawing chunk {coming.chunk} of the world"
            texts = list(bar.track(coming.texts, total=len(coming.jobs), description=description))
        drawn = []
        for geometry, shape in enumerate(self.geometries):
            target, source = self._files(coming.chunk, geometry)
            on_disk = (int((self.geometry == geometry).sum()), self._data.resolution, self._data.resolution, 3)
            sources = np.memmap(source, np.uint8, "r", shape=on_disk) if shape.references else None
            of_task = [lines for job, lines in zip(coming.jobs, texts, strict=True) if job.files[0] == target]
            drawn.append(_Drawn(np.memmap(target, np.uint8, "r", shape=on_disk), sources, tuple(chain(*of_task))))
        return drawn

    def _files(self, chunk: int, geometry: int) -> tuple[Path, Path]:
        """Two pairs of files take turns: one is read while the other is drawn."""
        folder = Path(self._folder.name)
        return folder / f"target-{geometry}-{chunk % 2}.u8", folder / f"source-{geometry}-{chunk % 2}.u8"


def _draw(job: _Job) -> list[str]:
    shape = (job.num_rows, job.resolution, job.resolution, 3)
    targets = _opened(job.files[0], shape)
    sources = _opened(job.files[1], shape) if job.task == "edit" else None
    texts = []
    for i in range(job.count):
        sample = curated(job.task, job.category, job.first + i, job.curation)
        targets[job.row + i] = render(sample.target, job.resolution)
        if sources is not None:
            assert sample.source is not None
            sources[job.row + i] = render(sample.source, job.resolution)
        texts.append(sample.text)
    return texts


def _opened(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """The file at its full size, whoever comes first."""
    with path.open("ab") as file:
        file.truncate(int(np.prod(shape)))
    return np.memmap(path, np.uint8, "r+", shape=shape)
