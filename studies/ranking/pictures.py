"""Pictures of one student, each drawn once and kept as a PNG file: a ranking that was stopped goes on where it was.

Pictures are drawn in fixed groups, so that a picture has the same bits whenever its group is drawn. A file is named by
all that it depends on, appears at once and as a whole, and holds what it took.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from workbench.common.files import settings_hash, write_bytes
from workbench.common.images import UNDECODABLE
from workbench.evaluation.answer_cache import digest
from workbench.evaluation.answers import CHUNK, chunks
from workbench.evaluation.cases.case import Case
from workbench.evaluation.models import ModelUnderTest

GROUP = 8
"""Pictures drawn at once, unless `evaluation.batch_size` says otherwise."""
_NO_MEMORY = 0
Group = Sequence[tuple[Case, int]]
"""Cases of one task, each with the seed of its noise."""


@dataclass(frozen=True)
class Cost:
    """Seconds an image, and the most bytes that drawing took: of the GPU, or of the process on a CPU. 0: not known."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Picture:
    image: np.ndarray
    cost: Cost


def groups(cases: Sequence[Case], seeds: Sequence[int | str], size: int) -> Iterator[Group]:
    """All cases under all seeds, as an evaluation asks for them."""
    for seed in seeds:
        for part in chunks(cases, CHUNK):
            pairs = [(case, case.noise_seed(seed)) for case in part]
            for start in range(0, len(pairs), size):
                yield pairs[start : start + size]


@dataclass
class Pictures:
    """The pictures of one student in `folder`. make: loads the student, which happens only where a picture is missing.

    weights: what identifies the student and its sampling. size: pictures in a group.
    """

    folder: Path
    make: Callable[[], ModelUnderTest]
    weights: tuple[str, str]
    size: int = GROUP

    @cached_property
    def _model(self) -> ModelUnderTest:
        return self.make()

    def release(self) -> None:
        """Let the student go, so that the next one has room."""
        self.__dict__.pop("_model", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def path(self, case: Case, seed: int) -> Path:
        """Where the picture of a case lies."""
        return self.folder / f"{settings_hash([*self.weights, digest(case), seed])[:32]}.png"

    def has(self, group: Group) -> bool:
        """Whether all pictures of a group are there."""
        return all(self.path(case, seed).is_file() for case, seed in group)

    def fill(self, group: Group, wait: bool = True) -> bool:
        """Draw a group unless it is there; False where another process draws it and `wait` is not set."""
        if self.has(group):
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path(*group[0]).with_suffix(".lock"), blocking=wait)
        try:
            with lock:
                if not self.has(group):
                    self._draw(group)
        except Timeout:
            return False
        return True

    def _draw(self, group: Group) -> None:
        model = self._model
        reset_peak()
        images, seconds = model.draw([case for case, _ in group], [seed for _, seed in group])
        cost = Cost(seconds / len(group), peak_bytes())
        for (case, seed), image in zip(group, images, strict=True):
            write_bytes(self.path(case, seed), _encoded(image, cost, case.id))

    def read(self, case: Case, seed: int) -> Picture:
        """A picture that is there. Raises: one of UNDECODABLE, or KeyError, if its file is broken."""
        with Image.open(self.path(case, seed), formats=("PNG",)) as opened:
            assert isinstance(opened, PngImageFile)
            pixels = np.asarray(opened.convert("RGB"))
            cost = Cost(float(opened.text["seconds"]), int(opened.text["memory"]))
        return Picture(pixels, cost)

    def draw(self, cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        """As `ModelUnderTest.draw`: from the files, drawing what is missing or broken."""
        pairs = list(zip(cases, seeds, strict=True))
        images, total = [], 0.0
        for start in range(0, len(pairs), self.size):
            group = pairs[start : start + self.size]
            found = self._found(group)
            images += [picture.image for picture in found]
            total += sum(picture.cost.seconds for picture in found)
        return images, total

    def _found(self, group: Group) -> list[Picture]:
        self.fill(group)
        try:
            return [self.read(case, seed) for case, seed in group]
        except (*UNDECODABLE, KeyError):
            for case, seed in group:
                self.path(case, seed).unlink(missing_ok=True)
            self.fill(group)
            return [self.read(case, seed) for case, seed in group]

    def cost(self, wanted: Sequence[Group]) -> Cost:
        """Median seconds an image, which the first group's warming up does not move, and the most memory."""
        found = [self.read(*group[0]).cost for group in wanted]
        return Cost(float(np.median([cost.seconds for cost in found])), max(cost.memory for cost in found))


def _encoded(image: np.ndarray, cost: Cost, case: str) -> bytes:
    info = PngInfo()
    for name, value in (("seconds", repr(cost.seconds)), ("memory", str(cost.memory)), ("case", case)):
        info.add_itxt(name, value)
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="PNG", compress_level=1, pnginfo=info)
    return out.getvalue()


def reset_peak() -> None:
    """Count the most memory from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most bytes held since `reset_peak`: of the GPU, or resident in memory; 0 where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return _NO_MEMORY
