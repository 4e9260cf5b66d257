"""The tiny tokenizer: byte-level BPE with Qwen's pre-tokenisation and special tokens, trained on captions.

Words in capitals are replaced in the corpus first, so that no merge of two capitals is ever learned and a word to be
drawn on a sign reaches the text encoder letter by letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

TEMPLATE_TEXT = ("system\nComprehend and analyze the provided prompt.", "user\n<image1>", "assistant\n")
"""Plain text of the pipeline's prompt templates, repeated so often that each of its words becomes a single token."""

_TEMPLATE_REPEATS = 1000
_CAPITALS = re.compile(r"[A-Z]{2,}")


def train(corpus: Iterable[str], vocab_size: int = 600) -> Qwen2Tokenizer:
    """Tokenizer of at most `vocab_size` entries, special tokens and the 256 bytes included.

    The same corpus gives the same tokenizer.
    """
    untrained = Qwen2Tokenizer()._tokenizer
    trained = Tokenizer(BPE())
    trained.normalizer, trained.pre_tokenizer = untrained.normalizer, untrained.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(_lines(corpus), trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _lines(corpus: Iterable[str]) -> Iterator[str]:
    for line in corpus:
        yield _CAPITALS.sub("0", line)  # a digit is a separate token, so its neighbours still merge as they should
    for _ in range(_TEMPLATE_REPEATS):
        yield from TEMPLATE_TEXT
