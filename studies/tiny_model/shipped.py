"""What ships: the tiny pipeline with its specialists and its model card, and the judges."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from workbench.backbones.folders import replaced_folder
from workbench.common import files
from workbench.common.errors import UserError

MAX_BYTES = 42_000_000
MAX_BYTES_A_FILE = 16_000_000
HALF = ("transformer", "vae", "text_encoder")
"""Parts stored in bfloat16. Asked for no dtype, diffusers loads its parts in float32, and transformers in that of the
text encoder's `config.json`, which stays float32: the stock pipeline needs both alike."""
JUDGE_FILES = ("config.json", "model.safetensors")

Reports = Mapping[str, Mapping[str, Any]]


def ship(
    out: Path, teacher: Path, adapters: Mapping[str, Path], judges: Mapping[str, Path], reports: Reports
) -> dict[str, int]:
    """Write `out`/tiny and a folder for each judge; the bytes of each.

    teacher: pipeline folder. adapters: LoRA file of each specialist. judges: folders of `studies.tiny_model.judge`.
    reports: what each stage of the build found out, for the model card.

    Raises:
        UserError: more than `MAX_BYTES` in all, or than `MAX_BYTES_A_FILE` in one file.
    """
    with replaced_folder(out / "tiny") as folder:
        shutil.copytree(teacher, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
        for part in HALF:
            for path in (folder / part).glob("*.safetensors"):
                to_bfloat16(path)
        for name, path in adapters.items():
            files.write_bytes(folder / f"{name}.safetensors", path.read_bytes())
        files.write_bytes(folder / "README.md", card(folder, adapters, reports).encode())
    for name, judge in judges.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for file in JUDGE_FILES:
            files.write_bytes(out / name / file, (judge / file).read_bytes())
    check_sizes(out)
    return {f"bytes_{name}": _bytes(out / name) for name in ("tiny", *judges)}


def check_sizes(folder: Path) -> None:
    """Raises UserError if what lies in `folder` is too large to ship."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size > MAX_BYTES_A_FILE:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes: at most {MAX_BYTES_A_FILE:,} a file may ship")
    if _bytes(folder) > MAX_BYTES:
        raise UserError(f"{folder} has {_bytes(folder):,} bytes: at most {MAX_BYTES:,} in all may ship")


def to_bfloat16(path: Path) -> None:
    """Rewrite a safetensors file with its floating-point tensors in bfloat16; left alone if they are already."""
    state = load_file(path)
    if all(tensor.dtype == torch.bfloat16 or not tensor.is_floating_point() for tensor in state.values()):
        return
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    half = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in state.items()}
    files.write_bytes(path, save(half, metadata=header))


PARTS = {
    "transformer": "flow matching over T2I and edits (`studies/recipes/teacher.yaml`)",
    "text_encoder": "along with the transformer, from nothing",
    "vae": "L1, L2 and gradient error, KL 1e-5 (`studies/tiny_model/vae.py`)",
}


def card(folder: Path, adapters: Mapping[str, Path], reports: Reports) -> str:
    """Model card of the pipeline folder; `make zoo-report` adds what it scores."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        "---",
        "library_name: diffusers",
        "license: cc-by-sa-4.0",
        "tags: [text-to-image, image-to-image, flow-matching]",
        "---",
        "# A tiny Qwen-Image-2.1: base teacher and specialists",
        "",
        "Real classes of diffusers and transformers (`QwenImage21Pipeline`), images of 128 x 128. It exists to try",
        "distillation recipes on a laptop, not to make pictures for their own sake.",
        "",
        "| part | parameters | trained |",
        "|---|---|---|",
        *(f"| {name} | {parameters(folder / name) / 1e6:.1f} M | {how} |" for name, how in PARTS.items()),
        *(
            f"| {name}.safetensors | {parameters(path) / 1e6:.2f} M | LoRA over the frozen transformer, its own"
            " category alone (`studies/recipes/specialist.yaml`) |"
            for name, path in adapters.items()
        ),
        "",
        f"## How it was made: `make zoo`, {device}",
        "",
        "Settings and seeds: `studies/tiny_model/zoo.yaml` and the recipes it names.",
        "",
        "| stage | seconds | found |",
        "|---|---|---|",
    ]
    for name, report in reports.items():
        found = [f"{key} {value:.4g}" for key, value in report.items() if _is_number(value) and key != "wall_s"]
        lines.append(f"| {name} | {report['wall_s']:.0f} | {', '.join(found)} |")
    lines += [
        "",
        "## Data and licence",
        "",
        "Scenes of the OpenMoji world (`datamodules/openmoji`), drawn as training went on; combinations of the",
        "benchmarks' splits are never drawn for training. Drawings: [OpenMoji](https://openmoji.org) 17, CC BY-SA 4.0,",
        "the licence of these weights.",
    ]
    return "\n".join(lines) + "\n"


def parameters(path: Path) -> int:
    """Weights in a safetensors file, or in those of a folder."""
    count = 0
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with safe_open(file, framework="pt") as tensors:
            count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
