"""The processor of Qwen-Image-2.1: Qwen3-VL's."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from workbench.backbones import processor


def load_processor(folder: Path) -> Qwen3VLProcessor:
    """See `processor.load_processor`."""
    return processor.load_processor(folder, Qwen3VLProcessor, Qwen2VLImageProcessorPil)
