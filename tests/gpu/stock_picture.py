"""Draw a picture with stock diffusers alone: `python stock_picture.py FOLDER OUT.png RESOLUTION`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import QwenImage21Pipeline
from transformers import AutoTokenizer, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

PROMPT = "a red fox under a clear sky"


class WithoutVideos(Qwen3VLProcessor):
    """The stock processor where torchvision, which its videos need, is not installed."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        for token in ("image_pad", "video_pad", "vision_start", "vision_end"):
            name = token.replace("_pad", "")
            setattr(self, f"{name}_token", f"<|{token}|>")
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{token}|>"))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def of(cls, folder: Path) -> WithoutVideos:
        """The processor saved in `folder`."""
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        images = {key: value for key, value in settings.items() if not key.endswith(("_type", "_class"))}
        template = (folder / "chat_template.jinja").read_text()
        return cls(Qwen2VLImageProcessorPil(**images), AutoTokenizer.from_pretrained(folder), template)


def main(folder: Path, out: Path, resolution: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    processor = {} if is_torchvision_available() else {"processor": WithoutVideos.of(folder / "processor")}
    pipeline = QwenImage21Pipeline.from_pretrained(folder, dtype=dtype, **processor).to(device)
    picture = pipeline(PROMPT, output_resolution=resolution, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.asarray(picture.convert("RGB")).std() > 0, "a picture of one colour"
    picture.save(out)
    assert not [name for name in sys.modules if name.split(".")[0] in ("workbench", "datamodules", "studies")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
