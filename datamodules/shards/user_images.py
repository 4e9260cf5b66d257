"""One's own images and prompts as `workbench pack` reads them: a folder, a table, a list of prompts.

A file `ATTRIBUTION.txt` at the top of the folder, or next to the file, says whose the images are.
"""

from __future__ import annotations

from pathlib import Path

from datamodules.shards.left_out import Tally
from datamodules.shards.own_folder import ATTRIBUTION_FILE, read_folder
from datamodules.shards.own_sample import OwnSample
from datamodules.shards.own_table import TABLES, read_prompts, read_table
from workbench.common.errors import UserError
from workbench.recipe.config import Data


def list_own(data: Data, tally: Tally) -> list[OwnSample]:
    """The samples behind `data.source`, in order. tally: counts what is not taken.

    Raises:
        UserError: naming the file and what to do, for a source that is missing or empty, and as the readers of folders
            and tables.
    """
    source = Path(data.source)
    if source.is_dir():
        samples = read_folder(source, tally)
    elif source.is_file() and source.suffix.lower() in TABLES:
        samples = read_table(source, tally)
    elif source.is_file() and source.suffix.lower() == ".txt":
        samples = read_prompts(source, tally)
    else:
        raise UserError(
            f"data.source={data.source} is neither `openmoji` nor a folder nor a file of "
            f"{', '.join((*TABLES, '.txt'))}; check the path"
        )
    origins: dict[str, str] = {}
    unlike = []
    for sample in samples:
        with tally.sample():
            if sample.key in origins:
                raise UserError(
                    f"{sample.origin} and {origins[sample.key]} have the same key {sample.key!r}; rename one"
                )
            origins[sample.key] = sample.origin
            unlike.append(sample)
    if not unlike:
        raise UserError(
            f"no samples in {source}: put images x.png (or jpg, webp) with captions x.txt there, or a table that names "
            "them (docs/data.md)"
        )
    return unlike


def attribution_of(source: str) -> str:
    """Text of the attribution file next to the images, or a sentence that there is none."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    path = folder / ATTRIBUTION_FILE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else f"own data; no {ATTRIBUTION_FILE} was given"
