"""The model card of an exported student: README.md of its pipeline folder, with the scores once there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workbench.common import files
from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.metrics_file import Metrics, mean_of
from workbench.method.rollout import Sampling

SCORES_HEADING = "## Scores"
CARD_START = "---\nlibrary_name: diffusers\n"
TASK_TAGS = {"t2i": "text-to-image", "edit": "image-to-image"}
ASKED_FOR = ("license", "base_model")


@dataclass(frozen=True)
class Origin:
    """Where a student comes from, for its model card.

    licence: of the data. fields: of the card's front matter, as far as they are known. tasks: that it was trained for.
    resolution: side in pixels of the pictures that it was trained on.
    """

    title: str
    recipe_hash: str
    data: str
    licence: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] = tuple(TASK_TAGS)
    resolution: int = 128

    @property
    def missing(self) -> list[str]:
        """Fields that the card should have and that nobody has said."""
        return [name for name in ASKED_FOR if not self.fields.get(name)]


def model_card(origin: Origin, pipeline_class: str, how: Sampling, draw: Sequence[str]) -> str:
    """Markdown for a student that `pipeline_class` samples as `how` says. draw: lines of Python for that."""
    times = how.grid()[:-1].tolist()
    solver = "noised again between them (`stochastic_sampling`)" if how.stochastic else "Euler"
    code = [
        f"from diffusers import {pipeline_class}",
        f'pipeline = {pipeline_class}.from_pretrained("FOLDER")',
        *draw,
    ]
    grid = f"- Times: {', '.join(f'{time:.6g}' for time in times)}, then 0; {solver}."
    return _card(origin, "finetune", how, [grid], ["# pip install diffusers transformers torchvision", *code])


def lora_card(origin: Origin, pipeline_class: str, how: Sampling, draw: Sequence[str], file: str, comfyui: bool) -> str:
    """Markdown for a student in the LoRA file `file`, with the sigmas to type into ComfyUI or to give diffusers, as the
    lines of Python `draw` do."""
    sigmas = ", ".join(f"{time:.6g}" for time in how.grid().tolist())
    sampler = "lcm" if how.stochastic else "euler"
    if comfyui:
        lines = [
            f"- ComfyUI: put `{file}` into `models/loras`, load it at strength 1 (`LoraLoaderModelOnly`).",
            f"- Sigmas to type (`ManualSigmas`): `{sigmas}`",
            f"- Sampler `{sampler}` (`KSamplerSelect`), cfg 1; no shift is added to typed sigmas.",
        ]
        return _card(origin, "adapter", how, lines, [])
    scheduler, base = "FlowMatchEulerDiscreteScheduler", _in_words(origin.fields.get("base_model")) or "BASE MODEL"
    settings = f"shift=1.0, use_dynamic_shifting=False, stochastic_sampling={how.stochastic}"
    code = [
        "# pip install diffusers transformers torchvision peft",
        f"from diffusers import {scheduler}, {pipeline_class}",
        f'pipeline = {pipeline_class}.from_pretrained("{base}")',
        f"pipeline.scheduler = {scheduler}({settings})",
        f'pipeline.load_lora_weights("{file}")',
        *draw,
    ]
    return _card(origin, "adapter", how, [f"- Sigmas: {sigmas}."], code)


def _card(origin: Origin, relation: str, how: Sampling, lines: list[str], code: list[str]) -> str:
    fields = origin.fields
    tags = [TASK_TAGS[task] for task in TASK_TAGS if task in origin.tasks]
    mine = {"library_name": "diffusers", "pipeline_tag": tags[0] if tags else "text-to-image"}
    more = {name: value for name, value in fields.items() if name != "tags"}
    if "base_model" in more:
        more["base_model_relation"] = relation
    added = ["distillation", *(["lora"] if relation == "adapter" else []), *fields.get("tags", [])]
    front = mine | more | {"tags": list(dict.fromkeys([*tags, *added]))}
    licence, base = _in_words(fields.get("license_name") or fields.get("license")), _in_words(fields.get("base_model"))
    return "\n".join(
        [
            *("---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---"),
            *(f"# {origin.title}", ""),
            f"- Network evaluations an image (NFE): **{how.nfe}**, without guidance (`true_cfg_scale=1`).",
            *lines,
            f"- Licence: {licence or '**not stated by the teacher: ask who made it before passing this on**'}",
            f"- Base model: {base or 'the teacher, whose name on the Hub is not stated'}",
            f"- Recipe: `{origin.recipe_hash}`",
            f"- Data: {origin.data}",
            f"- Licence of the data: {origin.licence}",
            *(["", "```python", *code, "```"] if code else []),
            "",
        ]
    )


def _in_words(value: str | list[str] | None) -> str:
    return " ".join((", ".join(value) if isinstance(value, list) else value or "").split())


def add_scores(folder: Path, scored: Sequence[Metrics]) -> None:
    """Put the scores of all evaluations into the model card of a pipeline folder, in the place of older ones."""
    card = folder / "README.md"
    text = card.read_text().partition(f"\n{SCORES_HEADING}\n")[0]
    files.write_bytes(card, with_scores(text, scored).encode())


def with_scores(text: str, scored: Sequence[Metrics]) -> str:
    """A card without scores, with those of all evaluations."""
    lines = ["", SCORES_HEADING]
    for metrics in scored:
        lines += [
            "",
            f"{metrics.scored_on.capitalize()}, seeds {metrics.seeds}, judge {metrics.judge}; {metrics.interval}.",
            "",
            "| model | NFE | n | T2I-Bench | Editing-Bench |",
            "|---|---|---|---|---|",
        ]
        for name, model in metrics.models.items():
            t2i, editing = (_score(mean_of(model.benches, bench)) for bench in BENCHES.values())
            lines.append(f"| {name.replace('_', ' ')} | {model.nfe} | {model.n} | {t2i} | {editing} |")
    return "\n".join([text.rstrip(), *lines]) + "\n"


def _score(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    if interval.low is None:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
