"""Measures of one answer, one number where its case defines one; none of them is part of a score.

- word: 1 if the local judge reads the text that was asked for, letter by letter, else 0.
- exact: the same, by whether it was one word or several.
- whole: 1 if the local judge sees every attribute that the prompt names, and every one that an edit must keep, else 0:
  a prompt counts when all of it is right, as in GenEval (Ghosh et al. 2023).
- residual noise: standard deviation of what is left on flat areas when the picture's own 5 x 5 mean is taken off, in
  grey levels of 255; from the median, so that the few edges in a flat area do not count.
- target distance (edits with one right answer): mean absolute difference to the exact target, in [0, 1].
- text: what a reader trained by others (OCR) makes of the text that was asked for (`text`).
- displacement, colour: what an edit did to all that had to stay (`drift`).
- count, order: objects as many as the prompt names, and from left to right as it names them (`layout`).
- choices: what the prompt left open, as the judge sees it (`choices`); placement: of the subject of a portrait.
- defect (edits that repair): what the source suffers from, so that each defect has a mean of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from workbench.evaluation.measures.choices import free_choices, placement
from workbench.evaluation.measures.drift import Drift
from workbench.evaluation.measures.layout import count_score, order_score, places_of

if TYPE_CHECKING:
    from workbench.evaluation.cases.case import Case
    from workbench.evaluation.judges.local import Judgement
    from workbench.evaluation.measures.ocr import TextReader

FLAT_SHARE = 0.25
"""The flattest quarter of a picture counts as flat."""
SMOOTHING, WINDOW = 2.0, 5
"""In pixels: blur before flatness is measured, so that noise hides no flat area; side of the local mean."""

MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""


@dataclass(frozen=True)
class Measures:
    """See above; None where a case defines none, nobody recognised what is in the answer, or nothing was measured."""

    noise: float | None = None
    whole: float | None = None
    word: float | None = None
    exact: Mapping[str, float] | None = None
    target_distance: float | None = None
    defect: str | None = None
    text: Mapping[str, float] | None = None
    displacement: float | None = None
    colour: float | None = None
    count: float | None = None
    order: float | None = None
    choices: Mapping[str, str] | None = None
    placement: Sequence[float] | None = None


def residual_noise(image: np.ndarray) -> float:
    """Spread of image (H, W, 3) uint8 about its local mean over its flattest quarter, in grey levels."""
    pixels = image.astype(np.float32)
    smooth = ndimage.gaussian_filter(pixels.mean(axis=2), SMOOTHING)
    slope = np.hypot(ndimage.sobel(smooth, axis=0), ndimage.sobel(smooth, axis=1))
    steepest = ndimage.maximum_filter(slope, WINDOW)
    flat = steepest <= np.quantile(steepest, FLAT_SHARE)
    rest = pixels - ndimage.uniform_filter(pixels, (WINDOW, WINDOW, 1))
    return float(MAD_TO_DEVIATION * np.median(np.abs(rest[flat])))


def target_distance(image: np.ndarray, target: np.ndarray) -> float | None:
    """Mean absolute difference of (H, W, 3) uint8 images, 1 being black against white; None for other sizes."""
    if image.shape != target.shape:
        return None
    return float(np.abs(image.astype(np.float32) - target.astype(np.float32)).mean()) / 255


def wholly_right(attributes: Mapping[str, float]) -> float | None:
    """attributes: how right each is, as a `Judgement` has them, `named/` by the prompt or to be `kept/`; pixels are not
    counted. None where the prompt names nothing else."""
    told = {name: right for name, right in attributes.items() if not name.endswith("/pixels")}
    if not any(name.startswith("named/") for name in told):
        return None
    return float(all(right == 1 for right in told.values()))


def measure(
    case: Case,
    image: np.ndarray,
    moved: Drift | None,
    seen: Mapping[str, Any] | None,
    judgement: Judgement | None = None,
    reader: TextReader | None = None,
) -> Measures:
    """The measures of an answer (H, W, 3) uint8. moved: what it did to all that had to stay. seen: attributes that the
    local judge recognised in it, if it did, and its judgement of them. reader: of the text that cases ask for; it is
    not read without one."""
    asks_word = "word" in case.named and "word" in case.scene
    word = float(seen.get("word") == case.scene["word"]) if seen is not None and asks_word else None
    of_t2i, right = case.task == "t2i", case.only_target
    places = None if seen is None else seen.get(places_of("objects"))
    lists = of_t2i and "objects" in case.named and "objects" in case.scene
    return Measures(
        noise=residual_noise(image),
        whole=None if judgement is None else wholly_right(judgement.attributes),
        word=word,
        exact=None if word is None else {"several" if " " in case.scene["word"] else "one": word},
        target_distance=target_distance(image, right) if not of_t2i and right is not None else None,
        defect=case.source_scene.get("quality") if "quality" in case.named else None,
        text=asdict(reader.measures(image, case.text)) if reader is not None and case.text else None,
        displacement=None if moved is None else moved.displacement,
        colour=None if moved is None else moved.colour,
        count=count_score(places, len(case.scene["objects"])) if places is not None and lists else None,
        order=order_score(places, case.order) if places is not None and len(case.order) > 1 else None,
        choices=free_choices(case.named, case.scene, seen) if seen is not None and of_t2i else None,
        placement=placement(image) if of_t2i and {"subject", "background"} <= case.scene.keys() else None,
    )
