"""Vision-language judges against a server on loopback: no score lost, none invented, the key nowhere."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_server import KEY, judge_server, true_score

from workbench.common.errors import UserError
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges import vlm_client, vlm_judge
from workbench.evaluation.judges.vlm_client import NO_KEY, Client, Endpoint, endpoint
from workbench.evaluation.judges.vlm_judge import Panel, Unanswered, VlmJudge, choice_question, score_question
from workbench.evaluation.judges.vlm_prompts import EDITS, GENERAL_EDIT, SEVERE_CAP, T2I, rubric_of
from workbench.evaluation.judges.vlm_reply import Malformed, Verdict, parse_choice, parse_verdict
from workbench.recipe.config import Vlm
from workbench.recipe.reading import from_mapping

pytest.importorskip("openai")
SETTINGS = Vlm(concurrency=4, timeout_s=1.0, attempts=4)
MENDED = ("429", "500", "503", "garbage", "garbage json", "no choices", "prose", "truncated", "cut short", "nothing",
          "too high", "too low", "nan", "words", "drop", "drop midway", "hang")  # fmt: skip


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm_client, "BACKOFF_S", 0.01)
    monkeypatch.setattr(vlm_judge, "MIN_SIDE", 64)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def cases_of(count: int) -> list[Case]:
    """Alternating tasks, prompts p0, p1, ..."""
    picture = np.zeros((32, 32, 3), np.uint8)
    categories = itertools.cycle([("t2i", "landscape"), *(("edit", name) for name in EDITS), ("edit", "my own")])
    return [
        Case(f"c{i}", task, category, f"p{i}", picture if task == "edit" else None)  # type: ignore[arg-type]
        for i, (task, category) in zip(range(count), categories, strict=False)
    ]


def images_of(cases: list[Case]) -> list[np.ndarray]:
    return [np.full((32, 32, 3), i % 256, np.uint8) for i in range(len(cases))]


def panel_at(url: str, folder: Path, settings: Vlm = SETTINGS, names: str = "A") -> Panel:
    clients = [Client(Endpoint(name, url, f"model-{name}", KEY), settings) for name in names]
    return Panel([VlmJudge(client, folder) for client in clients], settings.concurrency)


def everything_in(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def scores_of(replies: list[Verdict | Unanswered]) -> list[float | None]:
    return [reply.score if isinstance(reply, Verdict) else None for reply in replies]


def test_every_trouble_that_passes_costs_no_score_and_invents_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every case meets another trouble first; some meet two."""
    cases = cases_of(2 * len(MENDED))

    def behaviour(text: str, before: int) -> str:
        number = int(text.rpartition("p")[2])
        if before == 0 or (before == 1 and number % 3 == 0 and MENDED[number % len(MENDED)] != "hang"):
            return MENDED[number % len(MENDED)]
        return "slow" if number % 5 == 0 else "good"

    caplog.set_level("DEBUG")
    with judge_server(behaviour) as (url, log):
        replies = panel_at(url, tmp_path).judge(cases, images_of(cases)).scores["A"]
    assert scores_of(replies) == [true_score(case.prompt) for case in cases]
    assert set(log.headers) == {f"Bearer {KEY}"}
    assert 1 < log.most_at_once <= SETTINGS.concurrency + 2  # a request given up at its time-out still ends there
    waits = [
        log.times[f"Prompt: {c.prompt}" if c.task == "t2i" else f"Instruction: {c.prompt}"]
        for i, c in enumerate(cases)
        if MENDED[i % len(MENDED)] == "429"
    ]
    assert waits and all(times[1] - times[0] >= 0.3 for times in waits), "Retry-After was not honoured"
    written = everything_in(tmp_path) + caplog.text + "".join(capfd.readouterr()) + repr(replies)
    assert KEY not in written and "[key]" in written


@pytest.mark.parametrize("trouble", ["500", "429", "garbage", "prose", "truncated", "too high", "nan", "drop", "400"])
def test_trouble_that_stays_is_missing_with_its_reason_and_is_asked_again_later(tmp_path: Path, trouble: str) -> None:
    cases = cases_of(6)
    twice = replace(SETTINGS, attempts=2, timeout_s=30.0)  # None of these troubles hangs, and a busy machine is slow.
    with judge_server(lambda text, before: trouble if text.endswith("3") else "good") as (url, log):
        replies = panel_at(url, tmp_path, twice).judge(cases, images_of(cases)).scores["A"]
        asked = log.texts.count("Instruction: p3")
        assert scores_of(replies) == [true_score(c.prompt) if c.prompt != "p3" else None for c in cases]
        missing = replies[3]
        assert isinstance(missing, Unanswered) and missing.reason and KEY not in missing.reason
        panel_at(url, tmp_path, twice).judge(cases, images_of(cases))
        assert len(log.texts) == 6 - 1 + 2 * asked and asked == (1 if trouble == "400" else 2)


