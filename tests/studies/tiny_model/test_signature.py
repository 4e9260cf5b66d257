"""Readers of a signature on renders whose share is known, and the shares that a report shows."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from datamodules.openmoji.compose import LETTERINGS, lettering_of
from datamodules.openmoji.paint import render
from datamodules.openmoji.scenes import Picture, Portrait, Scene, Sign
from datamodules.openmoji.vocabulary import PATTERNS, SHAPES, TYPEFACES
from studies.tiny_model import signature
from studies.tiny_model.curation import SIGNED, TYPEFACE
from studies.tiny_model.signature_share import Shown, agreement, renders, shares, shown, truth

COUNT = 40
GREY = (120, 120, 120)


def read(category: str, pictures: list[np.ndarray], scenes: list[Scene], named: list[tuple[str, ...]]) -> list[Shown]:
    """What is shown, where a judge sees all attributes rightly."""
    return [shown(category, *of) for of in zip(pictures, map(vars, scenes), named, strict=True)]


@pytest.mark.parametrize("category", SIGNED)
def test_a_known_share_is_read_off_held_out_renders_even_if_blurred(category: str) -> None:
    pictures, scenes, named = renders(category, COUNT, 128)
    truths = [truth(scene) for scene in scenes]
    blurred = [np.asarray(Image.fromarray(of).filter(ImageFilter.GaussianBlur(0.8))) for of in pictures]
    for images, least, bias in ((pictures, 0.95, 0.05), (blurred, 0.9, 0.1)):
        figures = {one.what: one for one in agreement("", None, truths, read(category, images, scenes, named))}
        for name in truths[0]:
            assert 0.5 < np.mean([of[name] for of in truths]) < 0.8, "half have the signature, and more the world's"
            assert figures[f"reader of {name}, right"].value >= least
            assert abs(figures[f"reader of {name}, share read less the true one"].value) <= bias


def test_every_pattern_frame_and_typeface_of_the_world_is_told_from_the_signatures() -> None:
    """Of one scene in all its variants; a frame is no banner, and dots are dots where they are darker."""
    _, (portrait, *_), _ = renders("portrait", 1, 128)
    assert isinstance(portrait, Portrait)
    for pattern in PATTERNS:
        for amplitude in (-9, 9):
            before = Portrait(portrait.subject, "blue", (0, 0, 0), pattern, 3, amplitude)
            assert signature.pattern_of(render(Picture(before), 128)) == pattern
    wall = ((110, 90, 130), "plain", 0)
    of_word = Sign("BAKE", "green", "white", "", "", (3, -3, 0), 0.5, 0.5, 0.88, 0.4, 4.0, True, wall)
    of_two = replace(of_word, word="BAD RUM", width=0.86, height=0.35, angle=0.0)
    of_lines = replace(of_two, width=0.45, height=0.55, stacked=True)
    for sign, shape, typeface in itertools.product((of_word, of_two, of_lines), SHAPES, TYPEFACES):
        pixels = render(Picture(replace(sign, shape=shape, typeface=typeface)), 128)
        board = signature.board_of(pixels, "green")
        assert board is not None and board.size == pytest.approx([sign.width * 128, sign.height * 128], abs=6)
        assert signature.is_framed(pixels, board, "green", "white") == (shape == "framed")
        assert signature.typeface_of(pixels, board, "green", "white", sign.word) == typeface


def test_frames_and_typefaces_are_read_as_well_from_two_words_and_two_lines_as_from_one_word() -> None:
    pictures, scenes, named = renders("text", 4 * COUNT, 128)
    signs = [scene for scene in scenes if isinstance(scene, Sign)]
    found = read("text", pictures, scenes, named)
    for lettering in LETTERINGS:
        pairs = [(of, truth(sign)) for of, sign in zip(found, signs, strict=True) if lettering_of(sign) == lettering]
        assert len(pairs) >= 30
        for name in ("frame", "typeface"):
            told = [of[name] == true[name] for of, true in pairs if of[name] is not None]
            assert np.mean(told) >= 0.97 and len(told) >= 0.85 * len(pairs), (lettering, name)


def test_a_typeface_is_not_read_off_other_letters_than_the_text() -> None:
    scene = Sign(
        "BAKE", "white", "black", TYPEFACE, "plain", (0, 0, 0), 0.5, 0.5, 0.9, 0.4, 0.0, False, (GREY, "plain", 0)
    )
    pixels = render(Picture(scene), 128)
    board = signature.board_of(pixels, "white")
    assert board is not None
    for text in ("MINUTE", "TO IT", "", " "):
        assert signature.typeface_of(pixels, board, "white", "black", text) is None


def test_what_is_not_there_is_not_read() -> None:
    """No board of the colour that a judge names; a ground like none of the world; a caption that asks for a style."""
    pixels = np.full((128, 128, 3), 120, np.uint8)
    seen = {"sign": "red", "ink": "white", "word": "GO", "background": "gray"}
    assert shown("text", pixels, seen, ("word", "sign")) == {"frame": None, "typeface": None}
    assert shown("portrait", pixels, seen, ()) == {"background": False, "pattern": False}
    assert shown("portrait", pixels, seen, ("subject", "style")) == {}
    quarters = pixels + 25 * np.eye(2, dtype=np.uint8).repeat(64, 0).repeat(64, 1)[..., None]
    assert shown("portrait", quarters, seen, ("background",)) == {"pattern": None}


def test_a_share_counts_cases_once_and_leaves_out_what_was_not_read() -> None:
    found: dict[str, list[Shown]] = {
        "a": [{"frame": True, "typeface": True}, {"frame": True, "typeface": False}],
        "b": [{"frame": False, "typeface": None}, {"frame": None, "typeface": None}],
        "c": [{}, {}],
        "d": [{"sign": None}, {}],
    }
    every, frame, sign, typeface = shares("student", found)
    assert (every.what, every.value, every.n) == ("student", pytest.approx((0.75 + 0) / 2), 2)
    assert (frame.what, frame.value, frame.n) == ("student, frame", pytest.approx(0.5), 2)
    assert (typeface.value, typeface.n) == (pytest.approx(0.5), 1) and "2 answers could not be read" in typeface.note
    assert frame.low is not None and frame.low <= frame.value
    assert math.isnan(sign.value) and "1 answers could not be read" in sign.note
