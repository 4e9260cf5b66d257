"""Qwen3-VL as pretraining trains it along with the transformer."""

from __future__ import annotations

from diffusers import QwenImage21Pipeline
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

from workbench.backbones.family import TrainableText
from workbench.backbones.qwen_image_21 import text_encoder
from workbench.backbones.qwen_image_21.prompts import PromptTokenizer
from workbench.batch import Layout


class TrainableQwen(TrainableText):
    """Tokenizer and text encoder of a pipeline."""

    encoder: Qwen3VLForConditionalGeneration

    def __init__(self, pipeline: QwenImage21Pipeline) -> None:
        tokenizer = PromptTokenizer(pipeline)
        self.tokenize, self.num_system_tokens = tokenizer, tokenizer.num_system_tokens
        self.encoder = pipeline.text_encoder

    def set_trainable(self, trains: bool) -> None:
        model = self.encoder.requires_grad_(trains).model.language_model
        # The embeddings are read before the final norm; the head may be tied to the input embeddings, which do train.
        self.encoder.lm_head.requires_grad_(False)
        model.embed_tokens.requires_grad_(trains)
        model.norm.requires_grad_(False)

    def compile_layers(self) -> None:
        """Layers share what is compiled."""
        for child in self.encoder.modules():
            if isinstance(child, Qwen3VLTextDecoderLayer):
                child.compile(dynamic=False)

    def embed(self, token_ids: Tensor, images: Tensor | None, layout: Layout) -> Tensor:
        slots = None
        if layout.references:
            (reference,) = layout.references
            start = reference.slot + self.num_system_tokens
            slots = text_encoder.ImageSlots(start, reference.height // 2, reference.width // 2)
        hidden = text_encoder.embed(self.encoder, token_ids, images, slots)
        return hidden[:, self.num_system_tokens :]
