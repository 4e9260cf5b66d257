"""How the measures of docs/measures.md follow graded damage: their rank correlation with its severity, as Markdown.

    python -m studies.tiny_model.graded_damage [t2i_cases=40 editing_cases=16]     cases a category, 0 for none of them

The exact targets of held-out cases are the answers, damaged by every corruption that the judge learns from and by what
such damage leaves alone: moved, another cast, faded, the answer to another prompt, one answer to many prompts. The
severities are those of SEVERITIES for all of them, and nothing is chosen by what comes out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from studies.tiny_model.corruptions import CORRUPTIONS
from workbench.common.errors import UserError
from workbench.evaluation.answers import CHUNK, Answers, chunks, judge_into
from workbench.evaluation.cases.case import BENCHES, Case
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.measures import distances
from workbench.evaluation.measures.catalogue import MEASURES
from workbench.evaluation.measures.ocr import shared_reader
from workbench.evaluation.measuring import Measuring
from workbench.evaluation.metrics_file import MEAN, Secondary
from workbench.evaluation.secondary import secondary_metrics

SEVERITIES = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)
BAR = 0.95
UNMOVED = 0.01
"""Share of a measure's scale that counts as no change."""
Images = list[np.ndarray]
Damage = Callable[[Images, float], Images]


@dataclass(frozen=True)
class Graded:
    """One measure under one damage, a value a severity. rank: Spearman's correlation with the severity, positive where
    the measure gets worse. blind_to: severity up to which it does not move, 1 where it never does; None where it
    follows."""

    values: tuple[float, ...]
    rank: float
    blind_to: float | None

    def __str__(self) -> str:
        if self.blind_to is not None:
            return "blind" if self.blind_to == SEVERITIES[-1] else f"{self.rank:.2f}, blind to {self.blind_to:g}"
        return f"{self.rank:.2f}"


