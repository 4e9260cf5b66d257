"""Prompts as token ids, in the templates of `QwenImage21Pipeline`."""

from __future__ import annotations

from diffusers import QwenImage21Pipeline

IMAGE_TOKEN = "<|image_pad|>"


class PromptTokenizer:
    """Token ids of whole prompts, system message included; at most one image a prompt."""

    def __init__(self, pipeline: QwenImage21Pipeline) -> None:
        self._tokenizer = pipeline.processor.tokenizer
        self._templates = (
            pipeline.prompt_template_t2i,
            pipeline.prompt_template_ti2i,
        )
        self._image_token_id = int(self._tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self.num_system_tokens = int(pipeline._drop_idx)

    def __call__(self, text: str, num_slots: int) -> list[int]:
        """Ids of `text` with an image of `num_slots` slots (0: text-to-image); an empty text is a single space."""
        template = self._templates[num_slots > 0].replace(IMAGE_TOKEN, IMAGE_TOKEN * num_slots)
        ids: list[int] = self._tokenizer(template.format(text or " "))["input_ids"]
        return ids

    def first_slot(self, ids: list[int]) -> int:
        """Position of the first image slot, system message included."""
        return ids.index(self._image_token_id)
