"""Evaluation with judges behind an API, end to end, and what it would cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from judge_server import KEY, judge_server, true_score
from rich.console import Console

from studies.tiny_model import judge_weights
from workbench import cli
from workbench.evaluation.cases.case import Case
from workbench.evaluation.diversity import DIVERSITY_SAMPLES
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.judges import local_network, vlm_client, vlm_judge
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.judges.vlm_judge import panel, score_question
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.panel_cost import cost
from workbench.evaluation.tables import print_metrics
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping
from workbench.reporting.page import report

pytest.importorskip("openai")
HEADS = {"category": ("landscape", "portrait", "text"), "sky": ("day", "night"), "objects": ("tree", "house", "car")}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> LocalJudge:
    folder = tmp_path_factory.mktemp("judge")
    config = local_network.JudgeConfig(HEADS, resolution=32, widths=(8, 8, 8, 8), num_features=8)
    judge_weights.save(local_network.JudgeNetwork(config), folder, {})
    return LocalJudge(folder)


@pytest.fixture(autouse=True)
def _judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm_client, "BACKOFF_S", 0.01)
    monkeypatch.setattr(vlm_judge, "MIN_SIDE", 64)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in "AB":
        monkeypatch.setenv(f"WORKBENCH_JUDGE_{name}_MODEL", f"model-{name}")
        monkeypatch.setenv(f"WORKBENCH_JUDGE_{name}_API_KEY", KEY)


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "AB":
        monkeypatch.setenv(f"WORKBENCH_JUDGE_{name}_BASE_URL", url)


def cases_of(count: int) -> list[Case]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 2, 32, 32, 3), dtype=np.uint8)
    t2i = [Case(f"t{i}", "t2i", "landscape", f"p{i}", None, pictures[i, 1]) for i in range(count)]
    return t2i + [Case(f"e{i}", "edit", "object", f"p{100 + i}", *pictures[i]) for i in range(count)]


def noisy(nfe: int) -> ModelUnderTest:
    """Another picture for every case, seed and nfe."""

    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        return [np.random.default_rng([s, nfe]).integers(0, 256, (32, 32, 3), dtype=np.uint8) for s in seeds], 0.1

    return ModelUnderTest(draw, nfe, {"steps": nfe})


def recipe(folder: Path, **changes: object) -> Recipe:
    vlm = {"cache": str(folder / "cache"), "attempts": 2, "timeout_s": 2.0, "pairs": 2}
    evaluation = {"num_bootstrap": 50, "judges": ["local", "vlm"], "vlm": vlm, "seeds": [0, 1], **changes}
    return from_mapping({"data": {"resolution": 32}, "evaluation": evaluation})


def test_scores_missing_ones_preferences_and_no_key_end_to_end(
    judge: LocalJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cases, models = cases_of(5), {"teacher": noisy(80), "student": noisy(4)}
    chosen = recipe(tmp_path)
    with judge_server(lambda text, before: "prose" if text.endswith("p3") else "good") as (url, log):
        point_to(url, monkeypatch)
        found_now = evaluate(models, chosen, tmp_path, cases=cases, judges=[judge, panel(chosen.evaluation.vlm)])
        metrics = found_now.as_dict()
        answered = len(log.texts)
        again = evaluate(models, chosen, tmp_path, cases=cases, judges=[judge, panel(chosen.evaluation.vlm)]).as_dict()
        # Only p3 is asked again: twice a judge, model and seed, and as often as it stands in a comparison.
        assert set(log.texts[answered:]) == {"Prompt: p3"}
    found = metrics["models"]["student"]["vlm"]["B"]
    assert found["n"] == 18 and found["missing"]["count"] == 2
    assert list(found["missing"]["reasons"]) == ["malformed: not one JSON object"]
    expected = np.mean([true_score(case.prompt) for case in cases[:5] if case.prompt != "p3"])
    assert found["t2i_bench"]["mean"]["mean"] == pytest.approx(expected) and found["t2i_bench"]["mean"]["n"] == 4
    assert (
        metrics["vlm"]["A"]["asked"] == len(cases) * 4 + 2 * 2 * 2
    )  # cases by models and seeds; categories, pairs, orders
    assert again["models"]["student"]["vlm"] == metrics["models"]["student"]["vlm"]
    comparison = next(row for row in metrics["vlm"]["A"]["comparisons"] if row["bench"] == "t2i_bench")
    assert comparison["n"] == 4 and comparison["difference"] == 0
    # The server always prefers what it sees first: in both orders together, nobody.
    preference = metrics["preference"]["A"]
    assert preference["orders_agree"] == 0 and preference["pairs"] == 4
    assert preference["log_strength"]["student"]["mean"] == pytest.approx(0)
    lines = [json.loads(line) for line in (tmp_path / "evaluation/vlm.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 * 20 and sum(line["score"] is None for line in lines) == 2 * 2 * 2
    print_metrics(found_now, Console(width=200))
    page = report(tmp_path).read_text()
    shown = "".join(capfd.readouterr())
    assert "malformed: not one JSON object" in page and "2 x malformed" in shown
    written = shown + "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    assert KEY not in written and "[key]" in written


def test_an_evaluation_cut_short_asks_only_for_the_rest(
    judge: LocalJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        raise KeyboardInterrupt

    cases, chosen = cases_of(4), recipe(tmp_path)
    with judge_server(lambda text, before: "good") as (url, log):
        point_to(url, monkeypatch)
        models = {"teacher": noisy(80), "student": ModelUnderTest(interrupted, 4, {})}
        with pytest.raises(KeyboardInterrupt):
            evaluate(models, chosen, tmp_path, cases=cases, judges=[judge, panel(chosen.evaluation.vlm)]).as_dict()
        assert len(log.texts) == 8 * 2 * 2 and not (tmp_path / "metrics.json").exists()
        models["student"] = noisy(4)
        metrics = evaluate(
            models, chosen, tmp_path, cases=cases, judges=[judge, panel(chosen.evaluation.vlm)]
        ).as_dict()
        assert len(log.texts) == cost(cases, 2, chosen.data, chosen.evaluation).calls
    assert metrics["vlm"]["A"]["from_cache"] == 8 * 2 and metrics["models"]["teacher"]["vlm"]["A"]["n"] == 8 * 2


def test_a_category_without_any_answer_leaves_no_benchmark_mean(
    judge: LocalJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [*cases_of(3), *(Case(f"x{i}", "t2i", "portrait", f"x{i}") for i in range(2))]
    chosen = recipe(tmp_path, seeds=[0])
    with judge_server(lambda text, before: "400" if "x" in text else "good") as (url, _):
        point_to(url, monkeypatch)
        judges = panel(chosen.evaluation.vlm)
        metrics = evaluate({"student": noisy(4)}, chosen, tmp_path, cases=cases, judges=[judge, judges]).as_dict()
    bench = metrics["models"]["student"]["vlm"]["A"]["t2i_bench"]
    assert bench["landscape"]["n"] == 3
    assert bench["portrait"] == bench["mean"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert "</html>" in report(tmp_path).read_text()


def test_the_cost_said_beforehand_is_the_number_of_calls_made(
    judge: LocalJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, models, chosen = cases_of(3), {"teacher": noisy(80), "student": noisy(4)}, recipe(tmp_path)
    planned = cost(cases, 2, chosen.data, chosen.evaluation)
    with judge_server(lambda text, before: "good") as (url, log):
        point_to(url, monkeypatch)
        evaluate(models, chosen, tmp_path, cases=cases, judges=[judge, panel(chosen.evaluation.vlm)]).as_dict()
    assert planned.calls == len(log.texts) and planned.images == 2 * (2 * 6 + DIVERSITY_SAMPLES * 3)
    small = score_question(cases[0], np.zeros((32, 32, 3), np.uint8)).prompt_tokens()
    monkeypatch.setattr(vlm_judge, "MIN_SIDE", 512)
    shown = score_question(cases[0], np.zeros((32, 32, 3), np.uint8)).prompt_tokens()
    assert shown - small == pytest.approx((512**2 - 64**2) / 28**2, abs=1)
    assert cost(cases, 2, chosen.data, chosen.evaluation).prompt_tokens > planned.prompt_tokens > 64 * 200
    assert cost(cases, 2, chosen.data, recipe(tmp_path, judges=["local"]).evaluation).calls == 0


def test_a_dry_run_asks_and_writes_nothing_and_a_missing_variable_is_named(
    tmp_path: Path, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ["evaluation.judges=[local,vlm]", "evaluation.t2i_cases=2", "evaluation.editing_cases=1"]
    command = ["evaluate", str(tiny_pipeline_folder), *keys, "data.resolution=64"]
    assert cli.main([*command, "--dry-run"]) == 0
    assert "at most 24 calls" in " ".join(capsys.readouterr().out.split()) and not list(tmp_path.iterdir())
    assert cli.main(command) == 2
    assert "WORKBENCH_JUDGE_A_BASE_URL" in capsys.readouterr().err and not list(tmp_path.iterdir())
