"""A font for what a prompt is written in, and the prompt as that font can draw it.

matplotlib's own DejaVu Sans has Latin, Greek and Cyrillic letters. For all others the fonts of the system are asked,
the usual ones of Chinese, Japanese and Korean first; a character that none of them has is drawn as its escape.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

PREFERRED = ("Noto Sans CJK", "Source Han Sans", "Noto Sans SC", "WenQuanYi", "Droid Sans Fallback", "PingFang",
             "Hiragino", "Microsoft YaHei", "SimHei", "MS Gothic", "Malgun Gothic", "Arial Unicode MS")  # fmt: skip
MOST_ASKED = 40
"""Fonts that are opened in search of a character; opening one takes milliseconds."""


def font_for(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The font that has most of the characters of `text`, and `text` with the others escaped."""
    own = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    if text.isascii():
        return ImageFont.truetype(str(own), size), text
    text = "".join(letter for letter in text if not _is_invisible(letter))
    wanted = frozenset(ord(letter) for letter in text if not letter.isspace())
    path, index = (own, 0) if wanted <= _characters(own, 0) else _best(wanted, own)
    known = _characters(path, index)
    drawn = "".join(letter if letter.isspace() or ord(letter) in known else _escape(letter) for letter in text)
    return ImageFont.truetype(str(path), size, index=index), drawn


def _is_invisible(letter: str) -> bool:
    """Joiners, marks of direction and selectors of variants, which a font without the shape cannot follow."""
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


@cache
def _best(wanted: frozenset[int], own: Path) -> tuple[Path, int]:
    """Of matplotlib's and the system's fonts the first that lacks fewest of the characters."""
    candidates = [(own, 0), *system_fonts()]
    return min(candidates, key=lambda candidate: len(wanted - _characters(*candidate)))


@cache
def system_fonts() -> tuple[tuple[Path, int], ...]:
    """Upright fonts of the system with the index in their file, the preferred ones first."""
    from matplotlib.font_manager import fontManager  # asks the system for its fonts when it is imported

    # A font of last resort has every character, as a box.
    names = {Path(font.fname): font.name for font in fontManager.ttflist if font.style == "normal"}
    upright = {path: name for path, name in names.items() if "lastresort" not in name.replace(" ", "").lower()}

    def rank(path: Path) -> int:
        return next((i for i, name in enumerate(PREFERRED) if upright[path].startswith(name)), len(PREFERRED))

    return tuple((path, 0) for path in sorted(upright, key=rank)[:MOST_ASKED])


@cache
def _characters(path: Path, index: int) -> frozenset[int]:
    """Code points that a font has; none if it cannot be read."""
    from fontTools.ttLib import TTCollection, TTFont, TTLibError

    try:
        if path.suffix.lower() in (".ttc", ".otc"):
            with TTCollection(path, lazy=True) as fonts:
                return frozenset(fonts[index].getBestCmap() or ())
        with TTFont(path, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (OSError, TTLibError, KeyError, IndexError):
        return frozenset()
