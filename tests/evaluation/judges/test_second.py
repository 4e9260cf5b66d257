"""The second judge reads the world as the first does, by another network, and what both say is compared."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from studies.tiny_model import judge_data
from studies.tiny_model.corruptions import CORRUPTIONS, corrupt
from studies.tiny_model.judge_check import predict, right
from workbench.evaluation.answer_cache import Answer, Store
from workbench.evaluation.answers import Answers, answer
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges import networks
from workbench.evaluation.judges.local import ASSET, Judgement, LocalJudge
from workbench.evaluation.judges.local_network import preprocess
from workbench.evaluation.judges.second import ASSET as SECOND_ASSET
from workbench.evaluation.judges.second import SECOND, SecondJudge
from workbench.evaluation.measures.answer_measures import Measures
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.panel_metrics import agreement


@cache
def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = judge_data.render("report", 0, 130, 128, 0)
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def test_every_attribute_of_held_out_renders_is_read() -> None:
    network = networks.load(SECOND_ASSET)
    assert type(network) is not type(networks.load(ASSET))
    images, labels = held_out()
    logits = predict(network, preprocess(images, 128), torch.device("cpu"))
    found = {name: values.nanmean().item() for name, values in right(logits, labels).items()}
    assert found["word"] >= 0.9 and found["objects"] >= 0.95
    assert min(value for name, value in found.items() if name != "word") >= 0.95
    assert np.mean([*found.values()]) >= 0.97


@cache
def quality(name: str | None, severity: float) -> float:
    """Mean technical quality of held-out renders under a corruption, or as they are."""
    images = held_out()[0][:24].permute(0, 3, 1, 2).float() / 255
    kinds = torch.full((len(images),), -1 if name is None else list(CORRUPTIONS).index(name))
    severities = torch.full((len(images),), severity)
    damaged = corrupt(images, kinds, severities, torch.Generator().manual_seed(0))
    rated = predict(networks.load(SECOND_ASSET), damaged * 2 - 1, torch.device("cpu"))["technical"]
    return float(rated.mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_quality_falls_with_every_damage(name: str) -> None:
    rated = [quality(None, 0.0), *(quality(name, severity) for severity in (0.3, 0.6, 1.0))]
    assert rated == sorted(rated, reverse=True)


def answers_of(local: list[float], second: list[float]) -> Answers:
    rows = [
        Answer(str(i), "t2i_bench", "ab"[i % 2], 0, Judgement(score, None, None, None), Measures(noise=0.0))
        for i, score in enumerate(local)
    ]
    return Answers(rows, verdicts={SECOND: [Judgement(score, None, None, None) for score in second]})


def test_agreement_counts_pairs_of_models_and_ranks_cases() -> None:
    low, high = [1.0, 1.5, 2.0, 2.2], [3.0, 4.0, 3.2, 4.4]
    same = agreement({"a": answers_of(low, low), "b": answers_of(high, high)}, SECOND)
    assert same is not None and (same.alike, same.pairs) == (2, 2)
    assert same.differences is not None and (same.differences.value, same.differences.n) == (1, 4)
    other = agreement({"a": answers_of(low, high), "b": answers_of(high, low)}, SECOND)
    assert other is not None and other.alike == 0 and other.differences is not None
    assert other.differences.value == pytest.approx(-1)
    assert agreement({"a": answers_of(low, low)}, SECOND) is None
    flat = agreement({"a": answers_of(low, [2.0] * 4), "b": answers_of(high, [2.0] * 4)}, SECOND)
    assert flat is not None and flat.alike == 0 and flat.differences is None


def test_its_verdicts_are_kept_with_the_answers(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    drawn = []

    def draw(cases: list[Case], seeds: list[int]) -> tuple[list[np.ndarray], float]:
        drawn.append(len(cases))
        return list(pictures), 0.1

    cases = [Case(f"t{i}", "t2i", "sky", "p", None, None, {"sky": "day"}, {}, ("sky",)) for i in range(4)]
    model = ModelUnderTest(draw, 4, {}, "weights")  # type: ignore[arg-type]
    judges = [LocalJudge(device="cpu"), SecondJudge()]
    first, again = (answer(model, cases, [0], judges, store=Store(tmp_path)) for _ in range(2))
    assert drawn == [4] and first.verdicts == again.verdicts and len(first.verdicts[SECOND]) == 4
    assert first.verdicts[SECOND] != [row.judgement for row in first.rows]


def test_the_terminal_says_whether_it_agrees(tmp_path: Path) -> None:
    from workbench.evaluation.metrics_file import Agreement, JudgeRecord, Metrics, ModelMetrics, Value
    from workbench.evaluation.tables import print_metrics

    record = JudgeRecord("vision transformer", agreement=Agreement(25, 27, Value(0.81, n=600)))
    metrics = Metrics(
        vlm={SECOND: record}, models={"student": ModelMetrics()}, seconds={"total": {"wall": 1, "cpu": 1}}
    )
    console = Console(record=True, width=200)
    print_metrics(metrics, console)
    assert "judge second orders 25 of 27 pairs of models by category as the local one; rank" in console.export_text()
