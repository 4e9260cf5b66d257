"""Edits of signs (`text`): another word in another hand, another sign, other colours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datamodules.openmoji import instructions
from datamodules.openmoji.compose import pick, random_word, sign_of_split
from datamodules.openmoji.edit import Edit, closed, free, others
from datamodules.openmoji.scenes import Sign, random_sign
from datamodules.openmoji.vocabulary import LEGIBLE, SIGNS, TYPEFACES

SHARES = {"word": 0.34, "new sign": 0.34, "sign": 0.1, "ink": 0.1, "any sign": 0.12}


def text_edit(split: str, rng: np.random.Generator) -> Edit | None:
    """Most change the word; what a new sign looks like is free but for what stands behind it."""
    target = sign_of_split(split, rng)
    match str(rng.choice(list(SHARES), p=list(SHARES.values()))):
        case "word":
            return _word(target, split, rng)
        case "new sign":
            return _new_sign(target, split, rng)
        case "sign":
            fitting = [name for name in others(SIGNS, target.sign) if target.ink in LEGIBLE[name]]
            text = pick(instructions.CHANGE_SIGN, rng).format(sign=target.sign)
            return closed(replace(target, sign=pick(fitting, rng)), target, text, ("sign",), ("word", "ink"))
        case "ink":
            inks = others(LEGIBLE[target.sign], target.ink)
            text = pick(instructions.CHANGE_INK, rng).format(ink=target.ink)
            return closed(replace(target, ink=pick(inks, rng)), target, text, ("ink",), ("word", "sign"))
        case _:
            return _any_sign(target, rng)


def _word(target: Sign, split: str, rng: np.random.Generator) -> Edit | None:
    """The same sign with another word, the typeface free."""
    old = random_word(split, rng)
    if old == target.word:
        return None
    source = replace(target, word=old, typeface=pick(TYPEFACES, rng))
    text = pick(instructions.CHANGE_WORD, rng).format(word=target.word, old=old)
    return free(source, target, text, ("word",), ("sign", "ink"))


def _new_sign(target: Sign, split: str, rng: np.random.Generator) -> Edit | None:
    """A sign of any make and colour with another word, before the same backdrop."""
    old = random_word(split, rng)
    if old == target.word:
        return None
    text = pick(instructions.NEW_SIGN, rng).format(word=target.word)
    return free(_redrawn(target, old, pick(tuple(SIGNS), rng), rng), target, text, ("word",), ("category",))


def _any_sign(target: Sign, rng: np.random.Generator) -> Edit:
    """The same word on a sign of any other colour; the letters take what reads on it."""
    colour = pick(others(SIGNS, target.sign), rng)
    source = replace(target, sign=colour, ink=pick(LEGIBLE[colour], rng), tint=_redrawn(target, "", colour, rng).tint)
    accepted = {"sign": others(SIGNS, colour)}
    return free(source, target, pick(instructions.ANOTHER_SIGN, rng), ("sign",), ("word",), accepted)


def _redrawn(sign: Sign, word: str, colour: str, rng: np.random.Generator) -> Sign:
    drawn = random_sign(word, colour, pick(LEGIBLE[colour], rng), None, rng)
    return replace(drawn, backdrop=sign.backdrop)
