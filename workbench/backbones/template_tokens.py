"""Tokens of prompt templates, which a prompt must not hold."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from workbench.common.errors import UserError, shortened


def of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What the tokenizer reads as one token wherever it stands: the marks of turns, images and the like."""
    return tuple(tokenizer.get_added_vocab())


def refuse(prompts: Sequence[str], tokens: Sequence[str]) -> None:
    """Raise UserError for a prompt that holds a token of the template: it would be read as the end of the prompt, an
    image or the like."""
    for prompt in prompts:
        found = [token for token in tokens if token in prompt] if "<" in prompt else []
        if found:
            raise UserError(
                f"the prompt {shortened(prompt, 80)!r} holds {', '.join(found)}, which the text encoder reads as a "
                "token of its template: take it out, or write it with a blank after the <"
            )
