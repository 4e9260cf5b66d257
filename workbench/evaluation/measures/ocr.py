"""A reader of text that others trained: PP-OCRv6 (small) through `rapidocr`, which brings its weights (31 MB)."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from workbench.common.errors import UserError
from workbench.evaluation.measures.text import TextMeasures, text_measures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.evaluation.cases.case import Case

MISSING = (
    "reading text needs rapidocr, which is not installed: pip install 'few-step-workbench[ocr]', "
    "or leave it out with evaluation.ocr=off"
)
SHORTEST, LONGEST = 256, 960
"""Pixels: smaller pictures are enlarged until their shorter side has SHORTEST, larger ones reduced until their longer
one has LONGEST."""
LINE_HEIGHT = 48
"""Pixels at which the network reads a line."""


def installed() -> bool:
    """Whether `rapidocr` and what runs its networks are there."""
    return all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime"))


class TextReader:
    """Finds lines of text in pictures and reads them. Safe to share among threads.

    Raises:
        UserError: `rapidocr` is not installed.
    """

    def __init__(self) -> None:
        if not installed():
            raise UserError(MISSING)
        from rapidocr import RapidOCR

        engine: Any = RapidOCR(
            params={
                "Global.log_level": "critical",
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                # The picture comes in the size at which it is to be searched.
                "Det.limit_side_len": 32,
            }
        )
        blank = np.full((LINE_HEIGHT, LINE_HEIGHT, 3), 255, np.uint8)
        # The networks are loaded as they are first used.
        engine(blank, use_det=True, use_cls=False, use_rec=False)
        engine(blank, use_det=False, use_cls=False, use_rec=True)
        self._engine = engine
        self.characters: tuple[str, ...] = tuple(engine.text_rec.postprocess_op.character)

    def lines(self, image: np.ndarray) -> list[np.ndarray]:
        """Character probabilities (T, V) of every line found in an image (H, W, 3) uint8, from top to bottom."""
        pixels = np.ascontiguousarray(_scaled(image)[..., ::-1])
        boxes = self._engine.text_det(pixels).boxes
        if boxes is None:
            return []
        crops = self._engine.crop_text_regions(pixels, boxes)
        return [self._read(crop) for crop in crops if min(crop.shape[:2]) > 1]

    def measures(self, image: np.ndarray, wanted: str) -> TextMeasures:
        """How much of the text `wanted` is in an image (H, W, 3) uint8."""
        return text_measures(self.lines(image), self.characters, wanted)

    def _read(self, crop: np.ndarray) -> np.ndarray:
        ratio = max(1.0, crop.shape[1] / crop.shape[0])
        prepared = self._engine.text_rec.resize_norm_img(crop, ratio)
        return np.asarray(self._engine.text_rec.session(prepared[None].astype(np.float32))[0])


@cache
def shared_reader() -> TextReader:
    """The reader, loaded once a process."""
    return TextReader()


def chosen_reader(wanted: str, cases: Sequence[Case]) -> tuple[TextReader | None, str]:
    """The reader that `evaluation.ocr` chooses for these cases, and why there is none; empty if nothing is left out.

    Raises: UserError if it is `on` and `rapidocr` is not installed.
    """
    num_texts = sum(bool(case.text) for case in cases)
    if not num_texts:
        return None, ""
    if wanted == "off":
        return None, f"the texts of {num_texts} cases are not read (evaluation.ocr=off)"
    if wanted == "auto" and not installed():
        return None, f"the texts of {num_texts} cases are not read: pip install 'few-step-workbench[ocr]'"
    return shared_reader(), ""


def _scaled(image: np.ndarray) -> np.ndarray:
    """The image with its shorter side at least SHORTEST and its longer one at most LONGEST, the latter winning."""
    height, width = image.shape[:2]
    factor = max(1.0, SHORTEST / min(height, width))
    factor = min(factor, LONGEST / max(height, width))
    if factor == 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
