"""The world that ships: OpenMoji drawings composed to scenes, with captions, edits and their exact targets."""

from __future__ import annotations

from datamodules.openmoji.samples import is_world, samples_of
from datamodules.openmoji.vocabulary import CATEGORIES, HEADS, MAX_CHARACTERS, MULTI_LABEL, SPLITS
from datamodules.openmoji.world import ATTRIBUTION, LICENCE, Plan, Sample, corpus, draw, drawn, plan

__all__ = [
    "ATTRIBUTION",
    "CATEGORIES",
    "HEADS",
    "LICENCE",
    "MAX_CHARACTERS",
    "MULTI_LABEL",
    "SPLITS",
    "Plan",
    "Sample",
    "corpus",
    "draw",
    "drawn",
    "is_world",
    "plan",
    "samples_of",
]
