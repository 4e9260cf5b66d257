"""Prompts in any script are drawn: by a font that has it, or as escapes, never as boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection

from workbench.sampling import fonts
from workbench.sampling.contact_sheet import LABEL_PX, _wrapped, contact_sheet

CHINESE = "穿红裙的狐狸"


def write_font(path: Path, letters: str) -> None:
    """A font whose letters are all one filled square."""
    pen = TTGlyphPen(None)
    for i, point in enumerate(((0, 0), (0, 800), (800, 800), (800, 0))):
        (pen.moveTo if i == 0 else pen.lineTo)(point)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):x}" for letter in letters})
    builder.setupGlyf({name: square for name in names})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in names})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    if path.suffix == ".ttc":
        collection = TTCollection()
        collection.fonts = [builder.font]
        collection.save(path)
    else:
        builder.save(path)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch):
    """A function that says which fonts the system has."""
    fonts._best.cache_clear()
    yield lambda *paths: monkeypatch.setattr(fonts, "system_fonts", lambda: tuple((path, 0) for path in paths))
    fonts._best.cache_clear()


def test_letters_that_the_usual_font_has_are_drawn_as_before(system) -> None:
    system()
    for text in ("a fox", "Füchse, “quoted” — лиса, αλεπού"):
        font, drawn = fonts.font_for(text, 11)
        assert drawn == text and font.path.endswith("DejaVuSans.ttf")


@pytest.mark.parametrize("suffix", [".ttf", ".ttc"])
def test_a_font_of_the_system_that_has_the_letters_is_taken(suffix: str, tmp_path: Path, system) -> None:
    write_font(tmp_path / f"few{suffix}", CHINESE[:2])
    write_font(tmp_path / f"all{suffix}", CHINESE + "a, fox")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    system(tmp_path / "broken.ttf", tmp_path / "gone.ttf", tmp_path / f"few{suffix}", tmp_path / f"all{suffix}")
    font, drawn = fonts.font_for(f"a fox, {CHINESE}", 11)
    assert (drawn, Path(font.path).name) == (f"a fox, {CHINESE}", f"all{suffix}")


def test_fonts_that_draw_boxes_for_everything_are_left_out() -> None:
    """matplotlib brings one."""
    found = {path.name for path, _ in fonts.system_fonts()}
    assert any(name.startswith("DejaVuSans") for name in found)
    assert not [name for name in found if "lastresort" in name.lower()]
    private = "\U0010fffd"  # no font has it but one of last resort
    assert fonts.font_for(private + "é", 11)[1] == "\\U0010fffdé"


def test_what_no_font_has_is_escaped(tmp_path: Path, system) -> None:
    write_font(tmp_path / "few.ttf", CHINESE[0] + "a fox")
    system(tmp_path / "few.ttf")
    assert fonts.font_for("a fox " + CHINESE[:2] + "\u200d\ufe0f", 11)[1] == "a fox 穿\\u7ea2"
    system()
    fonts._best.cache_clear()
    assert fonts.font_for("🦊", 11)[1] == "\\U0001f98a"


@pytest.mark.parametrize("label", [CHINESE * 20, "t2i/custom:\n" + CHINESE * 5, "one two three " * 9, "x" * 100])
def test_labels_stay_in_their_column(label: str, tmp_path: Path, system) -> None:
    write_font(tmp_path / "all.ttf", CHINESE + "".join(map(chr, range(33, 127))))
    system(tmp_path / "all.ttf")
    font, drawn = fonts.font_for(label, 11)
    lines = _wrapped(drawn)
    assert "".join(lines).replace(" ", "") == drawn.replace(" ", "").replace("\n", "")
    if not label.isascii():
        assert max(font.getlength(line) for line in lines if not line.isascii()) <= LABEL_PX
    sheet = contact_sheet({"student": [np.full((128, 128, 3), 200, np.uint8)]}, [label])
    assert (np.asarray(sheet)[:, :LABEL_PX] < 100).any()
