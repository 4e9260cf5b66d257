"""How much of a wanted text is in a picture, from what a reader (OCR) gives for each line of text that it finds.

A line is read as probabilities (T, V) over its V characters in T steps from left to right, column 0 being CTC's blank.
Case, accents, spaces and punctuation do not count, and neither does the difference between O and 0 or I and 1, which
many typefaces do not show. Of a picture with several lines those neighbouring ones count that fit the text best, so a
word beside others on a poster is found.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

FLOOR = -10.0
"""Least log-probability of a letter: of one that is not there at all."""
MOST_LINES = 30
"""More lines than these are not looked at: no picture of a few words has them."""
_ALIKE = str.maketrans({"0": "O", "1": "I", "|": "I"})


@dataclass(frozen=True)
class TextMeasures:
    """Of one picture. word: 1 if the text is read right, else 0. letters: 1 - edit distance / longer text's length.
    log_probability: mean over the true letters, between FLOOR and 0. legibility: the reader's certainty of whatever
    letters it reads, right or wrong, in [0, 1]; 0 where it reads none."""

    word: float
    letters: float
    log_probability: float
    legibility: float


UNREAD = TextMeasures(0.0, 0.0, FLOOR, 0.0)
"""Of a picture in which no text is found."""


def folded(text: str) -> str:
    """Upper case without accents, spaces or punctuation, and with one letter for those that look alike."""
    plain = unicodedata.normalize("NFKD", text).upper().translate(_ALIKE)
    return "".join(letter for letter in plain if letter.isalnum())


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: fewest letters inserted, deleted or replaced that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != other))
    return row[-1]


def word_score(seen: str, wanted: str) -> float:
    """1 - edit distance / length of the longer word."""
    longest = max(len(seen), len(wanted))
    return 1 - edit_distance(seen, wanted) / longest if longest else 1.0


def text_measures(lines: Sequence[np.ndarray], characters: Sequence[str], wanted: str) -> TextMeasures:
    """Measures of the best run of neighbouring lines, each (T, V) probabilities over `characters`, against a text."""
    letters = folded(wanted)
    if not letters:
        raise ValueError(f"{wanted!r} holds no letter to read")
    lines = lines[:MOST_LINES]
    read = [greedy(line, tuple(characters)) for line in lines]
    runs = list(combinations(range(len(lines) + 1), 2))
    if not runs:
        return UNREAD
    texts = {run: "".join(text for text, _ in read[slice(*run)]) for run in runs}
    best = max(runs, key=lambda run: (word_score(texts[run], letters), -run[0]))
    sure = [value for _, values in read[slice(*best)] for value in values]
    steps = np.concatenate(lines[slice(*best)])
    return TextMeasures(
        word=float(texts[best] == letters),
        letters=word_score(texts[best], letters),
        log_probability=log_probability(steps, tuple(characters), letters),
        legibility=float(np.exp(np.mean(np.log(sure)))) if sure else 0.0,
    )


def greedy(line: np.ndarray, characters: tuple[str, ...]) -> tuple[str, list[float]]:
    """The likeliest reading of a line, folded, and how sure each of its letters is, whichever of those that look alike:
    repeated characters count once and blanks not at all (Graves et al. 2006, section 3.2)."""
    found = line.argmax(1)
    first = np.flatnonzero(np.diff(found, prepend=-1))
    text, sure = "", []
    for start, end in zip(first, [*first[1:], len(found)], strict=True):
        letter = _folded_characters(characters)[found[start]]
        if letter:
            text += letter
            alike = line[start:end, list(_columns(characters, letter))].sum(1)
            sure.append(float(np.clip(alike.max(), 1e-6, 1)))
    return text, sure


def log_probability(steps: np.ndarray, characters: tuple[str, ...], letters: str) -> float:
    """Log-probability of `letters` (folded) under (T, V) character probabilities, over all ways to align them (CTC,
    Graves et al. 2006, equation 3), per letter and at least FLOOR. Characters that fold alike share theirs; what is no
    letter counts as blank."""
    # Cases are read, and their texts folded, by commands that start no framework.
    import torch
    import torch.nn.functional as F

    kept = sorted(set(letters))
    columns = [_columns(characters, letter) for letter in ("", *kept)]
    grouped = torch.tensor(np.stack([steps[:, list(column)].sum(1) for column in columns], axis=1), dtype=torch.float64)
    target = torch.tensor([[1 + kept.index(letter) for letter in letters]])
    lengths = torch.tensor([len(steps)]), torch.tensor([len(letters)])
    loss = F.ctc_loss(grouped.clamp_min(1e-12).log()[:, None], target, *lengths, reduction="none")
    return max(FLOOR, min(0.0, -float(loss) / len(letters)))


@lru_cache(maxsize=4)
def _folded_characters(characters: tuple[str, ...]) -> tuple[str, ...]:
    return ("", *(folded(character) for character in characters[1:]))


@lru_cache(maxsize=1024)
def _columns(characters: tuple[str, ...], letter: str) -> tuple[int, ...]:
    """Characters that fold to `letter`; those that fold to nothing are blanks."""
    return tuple(at for at, folds_to in enumerate(_folded_characters(characters)) if folds_to == letter)
