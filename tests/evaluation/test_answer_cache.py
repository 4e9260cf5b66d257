"""An evaluation that was interrupted goes on without drawing again, and only where everything is as it was."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from studies.tiny_model import judge_weights
from workbench.common.fingerprint import fingerprint
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.answers import Answers, answer
from workbench.evaluation.cases.case import Case
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.judges import local_network
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.metrics_file import Metrics
from workbench.evaluation.models import ModelUnderTest
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping

HEADS = {"sky": ("day", "night"), "objects": ("tree", "house")}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> LocalJudge:
    folder = tmp_path_factory.mktemp("judge")
    config = local_network.JudgeConfig(HEADS, resolution=32, widths=(8, 8, 8, 8), num_features=8)
    judge_weights.save(local_network.JudgeNetwork(config), folder, {})
    return LocalJudge(folder, device="cpu")


def make_cases() -> list[Case]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    t2i = [Case(f"t{i}", "t2i", "a", "p", None, pixels[i], {"sky": "day"}, {}, ("sky",)) for i in range(6)]
    edits = [Case(f"e{i}", "edit", "b", "q", pixels[6 + i], pixels[12 + i]) for i in range(6)]
    return [*t2i, *edits]


class Drawing:
    """Draws noise of the seed; fails at the call that it is told to fail at."""

    def __init__(self, fails_at: int = -1) -> None:
        self.calls, self.fails_at = 0, fails_at

    def model(self, mark: str = "weights") -> ModelUnderTest:
        def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
            if self.calls == self.fails_at:
                raise KeyboardInterrupt
            self.calls += 1
            return [np.random.default_rng(s).integers(0, 256, (32, 32, 3), dtype=np.uint8) for s in seeds], 1.5

        return ModelUnderTest(draw, 4, {"steps": 4}, mark)


def recipe() -> Recipe:
    return from_mapping({"evaluation": {"num_bootstrap": 50, "seeds": [0, 1]}})


def equal(a: Answers, b: Answers) -> bool:
    images = a.images.keys() == b.images.keys() and all(np.array_equal(a.images[k], b.images[k]) for k in a.images)
    return images and a.rows == b.rows and np.array_equal(np.stack(a.features), np.stack(b.features))


def test_an_interrupted_evaluation_goes_on_and_gives_the_same_numbers(judge: LocalJudge, tmp_path: Path) -> None:
    cases = make_cases()
    whole = evaluate({"model": Drawing().model()}, recipe(), tmp_path / "whole", cases=cases, judges=[judge])
    cut = Drawing(fails_at=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate({"model": cut.model()}, recipe(), tmp_path / "cut", cases=cases, judges=[judge])
    # The targets of two tasks are kept too.
    assert cut.calls == 3 and len(list((tmp_path / "cut/evaluation/partial").glob("*.npz"))) == 3 + 2
    resumed = Drawing()
    found = evaluate({"model": resumed.model()}, recipe(), tmp_path / "cut", cases=cases, judges=[judge])
    # Two tasks under two seeds are four chunks, and four calls ask for diversity.
    assert resumed.calls == 1 + 4
    assert replace(found, seconds={}) == replace(whole, seconds={})
    for name in ("evaluation/cases.jsonl", "samples/evaluation/t2i-a.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "cut/evaluation/partial").exists()


def test_only_the_same_question_is_answered_from_the_store(judge: LocalJudge, tmp_path: Path) -> None:
    cases, store = make_cases(), Store(tmp_path)

    def ask(model: ModelUnderTest, of: Sequence[Case], seed: int = 0, keep: Sequence[str] = ("t0",)) -> Answers:
        return answer(model, of, [seed], [judge], keep, store)

    first = Drawing()
    fresh = ask(first.model(), cases)
    assert equal(ask(first.model(), cases), fresh) and first.calls == 2
    assert set(fresh.images) == {("t0", 0)} and fresh.seconds == 3
    repainted = [replace(cases[0], target=cases[1].target), *cases[1:]]
    renamed = [replace(cases[0], prompt="another"), *cases[1:]]
    for model, of, seed, keep, drawn in (
        (first.model("other"), cases, 0, ["t0"], 2),
        (replace(first.model(), sampling={"steps": 5}), cases, 0, ["t0"], 2),
        (first.model(), cases, 1, ["t0"], 2),
        (first.model(), repainted, 0, ["t0"], 1),
        (first.model(), renamed, 0, ["t0"], 1),
        (first.model(), cases, 0, ["t1"], 1),
        (first.model(""), cases, 0, ["t0"], 2),
        (first.model(""), cases, 0, ["t0"], 2),
    ):
        before = first.calls
        ask(model, of, seed, keep)
        assert first.calls - before == drawn
    for path in tmp_path.glob("*.lock"):
        path.unlink()
    assert equal(ask(Drawing(fails_at=0).model(), cases), fresh) and not [*tmp_path.glob("*.lock")], "it only reads"
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert equal(ask(Drawing().model(), cases), fresh)


def test_other_noise_is_another_question(judge: LocalJudge, tmp_path: Path) -> None:
    def ask(stream: str) -> Answers:
        return answer(Drawing().model(), make_cases(), [0], [judge], ["t0"], Store(tmp_path), stream=stream)

    assert not equal(ask(""), ask("diversity/")) and equal(ask("diversity/"), ask("diversity/"))


def test_of_several_runs_that_ask_one_model_at_once_one_draws(judge: LocalJudge, tmp_path: Path) -> None:
    """The store that the model brings, not that of the run, keeps what it answers, diversity included."""
    shared, drawing = Store(tmp_path / "shared"), Drawing()

    def run(name: str) -> Metrics:
        models = {"teacher": replace(drawing.model(), store=shared)}
        of = make_cases()
        found = evaluate(models, recipe(), tmp_path / name, cases=of, judges=[judge], shared=shared)
        return replace(found, seconds={})

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(run, "abc")
    assert drawing.calls == 4 + 4 and others == [first, first]
    # The targets of both tasks and the sources of edits are judged once too.
    assert len(list(shared.folder.glob("*.npz"))) == 8 + 3


def test_runs_that_ask_one_model_at_once_share_its_chunks(judge: LocalJudge, tmp_path: Path) -> None:
    """Each draws what no other is drawing: all are at it at once, though none draws a chunk twice."""
    together, calls = Barrier(4), Counter[str]()

    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        calls[f"{cases[0].id} {seeds[0]}"] += 1
        together.wait(timeout=20)
        return [np.zeros((32, 32, 3), np.uint8) for _ in cases], 1.0

    def ask(_: int) -> Answers:
        model = ModelUnderTest(draw, 4, {"steps": 4}, "weights")
        return answer(model, make_cases(), [0, 1], [judge], store=Store(tmp_path))

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(ask, range(4))
    # Two tasks under two seeds.
    assert sorted(calls.values()) == [1, 1, 1, 1] and all(equal(first, other) for other in others)
    assert [row.case for row in first.rows] == [case.id for _ in range(2) for case in make_cases()]


def test_the_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.safetensors").write_bytes(b"weights")
    (tmp_path / "a" / "config.json").write_text("{}")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("words")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "x.safetensors").write_bytes(b"Weights")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_seconds_by_phase_add_up_to_the_whole(judge: LocalJudge, tmp_path: Path) -> None:
    evaluate({"model": Drawing().model()}, recipe(), tmp_path, cases=make_cases(), judges=[judge])
    seconds = json.loads((tmp_path / "metrics.json").read_text())["seconds"]
    assert {"judging", "measuring", "statistics", "files", "other", "total"} <= seconds.keys()
    for kind in ("wall", "cpu"):
        parts = sum(of[kind] for name, of in seconds.items() if name != "total")
        assert parts == seconds["total"][kind] or abs(parts - seconds["total"][kind]) < 0.02
    assert all(of["wall"] >= -1e-3 for of in seconds.values())
