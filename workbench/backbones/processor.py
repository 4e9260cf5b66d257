"""A pipeline's processor, on machines without torchvision and from folders without a video processor too.

transformers builds vision-language processors with a video processor, which needs torchvision. Pipelines never see a
video, so here the same class is built from the tokenizer and a Pillow image processor alone: a distillation needs no
torchvision, which is a compiled package tied to one version of torch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import AutoTokenizer, PilBackend, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from workbench.common.errors import UserError
from workbench.common.outside import read_bytes, read_json

CHAT_TEMPLATE_FILE = "chat_template.jinja"
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
VIDEO_PROCESSOR_FILE = "video_preprocessor_config.json"
COPY_AGAIN = "copy the processor folder of the pipeline again"
TOKENS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
_LARGEST_TEMPLATE = 1 << 20
_MOST_TEMPLATE_STEPS = 100_000
_LONGEST_RENDERING_S = 5.0


def load_processor(folder: Path, kind: type[ProcessorMixin], images: type[PilBackend]) -> ProcessorMixin:
    """Processor saved in `folder`, of class `kind`: as it is where torchvision is installed and the folder has a video
    processor; without videos elsewhere, then with an image processor of class `images`.

    Raises:
        UserError: a file that it needs is missing, or the chat template does not come to an end.
    """
    for name in (IMAGE_PROCESSOR_FILE, CHAT_TEMPLATE_FILE, "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}: {COPY_AGAIN}")
    processor = _loaded(folder, kind, images)
    _require_end(processor, folder / CHAT_TEMPLATE_FILE)
    return processor


def without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """`kind` without videos: calls, chat template and image slots are inherited."""

    def initialise(
        self: Any, image_processor: PilBackend, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
    ) -> None:
        for name in ("image", "video", "vision_start", "vision_end"):
            token = TOKENS[name]
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
        # The parent's __init__ would require a video processor.
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return type("ImageTextProcessor", (kind,), {"__init__": initialise})


def _require_end(processor: ProcessorMixin, file: Path) -> None:
    """Render the chat template once, as the pipeline does when it is built, and give up where it has no end in sight.

    Raises:
        UserError: too many steps, or too much time.
    """
    steps, gives_up = 0, time.monotonic() + _LONGEST_RENDERING_S

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != "<template>":
            return None
        steps += 1
        if steps > _MOST_TEMPLATE_STEPS or time.monotonic() > gives_up:
            raise UserError(f"{file} has no end in sight after {steps:,} steps: {COPY_AGAIN}")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        processor.apply_chat_template([{"role": "system", "content": [{"type": "text", "text": "x"}]}], tokenize=False)
    finally:
        sys.settrace(before)


def _loaded(folder: Path, kind: type[ProcessorMixin], images: type[PilBackend]) -> ProcessorMixin:
    if is_torchvision_available() and (folder / VIDEO_PROCESSOR_FILE).is_file():
        return kind.from_pretrained(folder, trust_remote_code=False)
    settings: dict[str, Any] = read_json(folder / IMAGE_PROCESSOR_FILE, dict, COPY_AGAIN)
    settings = {
        key: value for key, value in settings.items() if not key.endswith(("processor_type", "processor_class"))
    }
    return without_videos(kind)(
        images(**settings),
        # Python files in the folder are never run, and nobody is asked whether they may be.
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        chat_template=read_bytes(folder / CHAT_TEMPLATE_FILE, COPY_AGAIN, largest=_LARGEST_TEMPLATE).decode(),
    )
