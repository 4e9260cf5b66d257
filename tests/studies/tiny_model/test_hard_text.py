"""What the benchmark asks to be written, and when hard text counts as the worst category."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.openmoji.compose import LETTERINGS, lettering_of
from datamodules.openmoji.phrases import OVER
from datamodules.openmoji.scenes import Sign
from datamodules.openmoji.world import plan
from studies.tiny_model.figures import Figure
from studies.tiny_model.hard_text import EASY_BARS, HARD_BARS, worst, written
from workbench.evaluation.answer_cache import Answer
from workbench.evaluation.answers import Answers
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.judges.local import Judgement
from workbench.evaluation.measures.answer_measures import Measures
from workbench.evaluation.measures.text import word_score


def test_a_case_is_as_difficult_as_what_its_sign_says() -> None:
    """Where a caption asks for any word there is none, nor of what is no sign, nor of edits; two lines it asks for."""
    seen = set()
    for index, case in enumerate(world_cases("t2i", "report", 120, 32, ("text",))):
        planned = plan("t2i", "text", "report", index)
        assert isinstance(planned.target.scene, Sign)
        assert case.difficulty == (lettering_of(planned.target.scene) if "word" in planned.named else ""), case.prompt
        stacked = " " in case.text and OVER.join(case.text.split()) in case.prompt
        assert (case.difficulty == "two lines") == stacked, case.prompt
        seen.add(case.difficulty)
    assert seen == {"", *LETTERINGS}
    for task, category in (("t2i", "portrait"), ("edit", "text")):
        assert {case.difficulty for case in world_cases(task, "report", 6, 32, (category,))} == {""}


def _answer(
    case: str, bench: str, category: str, score: float, right: float = 1.0, seed: int = 0, whole: float | None = None
) -> Answer:
    judged = Judgement(score, None, None, None, {"named/word": right})
    return Answer(case, bench, category, seed, judged, Measures(noise=0.0, whole=whole))


def test_shares_count_a_case_once_and_letters_count_where_a_text_is_wrong() -> None:
    right = word_score("GO UP", "GO IN")
    rows = [_answer("a", "t2i_bench", "text", 3, value, seed) for seed, value in enumerate((1.0, right))]
    rows += [_answer("b", "t2i_bench", "text", 3, 1.0, seed) for seed in range(2)]
    exact, letters = written("hard", rows, HARD_BARS)
    assert (exact.value, exact.n, exact.reached) == (pytest.approx(0.75), 2, False), "too easy to be hard"
    assert letters.value == pytest.approx(((1 + right) / 2 + 1) / 2) and letters.reached is None
    assert written("easy", rows, EASY_BARS)[0].reached is True
    assert written("nothing", []) == []


@pytest.mark.parametrize(("above", "reached"), [(0.6, True), (0.05, False), (-0.6, False)])
def test_hard_text_is_the_worst_category_only_if_every_interval_says_so(above: float, reached: bool) -> None:
    """One category is far better in all of them; the other decides."""
    draws = np.random.default_rng(0)
    rows = []
    for name, mean in (("hard", 2.5), ("easy", 4.0), ("scene", 2.5 + above)):
        bench, category = ("editing_bench", "scene") if name == "scene" else ("t2i_bench", "text")
        for at in range(200):
            rows += [_answer(f"{name}{at}", bench, category, mean + draws.normal(0, 1), seed=seed) for seed in (0, 1)]
    easy, scene, end = worst(Answers(rows), {row.case for row in rows if row.case.startswith("hard")})
    assert easy.value == pytest.approx(1.5, abs=0.2) and scene.value == pytest.approx(above, abs=0.2)
    assert easy.what == "teacher, t2i_bench, text less hard text, 1 to 5"
    assert end.value == scene.low and end.reached is reached and "editing_bench, scene" in end.note


def test_the_worst_by_score_need_not_be_the_worst_by_what_is_wholly_right() -> None:
    """Half of the hard texts have a wrong letter and score high; scenes are damaged and right."""
    rows = [_answer(f"hard{at}", "t2i_bench", "text", 4.5 + 0.01 * (at % 3), whole=at % 2) for at in range(60)]
    rows += [_answer(f"scene{at}", "editing_bench", "scene", 3.9 + 0.01 * (at % 3), whole=1.0) for at in range(60)]
    score, by_score, whole, by_whole = worst(Answers(rows), {row.case for row in rows if row.case.startswith("hard")})
    assert score.value == pytest.approx(-0.6) and by_score.reached is False
    assert whole.value == pytest.approx(0.5) and by_whole.reached is True


def test_without_hard_text_nothing_is_said_of_it() -> None:
    assert worst(Answers([_answer("a", "t2i_bench", "text", 3.0)]), ()) == []


def test_a_figure_may_have_bars_on_both_sides() -> None:
    between = [Figure("share", value, 0.4, most=0.6).reached for value in (0.39, 0.4, 0.6, 0.61)]
    assert between == [False, True, True, False]
    assert Figure("size", 41.0, most=42).reached and Figure("size", 41.0).reached is None
