"""What a model drew, kept on disk: many runs are compared with one teacher, which answers the same cases every time.

An answer is found again by everything it depends on: the files of the pipeline, the sampling, the kind of device, and
every case's prompt, source and noise. The judge looks at what was kept as at what is drawn.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.files import whole_file
from workbench.evaluation.benchmark import Case
from workbench.evaluation.models import ModelUnderTest


def remembered(model: ModelUnderTest, where: str, folder: Path) -> ModelUnderTest:
    """`model`, which has a fingerprint, drawing nothing twice. where: resolution and device.

    Of several processes one draws and the others wait for it. The seconds told are those it took when it was drawn.
    """

    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{_key(model, where, cases, seeds)}.npz"
        with open(path.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _read(path, len(cases))
            if found is None:
                found = model.draw(cases, seeds)
                _write(path, *found)
        return found

    return replace(model, draw=draw)


def _key(model: ModelUnderTest, where: str, cases: Sequence[Case], seeds: Sequence[int]) -> str:
    digest = hashlib.sha256(json.dumps([model.fingerprint, where, model.sampling, model.nfe]).encode())
    for case, seed in zip(cases, seeds, strict=True):
        source = None if case.source is None else [case.source.shape, hashlib.sha256(case.source.tobytes()).hexdigest()]
        digest.update(json.dumps([case.id, case.prompt, source, seed]).encode())
    return digest.hexdigest()[:24]


def _write(path: Path, images: Sequence[np.ndarray], seconds: float) -> None:
    arrays: dict[str, Any] = {f"{i:06d}": image for i, image in enumerate(images)}
    with whole_file(path) as file:
        np.savez_compressed(file, seconds=np.array(seconds), **arrays)


def _read(path: Path, count: int) -> tuple[list[np.ndarray], float] | None:
    """The images and the seconds in `path`; None where it is missing or damaged: it is drawn again then."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return [content[f"{i:06d}"] for i in range(count)], float(content["seconds"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
