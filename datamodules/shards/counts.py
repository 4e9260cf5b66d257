"""How many samples of each category a recipe's data hold; read without torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from datamodules.openmoji.samples import is_world, samples_of
from workbench.common.errors import UserError
from workbench.common.outside import Outside, read_json
from workbench.recipe.config import Data

INDEX = "index.json"
"""Name of the index of encoded shards."""


class _Sample(Outside):
    task: str
    category: str


class _Index(Outside):
    samples: list[_Sample]


def category_counts(data: Data) -> dict[str, int]:
    """`task/category` -> samples: what the index of `data.encoded` lists, or what would be drawn from the world; empty
    where neither is known (one's own images, encoded elsewhere)."""
    try:
        index = read_json(Path(data.encoded) / INDEX, _Index, "")
        return dict(Counter(f"{sample.task}/{sample.category}" for sample in index.samples))
    except UserError:
        pass
    if not is_world(data):
        return {}
    return {f"{task}/{name}": count for task, of in samples_of(data).items() for name, count in of.items() if count}