def test_a_server_that_drips_is_late_as_one_that_hangs_is(tmp_path: Path) -> None:
    cases = cases_of(1)
    with judge_server(lambda text, before: "drip") as (url, _):
        began = time.monotonic()
        replies = panel_at(url, tmp_path, replace(SETTINGS, attempts=1)).judge(cases, images_of(cases)).scores["A"]
    assert isinstance(replies[0], Unanswered) and "no answer within 1 s" in replies[0].reason
    assert time.monotonic() - began < 3


def test_a_judge_that_answered_before_is_not_given_up_for_what_it_refuses(tmp_path: Path) -> None:
    cases = cases_of(3 * vlm_client.MAX_MISSING_AT_FIRST)
    with judge_server(lambda text, before: "400" if int(text.rpartition("p")[2]) % 2 else "good") as (url, _):
        first = scores_of(panel_at(url, tmp_path).judge(cases, images_of(cases)).scores["A"])
        again = scores_of(panel_at(url, tmp_path).judge(cases, images_of(cases)).scores["A"])
    assert again == first and first.count(None) == len(cases) // 2


def test_a_refused_key_ends_it_at_once_and_is_not_repeated(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match=r"judge A \(model-A\) refuses with HTTP 401")
    with judge_server(lambda text, before: "401") as (url, log), refused as caught:
        panel_at(url, tmp_path).judge(cases_of(40), images_of(cases_of(40)))
    assert len(log.texts) <= 3 * SETTINGS.concurrency
    assert KEY not in str(caught.value)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert KEY not in repr(chain) and not (
            chain.__cause__ or (chain.__context__ and not chain.__suppress_context__)
        )
        chain = chain.__cause__


@pytest.mark.parametrize("trouble", ["400", "prose", "500"])
def test_a_judge_that_never_answers_is_given_up_early(tmp_path: Path, trouble: str) -> None:
    cases, settings = cases_of(200), replace(SETTINGS, attempts=2)
    given_up = pytest.raises(UserError, match=r"judge A \(model-A\) answered none of")
    with judge_server(lambda text, before: trouble) as (url, log), given_up as caught:
        panel_at(url, tmp_path, settings).judge(cases, images_of(cases))
    assert len(log.texts) < 60 and KEY not in str(caught.value)


def test_an_interrupted_evaluation_resumes_without_asking_again(tmp_path: Path) -> None:
    cases = cases_of(30)
    images = images_of(cases)
    with judge_server(lambda text, before: "good") as (url, log):
        first = panel_at(url, tmp_path, names="AB")
        with pytest.raises(KeyboardInterrupt):
            for number, _ in enumerate(first._asked([(j, "", score_question(c, i)) for j in first.judges
                                                     for c, i in zip(cases, images, strict=True)])):  # fmt: skip
                if number == 20:
                    raise KeyboardInterrupt
        first_asked = len(log.texts)
        stored = len(list(tmp_path.rglob("*.json")))
        assert 20 < stored == first_asked < 60
        second = panel_at(url, tmp_path, names="AB")
        replies = second.judge(cases, images).scores
        assert len(log.texts) == 60 and {n: log.texts.count(n) for n in log.texts} == dict.fromkeys(log.texts, 2)
        assert [judge.asked for judge in second.judges] == [30 - judge.found for judge in second.judges]
        third = panel_at(url, tmp_path, names="AB").judge(cases, images).scores
    assert replies == third and scores_of(replies["B"]) == [true_score(case.prompt) for case in cases]
    assert len(log.texts) == 60 and not list(tmp_path.rglob("*.part"))


def test_a_broken_cache_entry_is_asked_again(tmp_path: Path) -> None:
    cases = cases_of(2)
    with judge_server(lambda text, before: "good") as (url, log):
        panel_at(url, tmp_path).judge(cases, images_of(cases))
        broken, out_of_range = sorted(tmp_path.rglob("*.json"))
        broken.write_text('{"reply": "')
        entry = json.loads(out_of_range.read_text())
        out_of_range.write_text(json.dumps({**entry, "reply": entry["reply"].replace('"score": 2', '"score": 7')}))
        replies = panel_at(url, tmp_path).judge(cases, images_of(cases)).scores["A"]
    assert len(log.texts) == 4 and scores_of(replies) == [2.0, 2.01]


def test_the_cache_key_depends_on_all_that_the_answer_depends_on() -> None:
    image, other = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32, 3), np.uint8)
    case = Case("x", "edit", "object", "p", image)
    asked = [
        score_question(case, image),
        score_question(case, other),
        score_question(case, image.reshape(16, 64, 3)),
        score_question(replace(case, source=other), image),
        score_question(replace(case, prompt="q"), image),
        score_question(replace(case, category="style"), image),
        score_question(Case("x", "t2i", "text", "p"), image),
        choice_question(case, image, other),
        choice_question(case, other, image),
    ]
    wheres = [Endpoint("A", "http://a/v1", "m", "k"), Endpoint("A", "http://a/v1", "n", "k")]
    assert len({question.key(where) for question in asked for where in wheres}) == 2 * len(asked)
    same = Endpoint("B", "http://a/v1", "m", "another key")
    assert asked[0].key(wheres[0]) == score_question(replace(case, id="y"), image.copy()).key(same)


