"""The two benchmarks as lists of cases: fixed slices of the OpenMoji splits, or a user's own JSONL file.

JSONL form, one object a line; paths are relative to the file, everything from `source` on is optional:

    {"id": "my-1", "task": "edit", "category": "object", "prompt": "Add a tree.", "source": "my-1.png",
     "target": "my-1-after.png", "scene": {"objects": ["tree"]}, "source_scene": {"objects": []},
     "named": ["objects"], "kept": ["sky"], "accepted": {"objects": [["palm"], ["tree"]]}, "exact": false}

scene: attributes of a right answer; source_scene: of the source; named: heads that the prompt determines; kept: those
an edit must leave alone; accepted: for heads with several right answers all of these, in the place of the scene's one;
exact: whether an edit's target is its only right answer (true if absent), so that pixels may be compared. Without them
only technical quality, and what source and target tell by pixels, is scored.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from datamodules.files import write_bytes
from workbench.batch import TASKS, Task
from workbench.config import CATEGORIES
from workbench.errors import UserError

BENCHES: dict[Task, str] = {"t2i": "t2i_bench", "edit": "editing_bench"}
"""Task -> name of its benchmark."""
FULL_CASES: dict[Task, int] = {"t2i": 600, "edit": 250}
"""Cases a category of the full benchmarks: 3 x 600 and 6 x 250."""

_OPTIONAL = ("source", "target", "scene", "source_scene", "named", "kept", "accepted", "exact")


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt to answer. source, target: (H, W, 3) uint8 or None."""

    id: str
    task: Task
    category: str
    prompt: str
    source: np.ndarray | None = None
    target: np.ndarray | None = None
    scene: dict[str, Any] = field(default_factory=dict)
    source_scene: dict[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    accepted: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    exact: bool = True

    @property
    def bench(self) -> str:
        """Name of the benchmark the case belongs to."""
        return BENCHES[self.task]

    def noise_seed(self, seed: int | str) -> int:
        """Seed of this case's noise under evaluation seed `seed`: whatever model answers and whichever cases stand
        beside it, the noise is the same."""
        return int.from_bytes(hashlib.sha256(f"{seed}/{self.id}".encode()).digest()[:6], "little")


def openmoji_cases(task: Task, split: str, per_category: int, resolution: int = 128) -> list[Case]:
    """The first `per_category` cases of every category of `task` in a held-out split, category by category. A smaller
    slice is a prefix of a larger one."""
    from datamodules.openmoji import draw

    cases = []
    for category in CATEGORIES[task]:
        for index in range(per_category):
            sample = draw(task, category, split, index, resolution=resolution)
            cases.append(
                Case(
                    id=sample.key,
                    task=task,
                    category=category,
                    prompt=sample.text,
                    source=sample.source,
                    target=sample.target,
                    scene=sample.scene,
                    source_scene=sample.source_scene or {},
                    named=tuple(sample.named),
                    kept=tuple(sample.kept),
                    accepted=dict(sample.accepted),
                    exact=sample.exact,
                )
            )
    return cases


def openmoji_alike(
    cases: Sequence[Case], split: str, resolution: int, pool: int, most: int
) -> dict[str, list[np.ndarray]]:
    """T2I case -> up to `most` renders, (H, W, 3) uint8, of scenes of the split that share all that its prompt names,
    looked for among the first `pool` of its category: draws from the distribution that the prompt leaves open."""
    from datamodules.openmoji import draw, plan

    found: dict[str, list[np.ndarray]] = {}
    for category in CATEGORIES["t2i"]:
        wanted = {
            case.id: _described(case.named, case.scene, case.accepted) for case in cases if case.category == category
        }
        places: dict[str, list[int]] = {}
        for index in range(pool if wanted else 0):
            planned = plan("t2i", category, split, index)
            places.setdefault(_described(planned.named, planned.target.heads(), planned.accepted), []).append(index)
        for case, description in wanted.items():
            chosen = places.get(description, [])[:most]
            found[case] = [draw("t2i", category, split, at, resolution=resolution).target for at in chosen]
    return found


def _described(named: Sequence[str], scene: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> str:
    """What a prompt names and the values it gives or accepts."""
    values = {name: accepted.get(name, scene.get(name)) for name in sorted(named)}
    return json.dumps({k: sorted(v) if isinstance(v, list | tuple) else v for k, v in values.items()})


def write_jsonl(cases: Sequence[Case], path: Path) -> None:
    """Cases in the form above, their images as PNG files in the folder `<stem>_images` beside `path`."""
    folder = path.with_name(f"{path.stem}_images")
    lines = []
    for case in cases:
        row: dict[str, Any] = {"id": case.id, "task": case.task, "category": case.category, "prompt": case.prompt}
        for name, image in (("source", case.source), ("target", case.target)):
            if image is not None:
                encoded = io.BytesIO()
                Image.fromarray(image).save(encoded, format="PNG")
                write_bytes(folder / f"{case.id}.{name}.png", encoded.getvalue())
                row[name] = f"{folder.name}/{case.id}.{name}.png"
        row |= {
            "scene": case.scene,
            "source_scene": case.source_scene,
            "named": list(case.named),
            "kept": list(case.kept),
            "accepted": dict(case.accepted),
            "exact": case.exact,
        }
        lines.append(json.dumps(row))
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def read_jsonl(path: Path) -> list[Case]:
    """Cases of a JSONL file. Raises UserError naming the file and line of anything unusable."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the cases in {path}: {error}") from error
    cases = [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    known: set[str] = set()
    for case in cases:
        if case.id in known:
            raise UserError(f"{path}: the id {case.id!r} occurs twice; ids must be unique")
        known.add(case.id)
    if not cases:
        raise UserError(f"{path} holds no cases")
    return cases


def _parse(line: str, path: Path, number: int) -> Case:
    where = f"{path} line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} must be a JSON object")
    for name in ("id", "task", "category", "prompt"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise UserError(f"{where} needs a non-empty text {name!r}")
    unknown = set(row) - {"id", "task", "category", "prompt", *_OPTIONAL}
    if unknown:
        raise UserError(f"{where} has an unknown key {sorted(unknown)[0]!r}")
    if row["task"] not in TASKS:
        raise UserError(f"{where}: task must be t2i or edit, not {row['task']!r}")
    if row["task"] == "edit" and "source" not in row:
        raise UserError(f"{where}: an edit needs a source image")
    accepted = row.get("accepted", {})
    if not isinstance(accepted, dict) or not all(isinstance(v, list) and v for v in accepted.values()):
        raise UserError(f"{where}: accepted must map heads to non-empty lists of values")
    if not isinstance(row.get("exact", True), bool):
        raise UserError(f"{where}: exact must be true or false, not {row['exact']!r}")
    return Case(
        id=row["id"],
        task=row["task"],
        category=row["category"],
        prompt=row["prompt"],
        source=_image(row, "source", path, where),
        target=_image(row, "target", path, where),
        scene=dict(row.get("scene", {})),
        source_scene=dict(row.get("source_scene", {})),
        named=tuple(row.get("named", ())),
        kept=tuple(row.get("kept", ())),
        accepted=accepted,
        exact=row.get("exact", True),
    )


def _image(row: dict[str, Any], name: str, path: Path, where: str) -> np.ndarray | None:
    if name not in row:
        return None
    try:
        with Image.open(path.parent / row[name]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, TypeError) as error:
        raise UserError(f"{where}: cannot read the {name} image {row[name]!r}: {error}") from error
