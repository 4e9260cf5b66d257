"""A distilled student as what others load: a diffusers pipeline folder, or a LoRA file over the teacher.

The stock pipeline then samples the student's own Euler grid: `sample_sigmas` holds the times and the scheduler is one
that leaves them as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from workbench.backbones import lora
from workbench.backbones.qwen_image_21.pipeline import INDEX_FILE, resolve
from workbench.common import files
from workbench.common.errors import UserError
from workbench.evaluation.tables import asked

Adapters = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name, as in the stock transformer, -> (A (r, in), B (out, r)), alpha / r already in B: W' = W + B A."""

PreTrained: TypeAlias = QwenImage21Transformer2DModel | Qwen3VLForConditionalGeneration

_REPLACED = ("transformer", "scheduler")


@dataclass(frozen=True)
class Metadata:
    """What the model card says beside the sampling grid. metrics: row -> column -> value, as given."""

    title: str = "Distilled student"
    recipe_hash: str = "unknown"
    data: str = "unknown"
    licence: str = "unknown"
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def export(
    teacher_folder: str,
    student_state: Mapping[str, Tensor],
    times: Tensor | Sequence[float],
    out: Path,
    *,
    metadata: Metadata,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the pipeline folder `out`: the teacher's, with the student's transformer and its grid.

    student_state: whole, unsharded, with the names of the stock transformer. times: (K + 1,) from 1 down to 0. `out`
    appears whole or not at all; a pipeline folder in its place is replaced, anything else is left alone.

    Raises:
        UserError: as `replaced_folder`. ValueError: a grid or a state that does not fit.
    """
    teacher, sigmas = resolve(teacher_folder), sample_sigmas(times)
    transformer = _transformer(teacher, student_state, dtype)
    with replaced_folder(out) as folder:
        _copy_parts(teacher, folder, _REPLACED)
        transformer.save_pretrained(folder / "transformer")
        # Qwen's pipeline divides timesteps by 1000 whatever the scheduler says.
        FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False
        ).save_pretrained(folder / "scheduler")
        index = json.loads((teacher / INDEX_FILE).read_text())
        index |= {"sample_sigmas": sigmas, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(metadata, sigmas))


def export_components(source_folder: str, trained: Mapping[str, PreTrained], out: Path) -> None:
    """Write the pipeline folder `out`: the source's, with the components of `trained`.

    The transformer is stored in bfloat16, the text encoder in float32: asked for no dtype, diffusers loads its parts
    in float32 and transformers loads what was stored, and the two must agree for the stock pipeline to run.

    Raises:
        UserError: as `replaced_folder`.
    """
    source = resolve(source_folder)
    with replaced_folder(out) as folder:
        _copy_parts(source, folder, tuple(trained))
        for name, component in trained.items():
            dtype = torch.float32 if isinstance(component, Qwen3VLForConditionalGeneration) else torch.bfloat16
            component.to("cpu", dtype).save_pretrained(folder / name)


def sample_sigmas(times: Tensor | Sequence[float]) -> list[float]:
    """The pipeline's `sample_sigmas`, the terminal 0 left out.

    Raises:
        ValueError: the times do not fall from 1 to 0.
    """
    values = [float(time) for time in times]
    falls = all(a > b for a, b in zip(values, values[1:], strict=False))
    if len(values) < 2 or values[0] != 1 or values[-1] != 0 or not falls:
        raise ValueError(f"a grid falls strictly from 1 to 0, got {values}")
    return values[:-1]


def role_adapters(transformer: nn.Module, role: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapters of one role inside a stock transformer whose linear layers are `lora.RoleLinear`."""
    adapters = {}
    for name, layer in lora.role_linears(transformer):
        if role in layer.scaling:
            down, up = layer.lora_A[role].weight, layer.lora_B[role].weight
            assert isinstance(down, Tensor) and isinstance(up, Tensor)
            adapters[name] = down, layer.scaling[role] * up
    return adapters


def export_lora(
    adapters: Adapters,
    times: Tensor | Sequence[float],
    out: Path,
    *,
    metadata: Metadata,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the safetensors file `out` for `pipeline.load_lora_weights`. Its grid must be given at sampling time.

    The file carries no alpha: it is in B, and a missing alpha means W + B A to diffusers. The grid is in the header.

    Raises:
        UserError: as `write_lora`. ValueError: no adapters, or a grid that does not fall from 1 to 0.
    """
    header = {"sample_sigmas": json.dumps(sample_sigmas(times)), "recipe_hash": metadata.recipe_hash}
    write_lora(adapters, out, header=header, dtype=dtype)


def write_lora(
    adapters: Adapters, out: Path, *, header: Mapping[str, str], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write the safetensors file `out` for `pipeline.load_lora_weights` and `teachers.specialists`.

    Raises:
        UserError: `out` is a folder, or the disk is full or cannot be written. ValueError: no adapters.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a .safetensors file to write")
    if not adapters:
        raise ValueError("there are no adapters to export")
    state = {}
    for name, (down, up) in adapters.items():
        state[f"transformer.{name}.lora_A.weight"] = down.detach().to("cpu", dtype).contiguous()
        state[f"transformer.{name}.lora_B.weight"] = up.detach().to("cpu", dtype).contiguous()
    files.write_bytes(out, save(state, metadata={"format": "pt", **header}))


def model_card(metadata: Metadata, sigmas: Sequence[float]) -> str:
    """Markdown beside the weights."""
    steps = len(sigmas)
    lines = [
        "---",
        "library_name: diffusers",
        "tags: [text-to-image, image-to-image, distillation]",
        "---",
        f"# {metadata.title}",
        "",
        f"- Network evaluations an image (NFE): **{steps}**, without guidance (`true_cfg_scale=1`).",
        f"- Times (`sample_sigmas`): {', '.join(f'{sigma:.6g}' for sigma in sigmas)}, then 0; Euler.",
        f"- Recipe: `{metadata.recipe_hash}`",
        f"- Data: {metadata.data}",
        f"- Licence: {metadata.licence}",
        "",
        "```python",
        "# pip install diffusers transformers torchvision",
        "from diffusers import QwenImage21Pipeline",
        'pipeline = QwenImage21Pipeline.from_pretrained("FOLDER")',
        'pipeline("PROMPT", output_resolution=128).images[0]',
        "```",
    ]
    if metadata.metrics:
        columns = list(dict.fromkeys(name for row in metadata.metrics.values() for name in row))
        lines += ["", f"| model | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
        for row, values in metadata.metrics.items():
            cells = (f"{values[name]:.4g}" if name in values else "" for name in columns)
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


SCORES_HEADING = "## Scores"


def add_scores(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Put the scores of `metrics.json` into the model card of a pipeline folder, in the place of older ones."""
    card = folder / "README.md"
    text = card.read_text().partition(f"\n{SCORES_HEADING}\n")[0].rstrip()
    lines = [
        "",
        SCORES_HEADING,
        "",
        f"{asked(metrics).capitalize()}, seeds {metrics['seeds']}, judge {metrics['judge']}; {metrics['interval']}.",
        "",
        "| model | NFE | n | T2I-Bench | Editing-Bench |",
        "|---|---|---|---|---|",
    ]
    for name, model in metrics["models"].items():
        cells = [_score_cell(model.get(bench, {}).get("mean")) for bench in ("t2i_bench", "editing_bench")]
        lines.append(f"| {name.replace('_', ' ')} | {model['nfe']} | {model['n']} | {cells[0]} | {cells[1]} |")
    files.write_bytes(card, ("\n".join([text, *lines]) + "\n").encode())


def _score_cell(interval: Mapping[str, Any] | None) -> str:
    if interval is None or interval["mean"] is None:
        return "-"
    if interval["low"] is None:
        return f"{interval['mean']:.2f}"
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` once the block ends well and vanishes otherwise.

    Raises:
        UserError: `out` exists and is neither empty nor a pipeline folder, or the disk is full or cannot be written.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / INDEX_FILE).is_file()):
        raise UserError(f"{out} exists and is no pipeline folder: remove it or name another place")
    part, old = (out.with_name(f".{out.name}.{os.getpid()}.{suffix}") for suffix in ("part", "old"))
    _remove_leftovers(out)
    try:
        part.mkdir(parents=True)
        yield part
        _open_to_others(part)
        if out.exists():
            os.replace(out, old)
        os.replace(part, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {_reason(error)}; free space or choose another folder") from error
    finally:
        if old.exists() and not out.exists():
            os.replace(old, out)
        _remove_leftovers(out)


def _open_to_others(folder: Path) -> None:
    """Files of weights are written for their owner alone by the library: give them the rights of any other file."""
    usual = folder / ".rights"
    usual.touch()
    mode = usual.stat().st_mode
    usual.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _remove_leftovers(out: Path) -> None:
    """What this process and killed ones left beside `out`. A folder that stood in its place goes only once another
    stands there."""
    name = re.compile(rf"\.{re.escape(out.name)}\.(?P<pid>\d{{1,9}})\.(?P<kind>part|old)")
    for path in out.parent.iterdir() if out.parent.is_dir() else ():
        found = name.fullmatch(path.name)
        if found and not _is_another_process(int(found["pid"])) and (found["kind"] == "part" or out.exists()):
            shutil.rmtree(path, ignore_errors=True)


def _is_another_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reason(error: OSError | SafetensorError) -> str:
    match error:
        case shutil.Error():
            return "; ".join(str(reason) for _, _, reason in error.args[0][:1])
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)


def _copy_parts(source: Path, out: Path, left_out: Sequence[str]) -> None:
    """The pipeline's own folders and its licence: what else lies there, adapters say, was made for other weights."""
    index = json.loads((source / INDEX_FILE).read_text())
    for item in sorted(source.iterdir()):
        if item.is_dir() and item.name in index and item.name not in left_out:
            shutil.copytree(item, out / item.name)
        elif item.is_file() and (item.name == INDEX_FILE or item.name.startswith(("LICENSE", "NOTICE"))):
            shutil.copy2(item, out / item.name)


def _transformer(teacher: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> QwenImage21Transformer2DModel:
    """The student's network without a second copy of its weights."""
    with torch.device("meta"):
        network = QwenImage21Transformer2DModel.from_config(
            QwenImage21Transformer2DModel.load_config(teacher / "transformer")
        )
    expected = network.state_dict()
    wrong = sorted(set(expected) ^ set(state)) or sorted(n for n in expected if expected[n].shape != state[n].shape)
    if wrong:
        raise ValueError(f"the student's weights do not fit the teacher's transformer: {', '.join(wrong[:5])}")
    cast = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
    network.load_state_dict(cast, assign=True)
    return network
