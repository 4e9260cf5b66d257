"""What a score is, and the local judge that gives it.

A score lies between 1 and 5. Three axes in [0, 1] make it:

- compliance: mean over the attributes that the text names of how right each is (`attribute_score`): 1 or 0 for a
  class, the Jaccard index of the object sets, 1 - edit distance / length for a word. Where a prompt accepts several
  values ("an animal", "another sky"), the one nearest to what is seen counts. For edits it is the progress beyond
  leaving the source as it is, (right - right of source) / (1 - right of source), so that doing nothing complies with
  nothing; an edit that names no attribute (larger, turned around) is measured by its pixels (`pixel_progress`).
- technical quality: the judge's rating, 1 for a clean image, falling with blur, noise, ghosting, smear, blocks,
  residual noise and broken geometry.
- kept (edits): mean of the mean score over the attributes that must stay, and of the pixel agreement with the source
  where source and exact target agree (`pixel_agreement`). An open edit, of which the target is one right answer of
  many (`Case.exact` is false), has no pixels to be compared: its kept attributes alone count.

    score = 1 + 4 (compliance * quality)^(1/2)            text to image
    score = 1 + 4 (compliance * quality * kept)^(1/3)     edits
    score <= 2 if any axis is below 0.25                  severe failure

The geometric mean makes the axes equally critical: beauty earns nothing if the prompt is missed. An axis that a case
does not define (one of a user's own without a scene, say) is left out of the mean, and `Judgement` holds None there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track

from workbench.common.fingerprint import fingerprint
from workbench.common.progress import has_own_bar
from workbench.evaluation.judges import local_network, networks
from workbench.evaluation.judges.check import check_attributes
from workbench.evaluation.judges.judge import LOCAL, Choice, Judged, Shown, Unanswered
from workbench.evaluation.measures.layout import instances, places_of
from workbench.evaluation.measures.text import word_score
from workbench.evaluation.metrics_file import JudgeRecord

if TYPE_CHECKING:
    from workbench.evaluation.cases.case import Case

SEVERE = 0.25
SEVERE_CAP = 2.0
MIN_UNCHANGED = 0.05
"""Least share of pixels that an edit leaves alone for the pixel agreement to mean anything."""
SAME_LEVELS = 4
"""Grey levels by which source and target may differ where nothing was to change."""
MANY_BATCHES = 4
"""From so many batches on, judging shows a progress bar."""
ASSET = Path(__file__).parents[2] / "assets" / "judge"


@dataclass(frozen=True)
class Judgement:
    """The local judge's of one answer. Axes in [0, 1], None where the case defines none; attributes: score of each."""

    score: float
    compliance: float | None
    quality: float | None
    kept: float | None
    attributes: dict[str, float] = field(default_factory=dict)

    def details(self) -> dict[str, Any]:
        """Axes and attributes, as `evaluation/cases.jsonl` has them."""
        axes = {"compliance": self.compliance, "quality": self.quality, "kept": self.kept}
        return {**axes, "attributes": self.attributes}


def attribute_score(seen: Any, wanted: Any) -> float:
    """How right one attribute is, in [0, 1]: sets by the Jaccard index, words by edit distance, classes 0 or 1."""
    if isinstance(wanted, list | tuple | set | frozenset):
        a, b = set(seen), set(wanted)
        return len(a & b) / len(a | b) if a | b else 1.0
    return float(seen == wanted)


def best_score(name: str, seen: Any, accepted: Sequence[Any]) -> float:
    """How right attribute `name` is by the accepted value that is nearest to it."""
    right = word_score if name == "word" else attribute_score
    return max(right(seen, value) for value in accepted)


