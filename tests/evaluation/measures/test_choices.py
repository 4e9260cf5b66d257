"""What prompts leave open, counts and order of objects, and Frechet distances by category."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy import stats

from datamodules.openmoji.world import plan
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.measures.category_frechet import category_frechet, real_distance
from workbench.evaluation.measures.choices import compared_choices, free_choices, placement, total_variation, variety
from workbench.evaluation.measures.distances import frechet
from workbench.evaluation.measures.layout import count_score, instances, order_score, places_of


@cache
def landscapes() -> list[Case]:
    return [case for case in world_cases("t2i", "search", 60, categories=["landscape"]) if "objects" in case.named][:40]


@cache
def counts_and_orders(mirrored: bool = False) -> tuple[float, float]:
    """Mean scores over the landscapes; mirrored: against the opposite order."""
    images = [case.target for case in landscapes()]
    places = [seen[places_of("objects")] for seen in LocalJudge(device="cpu").see(images)[0]]
    pairs = list(zip(places, landscapes(), strict=True))
    counts = [count_score(of, len(case.scene["objects"])) for of, case in pairs]
    step = -1 if mirrored else 1
    orders = [order_score(of, case.order[::step]) for of, case in pairs if len(case.order) > 1]
    assert len(orders) > 10
    return float(np.mean(counts)), float(np.mean(orders))


def test_free_is_what_the_scene_has_and_the_prompt_does_not_name() -> None:
    scene = {"sign": "red", "ink": "white", "word": "GO"}
    assert free_choices(("word", "sign"), scene, {**scene, "ink": "black"}) == {"ink": "black"}


def test_total_variation_rises_as_choices_narrow_until_they_collapse() -> None:
    rng = np.random.default_rng(0)
    real, free = (rng.choice(list("abcd"), 200, p=[0.4, 0.3, 0.2, 0.1]) for _ in range(2))
    found = [
        compared_choices([["a" if rank < narrow else choice] for rank, choice in enumerate(free)], list(real))
        for narrow in (0, 50, 100, 150, 200)
    ]
    values = [of.value for of in found]
    assert stats.spearmanr(range(5), values).statistic >= 0.95
    assert values[0] < 2 * found[0].real and values[-1] == pytest.approx(found[0].collapsed)
    assert all(of.low <= of.value <= of.high for of in found)
    assert compared_choices([[choice] for choice in real], list(real)).value == 0
    together = variety({"x": found[0], "y": found[-1]})
    assert together.value == pytest.approx(1 - (values[0] + values[-1]) / 2) and variety({}) is None
    assert together.collapsed < together.low < together.value < together.high < 1 and together.n == 200


def test_real_choices_differ_as_two_draws_of_the_world_do() -> None:
    rng = np.random.default_rng(1)
    real = list(rng.choice(list("abc"), 60))
    simulated = [total_variation(rng.choice(real, 60), rng.choice(real, 60)) for _ in range(300)]
    assert compared_choices([[choice] for choice in real], real).real == pytest.approx(np.mean(simulated), rel=0.1)


def test_placement_of_a_subject_is_read_off_the_pixels() -> None:
    true, read = [], []
    for case in world_cases("t2i", "search", 40, categories=["portrait"]):
        subject = plan("t2i", "portrait", "search", int(case.id.rpartition("-")[2])).target.scene.subject
        true.append((subject.x, subject.y - subject.size / 2, subject.size))
        read.append(placement(case.target))
    for a, b in zip(np.array(true).T, np.array(read).T, strict=True):
        assert stats.spearmanr(a, b).statistic >= 0.9


def test_counts_and_order_are_right_on_clean_renders_and_the_order_is_wrong_in_a_mirror() -> None:
    counts, orders = counts_and_orders()
    assert counts >= 0.95 and orders >= 0.9
    assert counts_and_orders(mirrored=True)[1] < 0.1


def test_two_of_a_kind_are_two_instances() -> None:
    cells = np.full((16, 16), -20.0)
    cells[10, 3] = cells[10, 12] = 5
    assert instances(cells) == pytest.approx([3.5 / 16, 12.5 / 16], abs=0.05)
    assert order_score([("tree", 0.2), ("car", 0.5), ("tree", 0.9)], ("car", "tree")) == 1


def test_a_category_frechet_distance_stands_by_that_of_real_pictures_and_is_not_given_for_few_pictures() -> None:
    rng = np.random.default_rng(0)
    real, other = (rng.standard_normal((800, 16)) for _ in range(2))
    assert real_distance(real) == pytest.approx(frechet(other, real), rel=0.25)
    assert np.isnan(category_frechet(other[:599], real).value) and category_frechet(other[:599], real).n == 599
    grades = (0, 0.5, 1, 2)
    values = [category_frechet(other + grade, real).value for grade in grades]
    assert stats.spearmanr(grades, values).statistic >= 0.95 and category_frechet(real, real).value < 1e-6
