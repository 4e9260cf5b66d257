"""Answers kept chunk by chunk: an evaluation that was interrupted goes on where it was, and many runs are compared with
one teacher that answers once.

A chunk is found again only for the same weights, sampling, judge, cases (texts, attributes and pixels) and seed.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from datamodules.shards.sources import source_name
from workbench.common.errors import UserError
from workbench.common.files import settings_hash, write_bytes
from workbench.common.outside import Outside, parse
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.judge import Scored, Unanswered
from workbench.evaluation.judges.local import Judgement
from workbench.evaluation.measures.answer_measures import Measures

UNREADABLE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What numpy raises of a file that is no whole .npz."""
FORMAT = 7
"""Counted up when what is read off an answer changes."""


@dataclass(frozen=True)
class Answer:
    """One model's answer to one case under one seed: the local judge's judgement, None without it, and its measures.
    difficulty: of the case."""

    case: str
    bench: str
    category: str
    seed: int
    judgement: Judgement | None
    measures: Measures
    difficulty: str = ""

    @property
    def by_local(self) -> Judgement:
        """The local judge's judgement, where there is a local judge."""
        assert self.judgement is not None, "no local judge was asked"
        return self.judgement


@dataclass(frozen=True)
class Chunk:
    """What one model answered to some cases under one seed. images: of the cases that were to be kept. verdicts: of
    further judges on every answer."""

    answers: list[Answer]
    features: np.ndarray
    images: dict[str, np.ndarray]
    seconds: float
    verdicts: Mapping[str, Sequence[Scored | Unanswered]] = field(default_factory=dict)


class _Stored(Outside):
    """What a chunk's file holds next to its arrays."""

    rows: list[Answer]
    images: list[str]
    seconds: float
    verdicts: dict[str, list[Judgement]]


@dataclass(frozen=True)
class Store:
    """Chunks as .npz files in `folder`, named by the hash of what they answer."""

    folder: Path

    def once(self, key: str, draw: Callable[[], Chunk], wait: bool = True) -> Chunk | None:
        """The chunk under `key`, drawn if there is none. One process draws it; others that need it wait, or without
        `wait` get None."""
        chunk = self.load(key)
        if chunk is not None:
            return chunk
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(self.folder / f"{key}.lock", blocking=wait).acquire()
        except Timeout:
            return None
        with held:
            chunk = self.load(key)
            if chunk is None:
                chunk = draw()
                self.save(key, chunk)
        return chunk

    def load(self, key: str) -> Chunk | None:
        """The chunk under `key`, None if there is none that can be read."""
        try:
            with np.load(self.folder / f"{key}.npz", allow_pickle=False) as file:
                stored = parse(bytes(file["rows"]), _Stored, key, "it is drawn again")
                features = file["features"]
                images = {name: file[f"image{i}"] for i, name in enumerate(stored.images)}
        except (UserError, *UNREADABLE):
            return None
        return Chunk(stored.rows, features, images, stored.seconds, dict(stored.verdicts))

    def save(self, key: str, chunk: Chunk) -> None:
        """Write a chunk under `key`."""
        rows = [asdict(row) for row in chunk.answers]
        # A judge that answers otherwise, or not at all, has no fingerprint, and its chunks are not stored.
        verdicts = {
            name: [asdict(verdict) for verdict in given if isinstance(verdict, Judgement)]
            for name, given in chunk.verdicts.items()
        }
        stored = json.dumps(
            {"rows": rows, "images": list(chunk.images), "seconds": chunk.seconds, "verdicts": verdicts}
        )
        pictures: dict[str, Any] = {f"image{i}": image for i, image in enumerate(chunk.images.values())}
        content = io.BytesIO()
        np.savez(content, rows=np.frombuffer(stored.encode(), np.uint8), features=chunk.features, **pictures)
        write_bytes(self.folder / f"{key}.npz", content.getvalue())


def chunk_key(model: Mapping[str, Any], judge: str, cases: Sequence[Case], seed: str, keep: Sequence[str]) -> str:
    """Name of a chunk. model: fingerprint and sampling. judge: fingerprint. keep: cases whose images it holds."""
    return settings_hash([FORMAT, dict(model), judge, seed, [digest(case) for case in cases], list(keep)])[:32]


def digest(case: Case) -> str:
    """Hash of all that a case is, pixels included."""
    found = hashlib.sha256()
    values = {name: value for name, value in vars(case).items() if name != "more_sources"}
    values |= {source_name(number): source for number, source in enumerate(case.more_sources, 2)}
    for name, value in values.items():
        content = value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value, sort_keys=True).encode()
        shape = str(value.shape) if isinstance(value, np.ndarray) else ""
        found.update(f"{name}{shape}{len(content)}:".encode() + content)
    return found.hexdigest()