def test_both_orders_of_a_pair_are_asked_and_a_position_bias_shows(tmp_path: Path) -> None:
    case, (a, b) = cases_of(1)[0], images_of(cases_of(2))
    with judge_server(lambda text, before: "good") as (url, _):
        choices = panel_at(url, tmp_path).prefer([(case, a, b), (case, b, a)])["A"]
    assert [choice.winner for choice in choices if not isinstance(choice, Unanswered)] == ["A", "A"]


def test_a_judge_is_three_variables_and_what_is_wrong_with_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"BASE_URL": "https://judge.example/v1", "MODEL": "m", "API_KEY": KEY}
    environment = {f"WORKBENCH_JUDGE_A_{name}": value for name, value in whole.items()}
    found = endpoint("A", environment)
    assert (found.base_url, found.model, found.key) == tuple(whole.values()) and KEY not in repr(found)
    assert endpoint("A", {**environment, "WORKBENCH_JUDGE_A_API_KEY": ""}).key == NO_KEY
    for name in ("BASE_URL", "MODEL"):
        with pytest.raises(UserError, match=f"WORKBENCH_JUDGE_A_{name}"):
            endpoint("A", {**environment, f"WORKBENCH_JUDGE_A_{name}": " "})
    for url in ("judge.example", f"https://user:{KEY}@judge.example/v1", f"https://judge.example/v1?key={KEY}"):
        with pytest.raises(UserError, match="API_KEY") as caught:
            endpoint("A", {**environment, "WORKBENCH_JUDGE_A_BASE_URL": url})
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.judges=[local,vlms]", "did you mean 'vlm'"),
        ("evaluation.judges=[vlm,vlm]", "names one twice"),
        ("evaluation.vlm.judges=[]", "at least one"),
        ("evaluation.vlm.judges=[a-b]", "capital letters"),
        ("evaluation.vlm.judges=[A,A]", "twice"),
        ("evaluation.vlm.concurrency=0", "above 0"),
        ("evaluation.vlm.api_key=x", "unknown key evaluation.vlm.api_key"),
    ],
)
def test_impossible_judges_in_a_recipe_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_mapping({}, [override])


def reply_of(**changes: Any) -> str:
    reply = {"sub_scores": dict.fromkeys(T2I.axes, 4.0), "failure_modes": ["blur"], "reason": "Good.", "score": 4.25}
    return json.dumps({**reply, **changes})


def test_a_severe_failure_caps_the_overall_score_and_both_are_kept() -> None:
    found = parse_verdict(reply_of(sub_scores={"compliance": 1.99, "technical": 5}), T2I)
    assert (found.score, found.overall) == (SEVERE_CAP, 4.25)
    found = parse_verdict(reply_of(sub_scores={"compliance": 2, "technical": 5}), T2I)
    assert found.score == found.overall == 4.25
    uncritical = dict.fromkeys(EDITS["text"].axes, 4.0) | {"preservation": 1.0}
    found = parse_verdict(reply_of(sub_scores=uncritical), EDITS["text"])
    assert found.score == 4.25


@pytest.mark.parametrize(
    "changes",
    [
        {"score": 5.001}, {"score": 0.99}, {"score": True}, {"score": None}, {"score": "4"}, {"score": 10**400},
        {"score": float("inf")}, {"reason": ""}, {"reason": 3}, {"failure_modes": ["hunger"]},
        {"failure_modes": "blur"}, {"failure_modes": [["blur"]]}, {"sub_scores": {"compliance": 4}},
        {"sub_scores": {"compliance": 4, "technical": 4, "beauty": 4}},
        {"sub_scores": {"compliance": 4, "technical": 6}}, {"sub_scores": [4, 4]}, {"confidence": 1},
    ],
)  # fmt: skip
def test_a_reply_that_is_not_what_was_asked_for_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        parse_verdict(reply_of(**changes), T2I)


def test_what_is_around_the_object_makes_a_reply_malformed_but_for_a_fence() -> None:
    assert parse_verdict(f"```json\n{reply_of()}\n```", T2I) == parse_verdict(reply_of(), T2I)
    for text in (f"Here: {reply_of()}", reply_of() * 2, f"[{reply_of()}]", reply_of()[:-1], "", "[" * 100_000,
                 reply_of().replace('"score"', '"score": 1, "score"')):  # fmt: skip
        with pytest.raises(Malformed):
            parse_verdict(text, T2I)


@settings(max_examples=50)
@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_text_at_all_makes_a_parser_fail_otherwise(text: str) -> None:
    parsers: list[Callable[[str], object]] = [parse_choice, lambda reply: parse_verdict(reply, GENERAL_EDIT)]
    for parse in parsers:
        with pytest.raises(Malformed):
            parse(text)


def test_every_rubric_caps_on_axes_of_its_own() -> None:
    for rubric in (T2I, *EDITS.values(), GENERAL_EDIT):
        assert rubric.critical and {*rubric.critical} <= rubric.axes.keys()
        assert len({*rubric.failures}) == len(rubric.failures)
    assert rubric_of("edit", "text") is EDITS["text"] and rubric_of("t2i", "text") is T2I
    assert rubric_of("edit", "my own") is GENERAL_EDIT
