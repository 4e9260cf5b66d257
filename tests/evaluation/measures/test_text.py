"""Reading of texts: what a line's probabilities give, and the reader on renders of the world under graded damage."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from scipy import stats

from studies.tiny_model.graded_damage import DAMAGES, SEVERITIES
from workbench.common.errors import UserError
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.measures import ocr
from workbench.evaluation.measures.text import FLOOR, UNREAD, folded, log_probability, text_measures

CHARACTERS = ("blank", "A", "b", "a", "0", "O", " ")


def certain(text: str) -> np.ndarray:
    """A line that shows nothing but `text`, a blank between its letters."""
    line = np.full((2 * len(text), len(CHARACTERS)), 1e-9)
    for at, letter in enumerate(text):
        line[2 * at, CHARACTERS.index(letter)] = line[2 * at + 1, 0] = 1
    return line / line.sum(1, keepdims=True)


@pytest.mark.parametrize("wanted", ["A", "AB", "AA", "AOB"])
def test_log_probability_is_the_sum_over_all_alignments(wanted: str) -> None:
    line = np.random.default_rng(0).dirichlet(np.ones(len(CHARACTERS)), 5)
    total = 0.0
    for path in product(range(len(CHARACTERS)), repeat=len(line)):
        read, last = "", ""
        for letter in (folded(CHARACTERS[at]) if at else "" for at in path):
            read += letter if letter != last else ""
            last = letter
        if read == wanted:
            total += float(np.prod(line[range(len(line)), path]))
    assert log_probability(line, CHARACTERS, wanted) == pytest.approx(np.log(total) / len(wanted))


def test_case_accents_spaces_and_letters_that_look_alike_do_not_count() -> None:
    assert folded("Là, 1 b0x!") == folded("LA I BOX")
    assert text_measures([certain("ab0")], CHARACTERS, "A bo").word == 1
    torn = certain("O")
    torn[0, [CHARACTERS.index("O"), CHARACTERS.index("0")]] = 0.51, 0.49
    found = text_measures([torn], CHARACTERS, "O")
    assert found.legibility == pytest.approx(1) and found.log_probability == pytest.approx(0, abs=1e-6)


def test_a_text_is_found_among_the_lines_of_a_poster() -> None:
    lines = [certain("bb"), certain("A"), certain("bO"), certain("OO")]
    found = text_measures(lines, CHARACTERS, "Abo")
    assert (found.word, found.letters) == (1, 1) and found.log_probability > -1e-3 and found.legibility > 0.99
    wrong = text_measures(lines, CHARACTERS, "AAAA")
    assert wrong.word == 0 and wrong.legibility > 0.99, "legible, though it is not what was asked for"
    assert text_measures([], CHARACTERS, "A") == UNREAD


def test_asked_for_without_the_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "installed", lambda: False)
    ocr.shared_reader.cache_clear()
    case = Case("a", "t2i", "poster", "a poster", text="SALE")
    with pytest.raises(UserError, match=r"pip install 'few-step-workbench\[ocr\]'"):
        ocr.chosen_reader("on", [case])
    assert ocr.chosen_reader("auto", [case])[1].startswith("the texts of 1 cases are not read")
    assert ocr.chosen_reader("on", [Case("a", "t2i", "poster", "a poster")]) == (None, "")


@cache
def signs() -> list[Case]:
    """Eight different texts, of one word and of two."""
    cases = world_cases("t2i", "search", 16, categories=["text"])
    return list({case.text: case for case in cases if case.text}.values())[:8]


def means(images: list[np.ndarray], texts: list[str]) -> np.ndarray:
    """(4,): word, letters, log-probability, legibility."""
    found = [ocr.shared_reader().measures(image, text) for image, text in zip(images, texts, strict=True)]
    return np.mean([[of.word, of.letters, of.log_probability, of.legibility] for of in found], axis=0)


def test_clean_renders_are_read_right_and_other_words_are_not() -> None:
    pytest.importorskip("rapidocr")
    images, texts = [case.target for case in signs()], [case.text for case in signs()]
    assert np.all(means(images, texts) >= [1, 1, -0.1, 0.95])
    word, letters, log_p, legibility = means(images, [*texts[1:], texts[0]])
    assert word == 0 and letters < 0.4 and log_p < 0.8 * FLOOR and legibility > 0.95
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert means([noise], ["WORD"]).tolist() == [0, 0, FLOOR, 0]


def test_log_probability_follows_damage_from_the_start_and_the_others_once_letters_are_lost() -> None:
    pytest.importorskip("rapidocr")
    texts, images = [case.text for case in signs()[:5]], [case.target for case in signs()[:5]]
    damaged = [images, *(DAMAGES["warp"](images, severity) for severity in SEVERITIES[1:])]
    word, letters, log_p, legibility = np.array([means(of, texts) for of in damaged]).T
    assert stats.spearmanr(SEVERITIES, log_p).statistic <= -0.95
    for shares in (word, letters, legibility):
        assert np.diff(shares).max() < 0.05 and shares[-1] < 0.8
