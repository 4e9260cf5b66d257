"""Judges behind servers of one's own: the shapes in which vLLM and SGLang reply, repeats, agreement without a local
judge, and which judges a file of cases gets by default."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import judge_server
from rich.console import Console

from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.case_file import read_jsonl, write_jsonl
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.judges import vlm_client
from workbench.evaluation.judges.choose import judges_left_out, named_judges
from workbench.evaluation.judges.vlm_client import _text_of
from workbench.evaluation.judges.vlm_judge import panel
from workbench.evaluation.judges.vlm_prompts import T2I
from workbench.evaluation.judges.vlm_reply import Malformed, mean_verdict, parse_verdict
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.panel_cost import cost
from workbench.evaluation.tables import print_metrics
from workbench.recipe.config import Data, Evaluation
from workbench.recipe.reading import from_mapping

pytest.importorskip("openai")


def reply(score: float = 4.0) -> str:
    sub_scores = dict.fromkeys(T2I.axes, 4.0)
    return json.dumps({"sub_scores": sub_scores, "failure_modes": [], "reason": "Fine.", "score": score})


def vllm(**message: Any) -> dict[str, Any]:
    """`ChatCompletionResponse` of vLLM."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "refusal": None, "annotations": None, "tool_calls": [], **message},
                "logprobs": {"content": [{"token": "{", "logprob": -0.1, "bytes": [123], "top_logprobs": []}]},
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
            }
        ],
        "service_tier": None,
        "usage": {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": None},
        "prompt_logprobs": None,
        "kv_transfer_params": None,
    }


def sglang(**message: Any) -> dict[str, Any]:
    """`ChatCompletionResponse` of SGLang."""
    message = {"role": "assistant", "tool_calls": None, **message}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "matched_stop": 151645}
    usage = {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3, "reasoning_tokens": 0}
    return {"id": "1", "object": "chat.completion", "model": "judge", "choices": [choice], "usage": usage,
            "metadata": {"weight_version": "default"}}  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        vllm(content=reply(), reasoning="Let me see."),
        vllm(content="\n\n" + reply(), reasoning_content="Let me see."),
        vllm(content=f"<think>\nIs {{this}} good?\n</think>\n\n{reply()}"),
        vllm(content=f"Is it good?\n</think>\n```json\n{reply()}\n```"),
        vllm(content=[{"type": "text", "text": reply()}]),
        sglang(content=reply(), reasoning_content="Let me see."),
        sglang(content=reply(), reasoning_content=None),
    ],
    ids=["reasoning", "reasoning_content", "thoughts", "no start", "parts", "sglang", "sglang plain"],
)
def test_replies_of_servers_are_read(body: dict[str, Any]) -> None:
    assert parse_verdict(_text_of(json.dumps(body).encode()), T2I).score == 4


def test_thoughts_that_filled_the_reply_say_what_to_raise() -> None:
    body = vllm(content=None, reasoning="Let me see, and see, and")
    with pytest.raises(Malformed, match="thoughts without an answer"):
        _text_of(json.dumps(body).encode())
    body["choices"][0]["finish_reason"] = "length"
    with pytest.raises(Malformed, match=r"cut short among its thoughts: raise evaluation\.vlm\.max_tokens"):
        _text_of(json.dumps(body).encode())


def test_a_mean_verdict_keeps_every_score() -> None:
    verdict = mean_verdict([parse_verdict(reply(score), T2I) for score in (3.0, 4.0, 5.0)])
    assert verdict.score == 4 and verdict.repeats == (3.0, 4.0, 5.0) and verdict.details()["repeats"] == [3.0, 4.0, 5.0]


def photographs() -> list[Case]:
    return [Case(f"c{at}", "t2i", "street", f"p{at}") for at in range(5)]


def drawing(level: int) -> ModelUnderTest:
    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        return [np.full((32, 32, 3), level + int(case.id[1:]), np.uint8) for case in cases], 0.1

    return ModelUnderTest(draw, 4, {"steps": 4})


def test_a_judge_that_is_asked_twice_tells_its_noise_and_two_judges_whether_they_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm_client, "BACKOFF_S", 0.01)
    with judge_server(lambda text, before: "good") as (url, log):
        for name in "AB":
            monkeypatch.setenv(f"WORKBENCH_JUDGE_{name}_BASE_URL", url)
            monkeypatch.setenv(f"WORKBENCH_JUDGE_{name}_MODEL", f"model-{name}")
        vlm = {"cache": str(tmp_path / "cache"), "repeats": 2}
        recipe = from_mapping({"data": {"resolution": 32}, "evaluation": {"judges": ["vlm"], "vlm": vlm}})
        models = {"teacher": drawing(10), "student": drawing(60)}
        cases = photographs()
        judges = [panel(recipe.evaluation.vlm)]
        metrics = evaluate(models, recipe, tmp_path / "out", cases=cases, judges=judges)
        assert len(log.texts) == cost(cases, 2, recipe.data, recipe.evaluation).calls == 2 * 2 * 2 * len(cases)
        asked = len(log.texts)
        evaluate(models, recipe, tmp_path / "out", cases=cases, judges=[panel(recipe.evaluation.vlm)])
        assert len(log.texts) == asked, "every repeat is cached apart"
    first, second = metrics.vlm["A"], metrics.vlm["B"]
    assert first.noise is not None and (first.noise.value, first.noise.n) == (0.0, 10)
    assert first.agreement is None and second.agreement is not None and second.agreement.other == "A"
    assert (second.agreement.alike, second.agreement.pairs) == (1, 1)
    console = Console(width=200, record=True)
    print_metrics(metrics, console)
    printed = console.export_text()
    assert "by category as judge A" in printed and "judge A scores one answer with a deviation of 0.00, n=10" in printed


def test_judges_of_the_world_leave_out_cases_of_others(tmp_path: Path) -> None:
    write_jsonl(photographs(), tmp_path / "photographs.jsonl")
    chosen = Evaluation(cases=str(tmp_path / "photographs.jsonl"))
    cases = read_jsonl(Path(chosen.cases))
    assert named_judges(chosen, cases) == [] and "leave" not in judges_left_out(Evaluation(), cases)
    assert "know the world that ships alone" in judges_left_out(chosen, cases)
    also = Evaluation(cases=chosen.cases, judges=["local", "second", "vlm"])
    assert named_judges(also, cases) == ["vlm"]
    alone = Evaluation(cases=chosen.cases, judges=["local"])
    assert named_judges(alone, cases) == ["local"] and not judges_left_out(alone, cases)
    known = [*cases, Case("k", "t2i", "mine", "A tree.", scene={"objects": ["tree"]}, named=("objects",))]
    assert named_judges(chosen, known) == ["local", "second"]
    assert cost(cases, 1, Data(resolution=32), chosen).images == len(cases)
