"""Distances of distributions against what is known of them, and readings that can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.evaluation.answers import Answer, Answers
from workbench.evaluation.cases.case import Case
from workbench.evaluation.diversity import diversity_metrics, unit_of
from workbench.evaluation.judges.local import Judgement
from workbench.evaluation.measures.answer_measures import (
    Measures,
    measure,
    residual_noise,
    target_distance,
    wholly_right,
)
from workbench.evaluation.measures.distances import coverage, kid, standardised
from workbench.evaluation.metrics_file import Value
from workbench.evaluation.secondary import MIN_KID_IMAGES, _distribution


def normal(seed: int, n: int, dims: int = 4, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, (n, dims))


def test_kid_is_zero_for_equal_sets_and_symmetric() -> None:
    a, b = normal(0, 40), normal(1, 40, mean=0.5)
    assert kid(a, a) == (0, 0, 0)
    forth, back = kid(a, b), kid(b, a)
    assert forth is not None and back is not None and forth == pytest.approx(back)


@pytest.mark.parametrize("n", [5, 50])
def test_kid_is_unbiased_at_any_n_for_paired_rows_too(n: int) -> None:
    independent = [kid(normal(2 * i, n), normal(2 * i + 1, n)) for i in range(300)]
    paired = [kid(x := normal(i, n), (x + normal(1000 + i, n)) / np.sqrt(2)) for i in range(300)]
    for found in (independent, paired):
        values = np.array([value[0] for value in found if value is not None])
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))


def test_kid_meets_its_closed_form() -> None:
    """One dimension, k = (xy + 1)^3: the squared distances of the first three moments, weighted 3, 3 and 1."""
    n, shift = 3000, 0.8
    found = kid(normal(0, n, 1, shift), normal(1, n, 1))
    moments = (3 * shift**2, 3 * shift**4, (shift**3 + 3 * shift) ** 2)
    assert found is not None and found[1] < sum(moments) < found[2]
    assert found[0] == pytest.approx(sum(moments), rel=0.2)


def test_kid_needs_equal_numbers() -> None:
    with pytest.raises(ValueError, match="equal numbers"):
        kid(normal(0, 4), normal(1, 5))
    assert kid(normal(0, 1), normal(1, 1)) is None


def test_of_few_pictures_no_kernel_distance_is_told() -> None:
    def told(n: int) -> object:
        rows = [Answer(f"c{i}", "t2i_bench", "x", 0, Judgement(3, None, None, None), Measures(0)) for i in range(n)]
        answers, targets = (Answers(rows, list(normal(seed, n))) for seed in (0, 1))
        return _distribution(answers, targets)[0]

    assert told(MIN_KID_IMAGES - 1) is None and told(MIN_KID_IMAGES) is not None


def test_targets_that_are_all_alike_give_no_unit_of_diversity() -> None:
    rows = [Answer(f"c{i}", "t2i_bench", "x", 0, Judgement(3, None, None, None), Measures(0)) for i in range(2)]
    assert unit_of(Answers(rows, [np.ones(4), np.ones(4)])) is None
    assert unit_of(Answers(rows, [np.ones(4), np.zeros(4)])) == 2


def test_precision_and_recall_tell_lost_modes_from_bad_samples() -> None:
    two_modes = np.concatenate([normal(0, 100), normal(1, 100, mean=20)])
    one_mode = normal(2, 200)
    precise, recalled = coverage(one_mode, two_modes), coverage(two_modes, one_mode)
    assert precise is not None and precise > 0.8
    assert recalled is not None and 0.3 < recalled < 0.55
    assert coverage(two_modes, two_modes) == 1
    assert coverage(one_mode + 50, two_modes) == 0
    assert coverage(one_mode, two_modes[:3]) is None and coverage(one_mode[:0], two_modes) is None


def test_standardising_forgets_units() -> None:
    real, drawn = normal(0, 50), normal(1, 50, mean=1)
    units = np.array([1, 10, 0.1, 5.0])
    assert standardised(drawn * units, real * units) == pytest.approx(standardised(drawn, real))


@pytest.mark.parametrize("deviation", [2, 6, 15])
def test_noise_of_known_deviation_on_a_flat_picture_is_read_back(deviation: int) -> None:
    rng = np.random.default_rng(0)
    half = np.full((128, 128, 3), 90.0)
    half[:, 64:] = 180
    image = (half + rng.normal(0, deviation, half.shape)).round().astype(np.uint8)
    # The 5 x 5 mean takes 1 / 25 of the variance along.
    assert residual_noise(image) == pytest.approx(deviation * np.sqrt(24 / 25), rel=0.08)
    assert residual_noise(half.astype(np.uint8)) == 0


def test_distance_to_the_target_by_hand() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    half = black.copy()
    half[:4] = 255
    assert [target_distance(image, black) for image in (black, half, white)] == [0, 0.5, 1]
    assert target_distance(black[:4], black) is None


def test_readings_stand_only_where_a_case_defines_them() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    text = Case("a", "t2i", "text", "p", None, image, {"word": "HELLO"}, named=("word",))
    assert [measure(text, image, None, {"word": word}).word for word in ("HELLO", "HELL", "")] == [1, 0, 0]
    unnamed = measure(Case("b", "t2i", "text", "p", None, image, {"word": "HELLO"}), image, None, {"word": "HELLO"})
    assert unnamed.word is None and unnamed.target_distance is None and unnamed.defect is None
    dark = Case("c", "edit", "enhance", "p", image, image, {}, {"quality": "dark"}, ("quality",))
    reading = measure(dark, image, None, {})
    assert reading.defect == "dark" and reading.target_distance == 0
    many = Case("d", "edit", "scene", "p", image, image, exact=False)
    assert measure(many, image, None, {}).target_distance is None


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"named/sky": 1, "named/objects": 1}, 1),
        ({"named/sky": 1, "named/objects": 0.5}, 0),
        ({"named/objects": 1, "kept/sky": 1, "kept/pixels": 0.9}, 1),
        ({"named/objects": 1, "kept/sky": 0}, 0),
        ({"named/pixels": 0.4, "kept/sky": 1}, None),
        ({"kept/sky": 1}, None),
        ({}, None),
    ],
)
def test_a_prompt_counts_when_all_of_it_is_right(attributes: dict[str, float], expected: float | None) -> None:
    assert wholly_right(attributes) == expected


def test_ratios_of_diversity_go_by_shared_prompts_and_say_how_many() -> None:
    spread = {"a": 1.0, "b": 3.0}
    found = diversity_metrics(spread, {"a": 2.0, "b": 6.0}, 100)
    assert found is not None and found.mean == 2 and found.to_teacher == Value(0.5, n=2)
    partly = diversity_metrics(spread, {"a": 0.5, "c": 9.0}, 100)
    assert partly is not None and partly.to_teacher == Value(2, n=1)
    alone = diversity_metrics(spread, {}, 100)
    assert alone is not None and alone.to_teacher is None and diversity_metrics({}, {}, 100) is None
