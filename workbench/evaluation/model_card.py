"""The model card of an exported student: README.md of its pipeline folder, with the scores once there are any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.common import files
from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.measures.statistics import Interval
from workbench.evaluation.metrics_file import Metrics, mean_of
from workbench.method.rollout import Sampling

SCORES_HEADING = "## Scores"


@dataclass(frozen=True)
class Origin:
    """Where a student comes from, for its model card."""

    title: str
    recipe_hash: str
    data: str
    licence: str


def model_card(origin: Origin, pipeline_class: str, how: Sampling) -> str:
    """Markdown for a student that `pipeline_class` of diffusers samples as `how` says."""
    times = how.grid()[:-1].tolist()
    solver = "noised again between them (`stochastic_sampling`)" if how.stochastic else "Euler"
    lines = [
        "---",
        "library_name: diffusers",
        "tags: [text-to-image, image-to-image, distillation]",
        "---",
        f"# {origin.title}",
        "",
        f"- Network evaluations an image (NFE): **{how.nfe}**, without guidance (`true_cfg_scale=1`).",
        f"- Times (`sample_sigmas`): {', '.join(f'{time:.6g}' for time in times)}, then 0; {solver}.",
        f"- Recipe: `{origin.recipe_hash}`",
        f"- Data: {origin.data}",
        f"- Licence: {origin.licence}",
        "",
        "```python",
        "# pip install diffusers transformers torchvision",
        f"from diffusers import {pipeline_class}",
        f'pipeline = {pipeline_class}.from_pretrained("FOLDER")',
        'pipeline("PROMPT", output_resolution=128).images[0]',
        "```",
    ]
    return "\n".join(lines) + "\n"


def add_scores(folder: Path, metrics: Metrics) -> None:
    """Put the scores of `metrics.json` into the model card of a pipeline folder, in the place of older ones."""
    card = folder / "README.md"
    text = card.read_text().partition(f"\n{SCORES_HEADING}\n")[0].rstrip()
    lines = [
        "",
        SCORES_HEADING,
        "",
        f"{metrics.scored_on.capitalize()}, seeds {metrics.seeds}, judge {metrics.judge}; {metrics.interval}.",
        "",
        "| model | NFE | n | T2I-Bench | Editing-Bench |",
        "|---|---|---|---|---|",
    ]
    for name, model in metrics.models.items():
        t2i, editing = (_score(mean_of(model.benches, bench)) for bench in BENCHES.values())
        lines.append(f"| {name.replace('_', ' ')} | {model.nfe} | {model.n} | {t2i} | {editing} |")
    files.write_bytes(card, ("\n".join([text, *lines]) + "\n").encode())


def _score(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    if interval.low is None:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
