"""What a model drew is drawn once, and found again by all that it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np

from workbench.evaluation.benchmark import Case
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.remembered import remembered

CASES = [
    Case("a", "edit", "text", "write CAT", source=np.full((4, 4, 3), 7, np.uint8)),
    Case("b", "edit", "text", "write DOG", source=np.full((8, 4, 3), 9, np.uint8)),
]


class Model:
    """Draws noise from each case's seed, in the size of its source; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.under_test = ModelUnderTest(self.draw, nfe=4, sampling={"steps": 4, "shift": 2.0}, fingerprint="weights")

    def draw(self, cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        self.asked += 1
        shapes = [case.source.shape for case in cases if case.source is not None]
        pairs = zip(shapes, seeds, strict=True)
        return [np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for shape, seed in pairs], 1.5


def test_a_second_run_gets_the_same_images_and_seconds_without_drawing(tmp_path: Path) -> None:
    first, second = Model(), Model()
    drawn, seconds = remembered(first.under_test, "at 64 on cpu", tmp_path).draw(CASES, [1, 2])
    again, seconds_again = remembered(second.under_test, "at 64 on cpu", tmp_path).draw(CASES, [1, 2])
    assert (first.asked, second.asked) == (1, 0) and seconds == seconds_again == 1.5
    for image, other in zip(drawn, again, strict=True):
        assert image.dtype == other.dtype == np.uint8
        np.testing.assert_array_equal(image, other)


def test_whatever_an_answer_depends_on_makes_it_another(tmp_path: Path) -> None:
    model = Model()
    remembered(model.under_test, "at 64 on cpu", tmp_path).draw(CASES, [1, 2])
    changed_source = replace(CASES[0], source=np.full((4, 4, 3), 8, np.uint8))
    others = [
        ("at 64 on cpu", replace(model.under_test, fingerprint="others"), CASES, [1, 2]),
        ("at 64 on cpu", replace(model.under_test, sampling={"steps": 4, "shift": 3.0}), CASES, [1, 2]),
        ("at 64 on cpu", model.under_test, CASES, [1, 3]),
        ("at 64 on cuda", model.under_test, CASES, [1, 2]),
        ("at 64 on cpu", model.under_test, CASES[::-1], [1, 2]),
        ("at 64 on cpu", model.under_test, [changed_source, CASES[1]], [1, 2]),
        ("at 64 on cpu", model.under_test, [replace(CASES[0], prompt="write CAR"), CASES[1]], [1, 2]),
    ]
    for count, (where, under_test, cases, seeds) in enumerate(others, start=2):
        remembered(under_test, where, tmp_path).draw(cases, seeds)
        assert model.asked == count


def test_a_damaged_file_is_drawn_again(tmp_path: Path) -> None:
    model = Model()
    remembered(model.under_test, "at 64 on cpu", tmp_path).draw(CASES, [1, 2])
    (kept,) = tmp_path.glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    images, _ = remembered(model.under_test, "at 64 on cpu", tmp_path).draw(CASES, [1, 2])
    assert model.asked == 2 and len(images) == 2


def test_of_two_that_ask_at_once_one_draws(tmp_path: Path) -> None:
    model = Model()
    ask = [Thread(target=remembered(model.under_test, "w", tmp_path).draw, args=(CASES, [1, 2])) for _ in range(4)]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert model.asked == 1
