"""The score: bounds, the roles of its axes, and cases whose outcome is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.common.errors import UserError
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.case_file import read_jsonl, write_jsonl
from workbench.evaluation.judges.local import (
    SEVERE,
    SEVERE_CAP,
    attribute_score,
    judge_case,
    pixel_agreement,
    pixel_progress,
    score_of,
)
from workbench.evaluation.measures.text import edit_distance, word_score

AXIS = st.floats(0, 1)
WORD = st.text("ABC", max_size=5)
SCENE = {"category": "landscape", "sky": "day", "objects": ["tree", "house"], "word": "HELLO"}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def t2i_case(named: tuple[str, ...] = tuple(SCENE)) -> Case:
    return Case("a", "t2i", "landscape", "a prompt", scene=SCENE, named=named)


def test_an_oracle_scores_five_and_a_blind_judge_one() -> None:
    image = picture(0)
    assert judge_case(t2i_case(), image, SCENE, 1.0).score == 5
    wrong = {"category": "text", "sky": "night", "objects": ["car"], "word": "XY"}
    assert judge_case(t2i_case(), image, wrong, 1.0).score == 1


def test_beauty_earns_nothing_if_the_prompt_is_missed_nor_compliance_if_all_is_broken() -> None:
    assert score_of(0.0, 1.0, None) == score_of(1.0, 0.0, None) == 1


@given(AXIS, AXIS, AXIS)
def test_score_is_bounded_symmetric_and_monotone(a: float, b: float, c: float) -> None:
    score = score_of(a, b, c)
    assert 1 <= score <= 5
    assert score == pytest.approx(score_of(c, a, b))
    assert score_of(min(1, a + 0.1), b, c) >= score - 1e-9
    if min(a, b, c) < SEVERE:
        assert score <= SEVERE_CAP


@given(WORD, WORD, WORD)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert 0 <= word_score(a, b) <= 1


def test_object_sets_score_by_their_overlap() -> None:
    assert attribute_score(["tree", "house"], ["house", "tree"]) == 1
    assert attribute_score(["tree"], ["house", "tree"]) == 0.5
    assert attribute_score([], []) == 1


def test_an_edit_that_returns_the_target_keeps_everything_and_one_that_redraws_does_not() -> None:
    source = picture(1)
    target = source.copy()
    target[:16] = picture(2)[:16]
    case = Case("b", "edit", "object", "p", source, target, SCENE, named=("objects",), kept=("sky",))
    assert judge_case(case, target, SCENE, 1.0).score == 5
    redrawn = judge_case(case, 255 - target, SCENE, 1.0)
    assert redrawn.kept is not None and redrawn.kept < 1 and redrawn.score < 5


def test_pixel_agreement_looks_only_where_nothing_should_change() -> None:
    source = np.full((32, 32, 3), 100, np.uint8)
    target = source.copy()
    target[:8] = 200
    image = target.copy()
    image[:8] = 0
    assert pixel_agreement(image, source, target) == 1
    assert pixel_agreement(source, source, np.full_like(source, 200)) is None


def test_a_case_without_a_scene_is_scored_on_quality_alone() -> None:
    judged = judge_case(Case("c", "t2i", "mine", "p"), picture(3), SCENE, 0.5)
    assert judged.compliance is None and judged.score == pytest.approx(3)


def test_an_edit_that_does_nothing_complies_with_nothing() -> None:
    source, target = picture(1), picture(2)
    for wanted in ({"objects": ["tree"]}, {"word": "HELLO"}, {"sky": "day"}):
        before = {"objects": ["tree", "car"], "word": "HELP", "sky": "night"}
        scene = {**SCENE, **wanted}
        case = Case("d", "edit", "x", "p", source, target, scene, before, tuple(wanted))
        assert judge_case(case, source, {**SCENE, **before}, 1.0).compliance == 0
        assert judge_case(case, target, scene, 1.0).compliance == 1
    nameless = Case("e", "edit", "identity", "larger", source, target)
    assert judge_case(nameless, source, SCENE, 1.0).score == 1
    assert judge_case(nameless, target, SCENE, 1.0).score == 5
    halfway = pixel_progress((source // 2 + target // 2), source, target)
    assert halfway == pytest.approx(0.5, abs=0.02)


def test_any_accepted_value_fulfils_an_open_edit_and_pixels_do_not_count() -> None:
    source, target = picture(1), picture(2)
    accepted = {"sky": ("night", "rain"), "objects": (("car", "pine"), ("car", "palm"))}
    scene, before = {"sky": "night", "objects": ["car", "pine"]}, {"sky": "day", "objects": ["car", "tree"]}
    case = Case(
        *("f", "edit", "x", "p", source, target, scene, before),
        named=("sky", "objects"),
        accepted=accepted,
        exact=False,
    )
    for sky in ("night", "rain"):
        for kind in ("pine", "palm"):
            assert judge_case(case, picture(3), {"sky": sky, "objects": [kind, "car"]}, 1.0).score == 5
    assert judge_case(case, source, before, 1.0).compliance == 0
    assert judge_case(case, picture(3), {"sky": "dawn", "objects": ["car"]}, 1.0).compliance == pytest.approx(0.125)
    both = judge_case(case, picture(3), {"sky": "rain", "objects": ["palm", "pine"]}, 1.0)
    assert both.compliance == pytest.approx(0.5) and both.kept is None


def test_a_case_keeps_what_it_accepts_through_jsonl_and_older_files_stay_valid(tmp_path: Path) -> None:
    case = Case(
        *("g", "edit", "x", "p", picture(1), picture(2), SCENE, {"sky": "night"}),
        named=("sky",),
        accepted={"sky": ["day", "rain"]},
        exact=False,
    )
    write_jsonl([case], tmp_path / "cases.jsonl")
    (read,) = read_jsonl(tmp_path / "cases.jsonl")
    assert read.accepted == case.accepted and read.exact is False
    row = json.loads((tmp_path / "cases.jsonl").read_text())
    older = {name: value for name, value in row.items() if name not in ("accepted", "exact")}
    (tmp_path / "older.jsonl").write_text(json.dumps(older))
    (read,) = read_jsonl(tmp_path / "older.jsonl")
    assert not read.accepted and read.exact
    for wrong in ({"accepted": {"sky": "day"}}, {"accepted": ["day"]}, {"exact": "no"}):
        (tmp_path / "wrong.jsonl").write_text(json.dumps(row | wrong))
        with pytest.raises(UserError, match=next(iter(wrong))):
            read_jsonl(tmp_path / "wrong.jsonl")