def mean_attribute_score(
    names: Sequence[str],
    seen: Mapping[str, Any],
    wanted: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
    accepted: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[float | None, dict[str, float]]:
    """Mean over the attributes `names` that `wanted` and `seen` hold, and each of them; None if there is none.

    In a picture of a wrong category, if that is among the names, no other attribute can be right.
    before: attributes of an edit's source; each then scores its progress beyond the source. accepted: every right value
    of the attributes that have more than the one in `wanted`.
    """
    scores = {}
    for name in names:
        if name in wanted and name in seen:
            values = (accepted or {}).get(name, (wanted[name],))
            scores[name] = best_score(name, seen[name], values)
            start = best_score(name, before[name], values) if before and name in before else 0.0
            if 0 < start < 1:
                scores[name] = max(0.0, (scores[name] - start) / (1 - start))
    if scores.get("category") == 0:
        scores = dict.fromkeys(scores, 0.0)
    return (float(np.mean(list(scores.values()))) if scores else None), scores


def pixel_progress(image: np.ndarray, source: np.ndarray, target: np.ndarray) -> float | None:
    """How far `image` went from `source` to `target`, all (H, W, 3) uint8, in [0, 1]; None if those two are equal.

    1 - |image - target| / |source - target|, mean absolute differences over the pixels that should change.
    """
    changed = np.abs(target.astype(np.int16) - source.astype(np.int16)).max(axis=2) > SAME_LEVELS
    if not changed.any():
        return None
    wanted = target.astype(np.float32)[changed]
    left = np.abs(image.astype(np.float32)[changed] - wanted).mean()
    return float(np.clip(1 - left / np.abs(source.astype(np.float32)[changed] - wanted).mean(), 0, 1))


def pixel_agreement(image: np.ndarray, source: np.ndarray, target: np.ndarray) -> float | None:
    """Agreement of `image` with `target` where `target` equals `source`, all (H, W, 3) uint8.

    None if they are equal on less than MIN_UNCHANGED of the pixels. 1 up to a mean absolute error of 0.02 (what a good
    autoencoder leaves), falling linearly to 0 at 0.15.
    """
    same = np.abs(target.astype(np.int16) - source.astype(np.int16)).max(axis=2) <= SAME_LEVELS
    if same.mean() < MIN_UNCHANGED:
        return None
    error = float(np.abs(image.astype(np.float32) - target.astype(np.float32))[same].mean()) / 255
    return float(np.clip((0.15 - error) / (0.15 - 0.02), 0, 1))


def score_of(compliance: float | None, quality: float | None, kept: float | None) -> float:
    """1 + 4 x geometric mean of the axes that are defined, at most SEVERE_CAP if one of them is below SEVERE."""
    axes = [axis for axis in (compliance, quality, kept) if axis is not None]
    if not axes:
        return 1.0
    score = 1 + 4 * float(np.prod(axes)) ** (1 / len(axes))
    return min(score, SEVERE_CAP) if min(axes) < SEVERE else score


def judge_case(case: Case, image: np.ndarray, seen: Mapping[str, Any], quality: float) -> Judgement:
    """The judgement of an image (H, W, 3) uint8 in which a judge saw the attributes `seen` and this quality."""
    compliance, named = mean_attribute_score(case.named, seen, case.scene, case.source_scene, case.accepted)
    kept_mean, kept = mean_attribute_score(case.kept, seen, case.scene)
    pixels = None
    source, target = case.only_source, case.target
    # Images of other sizes than the case's have no pixel-wise counterpart.
    if case.exact and source is not None and target is not None and image.shape == source.shape == target.shape:
        pixels = pixel_agreement(image, source, target)
        if not case.named:
            compliance = pixel_progress(image, source, target)
            named = {} if compliance is None else {"pixels": compliance}
    parts = [part for part in (kept_mean, pixels) if part is not None]
    kept_axis = float(np.mean(parts)) if parts else None
    details = {**{f"named/{k}": v for k, v in named.items()}, **{f"kept/{k}": v for k, v in kept.items()}}
    if pixels is not None:
        details["kept/pixels"] = pixels
    return Judgement(score_of(compliance, quality, kept_axis), compliance, quality, kept_axis, details)


class LocalJudge:
    """A network that ships: recognises every attribute of the OpenMoji world, reads words, rates quality, gives
    features. A `Judge`."""

    def __init__(self, folder: Path = ASSET, device: str | torch.device | None = None, batch_size: int = 64) -> None:
        """device: a GPU if there is one, when absent."""
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size
        self.network = networks.load(folder).to(self.device)
        self.title = f"local {self.network.config.title} ({folder.name})"
        self.fingerprint = fingerprint(folder)

    @torch.inference_mode()
    def see(self, images: Sequence[np.ndarray]) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
        """What is in images (H, W, 3) uint8 of any sizes: attributes, technical quality (B,), features (B, 64)."""
        config = self.network.config
        seen: list[dict[str, Any]] = []
        quality, features = [], []
        starts = range(0, len(images), self.batch_size)
        for start in track(starts, "judging", transient=True, disable=len(starts) < MANY_BATCHES or not has_own_bar()):
            part = [
                torch.from_numpy(np.array(image)).to(self.device) for image in images[start : start + self.batch_size]
            ]
            pixels = torch.cat([local_network.preprocess(image[None], config.resolution) for image in part])
            part_features, logits = self.network(pixels)
            features.append(part_features.float().cpu().numpy())
            quality.append(logits["technical"].sigmoid().float().cpu().numpy())
            seen += _attributes(config, {name: value.float().cpu() for name, value in logits.items()}, len(part))
        if not len(images):
            return [], np.zeros(0, np.float32), np.zeros((0, config.num_features), np.float32)
        return seen, np.concatenate(quality), np.concatenate(features)

    def check(self, cases: Sequence[Case]) -> None:
        """See `check_attributes`."""
        check_attributes(cases, self.network.config, self.title)

    def judge(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> Judged:
        """A judgement of every answer, with the network's features and what it recognised."""
        seen, quality, features = self.see(images)
        scores = list(map(judge_case, cases, images, seen, quality.tolist()))
        return Judged({LOCAL: scores}, features, seen)

    def prefer(self, shown: Shown) -> dict[str, list[Choice | Unanswered]]:
        """It does not compare."""
        return {}

    def records(self) -> dict[str, JudgeRecord]:
        """Its name stands as the judge of the benchmarks."""
        return {}


def _attributes(
    config: local_network.JudgeConfig, logits: Mapping[str, torch.Tensor], count: int
) -> list[dict[str, Any]]:
    """Names behind the logits of `count` images."""
    words = logits["word"].argmax(dim=2).tolist()
    rows: list[dict[str, Any]] = []
    for row in range(count):
        attributes: dict[str, Any] = {"word": local_network.spelled(words[row])}
        for name in config.single_label:
            attributes[name] = config.heads[name][int(logits[name][row].argmax())]
        for name in config.multi_label:
            present = (logits[name][row] > 0).tolist()
            attributes[name] = [value for value, there in zip(config.heads[name], present, strict=True) if there]
            if (maps := logits.get(local_network.cells_of(name))) is not None:
                seen = zip(config.heads[name], present, maps[row].numpy(), strict=True)
                attributes[places_of(name)] = [(value, x) for value, there, of in seen if there for x in instances(of)]
        rows.append(attributes)
    return rows
