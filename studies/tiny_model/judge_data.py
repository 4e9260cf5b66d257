"""Images of the OpenMoji world with their labels as columns of small integers, -1 where a head does not apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from datamodules.openmoji import HEADS, MAX_CHARACTERS, MULTI_LABEL, draw
from workbench.batch import Task
from workbench.evaluation.judges.local_network import BLANK, classes_of

KINDS: tuple[tuple[Task, str, bool], ...] = (
    ("t2i", "landscape", False),
    ("t2i", "portrait", False),
    ("t2i", "text", False),
    ("edit", "text", False),
    ("edit", "enhance", True),
    ("t2i", "landscape", False),
    ("t2i", "portrait", False),
    ("t2i", "text", False),
    ("t2i", "text", False),
    ("edit", "scene", False),
    ("edit", "enhance", False),
    ("edit", "object", False),
    ("edit", "identity", False),
    ("edit", "style", False),
)
"""(task, category, whether it is the source) of each index in turn: plain generation, targets of all edits, and the
sources that are to be enhanced, which alone show the classes of the `quality` head."""


def vocabulary(heads: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The attributes whose classes are names; the text is read character by character."""
    return {name: tuple(classes) for name, classes in heads.items() if name != "word"}


SINGLE_LABEL = tuple(name for name in vocabulary(HEADS) if name not in MULTI_LABEL)


def _columns() -> dict[str, list[int]]:
    columns: dict[str, list[int]] = {}
    start = 0
    widths = {
        **dict.fromkeys(SINGLE_LABEL, 1),
        **{name: len(HEADS[name]) for name in MULTI_LABEL},
        "word": MAX_CHARACTERS,
    }
    for name, width in widths.items():
        columns[name] = list(range(start, start + width))
        start += width
    return columns


COLUMNS = _columns()
NUM_COLUMNS = sum(len(columns) for columns in COLUMNS.values())


def encode(scene: Mapping[str, Any]) -> np.ndarray:
    """Label columns (NUM_COLUMNS,) int16 of a scene."""
    row = np.full(NUM_COLUMNS, -1, dtype=np.int16)
    for name in SINGLE_LABEL:
        if name in scene:
            row[COLUMNS[name]] = HEADS[name].index(scene[name])
    for name in MULTI_LABEL:
        if name in scene:
            row[COLUMNS[name]] = [value in scene[name] for value in HEADS[name]]
    if "word" in scene:
        characters = classes_of(scene["word"])
        row[COLUMNS["word"]] = characters + [BLANK] * (MAX_CHARACTERS - len(characters))
    return row


def is_clean(labels: Tensor) -> Tensor:
    """(B,) bool: rows of label columns (B, NUM_COLUMNS) whose image is as drawn, not one to be enhanced."""
    quality = labels[:, COLUMNS["quality"]].squeeze(1)
    return (quality < 0) | (quality == HEADS["quality"].index("clean"))


def render(split: str, start: int, count: int, resolution: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, S, S, 3) uint8 and label columns (count, NUM_COLUMNS) of the indices from `start`."""
    images, labels = [], []
    for index in range(start, start + count):
        task, category, is_source = KINDS[index % len(KINDS)]
        sample = draw(task, category, split, index, seed=seed, resolution=resolution)
        image, scene = (sample.source, sample.source_scene) if is_source else (sample.target, sample.scene)
        assert image is not None and scene is not None
        images.append(image)
        labels.append(encode(scene))
    return np.stack(images), np.stack(labels)