def shift(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Moved by 8 s pixels of 128, to the right and down."""
    side = images.shape[-1]
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    theta[:, :, 2] = -2 * 8 * s[:, None] / 128 * torch.tensor([0.8, 0.6])
    grid = torch.nn.functional.affine_grid(theta, [len(images), 3, side, side], align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def cast(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Redder by 32 s grey levels, less green by half and less blue by all of it."""
    return (images + s[:, None, None, None] * 32 / 255 * torch.tensor([1, -0.5, -1])[:, None, None]).clamp(0, 1)


def fade(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Mixed with grey, weight .95 s."""
    return torch.lerp(images, torch.full_like(images, 0.5), 0.95 * s[:, None, None, None])


def exchanged(images: Images, severity: float) -> Images:
    """A share of the answers are those to the next of the prompts."""
    changed = round(severity * len(images))
    return [*(images[(i + 1) % len(images)] for i in range(changed)), *images[changed:]]


def repeated(images: Images, severity: float) -> Images:
    """A share of the answers are one and the same."""
    changed = round(severity * len(images))
    return [*([images[-1]] * changed), *images[changed:]]


def _of_pixels(corruption: Callable[[Tensor, Tensor, torch.Generator], Tensor]) -> Damage:
    def damaged(images: Images, severity: float) -> Images:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        generator = torch.Generator().manual_seed(0)
        found = corruption(pixels, torch.full((len(images),), severity), generator)
        return list((found * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())

    return damaged


DAMAGES: Mapping[str, Damage] = {
    **{name: _of_pixels(of) for name, of in {**CORRUPTIONS, "shift": shift, "cast": cast, "fade": fade}.items()},
    "exchanged": exchanged,
    "repeated": repeated,
}
SCALES: Mapping[str, float] = {
    **{name: -10.0 if "log_probability" in name else -1.0 for name in MEASURES if not name.startswith("editing")},
    "displacement": 10.0,
    "colour_drift": 10.0,
    "variety": -1.0,
    "category_frechet": 100.0,
    "residual_noise": 10.0,
    "target_distance": 0.1,
}
"""Measure -> from its best value to a clearly bad one. Texts are read the same way in edits."""


def follows(values: Sequence[float], scale: float, severities: Sequence[float] = SEVERITIES) -> Graded:
    """What `values`, a mean at each severity, say of a measure whose best and clearly bad value are `scale` apart."""
    worse = (np.array(values) - values[0]) / scale
    moved = np.abs(worse) > UNMOVED
    rank = float(spearmanr(severities, worse).statistic) if np.ptp(worse) > 0 else 0.0
    if rank >= BAR:
        return Graded(tuple(values), rank, None)
    still = severities[int(moved.argmax()) - 1] if moved.any() else severities[-1]
    return Graded(tuple(values), rank, still or None)


def numbers(found: Secondary, frechet: float) -> dict[str, float]:
    """The measures by the names in SCALES."""
    means = {**found.measures, "residual_noise": found.residual_noise, **(found.target_distance or {})}
    values = {name: of.mean for name, of in means.items() if of is not None}
    values |= {"target_distance": values.pop(MEAN)} if MEAN in values else {}
    values |= {"variety": found.variety.value} if found.variety else {}
    return values if math.isnan(frechet) else {**values, "category_frechet": frechet}


def measured(
    cases: Sequence[Case], targets: Answers, judge: LocalJudge, measuring: Measuring, damage: Damage, severity: float
) -> dict[str, float]:
    """The measures of damaged targets."""
    answers = Answers()
    for part in chunks(cases, CHUNK):
        by_category: dict[str, list[int]] = {}
        for at, case in enumerate(part):
            by_category.setdefault(case.category, []).append(at)
        images: Images = [np.zeros(0)] * len(part)
        for places in by_category.values():
            given = [part[at].target for at in places]
            damaged = damage([image for image in given if image is not None], severity)
            for at, image in zip(places, damaged, strict=True):
                images[at] = image
        judge_into(answers, part, images, 0, [judge], measuring=measuring)
    return numbers(secondary_metrics(answers, targets, 2), _frechet(answers, targets))


def _frechet(answers: Answers, targets: Answers) -> float:
    """Mean over the T2I categories, NaN without any: for ranks at one n, fewer pictures do than for a value."""
    found = []
    for name in answers.by_category(BENCHES["t2i"]):
        rows = [at for at, r in enumerate(answers.rows) if (r.bench, r.category) == (BENCHES["t2i"], name)]
        ours, real = (np.stack([of.features[at] for at in rows]) for of in (answers, targets))
        distance = distances.frechet(ours, real)
        assert distance is not None
        found.append(distance)
    return float(np.mean(found)) if found else math.nan


def table(cases: Sequence[Case], damages: Sequence[str] = tuple(DAMAGES)) -> dict[str, dict[str, Graded]]:
    """Measure -> damage -> how it follows."""
    with Measuring(shared_reader()) as measuring:
        return _table(cases, damages, LocalJudge(), measuring)


def _table(
    cases: Sequence[Case], damages: Sequence[str], judge: LocalJudge, measuring: Measuring
) -> dict[str, dict[str, Graded]]:
    targets = Answers()
    for part in chunks(cases, CHUNK):
        given = [case.target for case in part if case.target is not None]
        judge_into(targets, part, given, 0, [judge], measuring=measuring)
    clean = measured(cases, targets, judge, measuring, lambda images, _: images, 0.0)
    rows: dict[str, dict[str, Graded]] = {}
    for damage in damages:
        of_grades = [clean, *(measured(cases, targets, judge, measuring, DAMAGES[damage], s) for s in SEVERITIES[1:])]
        for name, scale in SCALES.items():
            values = [found[name] for found in of_grades if name in found]
            if len(values) == len(SEVERITIES):
                rows.setdefault(name, {})[damage] = follows(values, scale)
        print(f"{damage} measured", file=sys.stderr)
    return rows


def markdown(rows: Mapping[str, Mapping[str, Graded]]) -> str:
    """A row a measure, a column a damage."""
    damages = list(next(iter(rows.values())))
    lines = [f"| measure | {' | '.join(damages)} |", "|---" * (len(damages) + 1) + "|"]
    for name, found in rows.items():
        lines.append(f"| {name} | {' | '.join(str(found[of]) if of in found else '-' for of in damages)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    counts = {"t2i_cases": 40, "editing_cases": 16}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in counts or not value.isdecimal() or int(value) == 1:
            raise UserError(f"{argument!r} is none of t2i_cases=N and editing_cases=N, N a whole number, not 1")
        counts[name] = int(value)
    cases = [
        *world_cases("t2i", "search", counts["t2i_cases"]),
        *world_cases("edit", "search", counts["editing_cases"]),
    ]
    print(markdown(table(cases)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
