"""Evaluation end to end with models that copy targets, so that the order of the outcomes is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from studies.tiny_model import judge_weights
from workbench.backbones import families
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import single_role
from workbench.common.errors import UserError
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.compare import compare_runs
from workbench.evaluation.evaluate import evaluate, select_few_step
from workbench.evaluation.judges import local_network
from workbench.evaluation.judges.judge import LOCAL
from workbench.evaluation.judges.local import Judgement, LocalJudge
from workbench.evaluation.metrics_file import read
from workbench.evaluation.models import Encodings, ModelUnderTest, few_step_candidates, from_sampler
from workbench.method.rollout import Sampling
from workbench.recipe.config import Recipe
from workbench.recipe.reading import from_mapping
from workbench.sampling.sampler import Sampler

HEADS = {"category": ("landscape", "portrait", "text"), "sky": ("day", "night"), "objects": ("tree", "house", "car")}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> LocalJudge:
    folder = tmp_path_factory.mktemp("judge")
    config = local_network.JudgeConfig(HEADS, resolution=32, widths=(8, 8, 8, 8), num_features=8)
    judge_weights.save(local_network.JudgeNetwork(config), folder, {})
    return LocalJudge(folder)


def make_cases(count: int = 6) -> list[Case]:
    """Cases that name nothing: an untrained judge then scores quality and pixels alone."""
    rng = np.random.default_rng(0)
    cases = []
    for i in range(count):
        source, target = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        target[:, :16] = source[:, :16]
        scene = {"category": "landscape", "sky": "day", "objects": ["tree"]}
        cases.append(Case(f"t{i}", "t2i", "landscape", f"p{i} <b>", None, target, scene))
        cases.append(Case(f"e{i}", "edit", "object", f"q{i}", source, target, scene))
    return sorted(cases, key=lambda case: case.task, reverse=True)


def copier(damage: int, nfe: int = 4) -> ModelUnderTest:
    """Answers with the target, off by `damage` grey levels and by noise of the case's own."""

    def draw(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[np.ndarray], float]:
        images = []
        for case, seed in zip(cases, seeds, strict=True):
            assert case.target is not None
            noise = np.random.default_rng(seed).integers(0, 3, case.target.shape)
            images.append(np.clip(case.target.astype(int) + damage + noise, 0, 255).astype(np.uint8))
        return images, 0.5

    return ModelUnderTest(draw, nfe, {"steps": nfe})


def recipe(**evaluation: object) -> Recipe:
    return from_mapping({"evaluation": {"num_bootstrap": 100, **evaluation}})


def test_identical_images_are_judged_identically_whatever_they_stand_beside(judge: LocalJudge) -> None:
    cases = make_cases()
    images = [case.target for case in cases if case.target is not None]
    together = judge.judge(cases, images).scores[LOCAL]
    alone = [judge.judge([case], [image]).scores[LOCAL][0] for case, image in zip(cases, images, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert isinstance(a, Judgement) and isinstance(b, Judgement)
        assert a.score == pytest.approx(b.score, abs=1e-5) and a.attributes == b.attributes


def test_metrics_have_the_shape_and_pair_the_models(judge: LocalJudge, tmp_path: Path) -> None:
    models = {"teacher": copier(0, 80), "teacher_few_step": copier(60), "student": copier(0)}
    metrics = evaluate(models, recipe(seeds=[0, 1]), tmp_path, cases=make_cases(), judges=[judge])
    assert read(tmp_path / "metrics.json") == metrics
    student, few = metrics.models["student"], metrics.models["teacher_few_step"]
    assert student.nfe == 4 and student.n == 24 and student.seconds_per_image == pytest.approx(2 / 24)
    assert set(student.benches["t2i_bench"]) == {"landscape", "mean"} and student.benches["t2i_bench"]["mean"].n == 6
    assert student.frechet is not None and few.frechet is not None and student.frechet.value < few.frechet.value
    same = [row for row in metrics.comparisons if (row.a, row.b) == ("student", "teacher")]
    assert [row.difference for row in same] == [0, 0]
    assert {row.verdict for row in same} == {"no difference shown"}
    sheets = json.loads((tmp_path / "samples/evaluation/index.json").read_text())
    assert all((tmp_path / "samples/evaluation" / sheet["file"]).is_file() for sheet in sheets)


def test_runs_on_the_same_cases_compare_paired_and_others_refuse(judge: LocalJudge, tmp_path: Path) -> None:
    for name, damage in (("a", 0), ("b", 90)):
        evaluate({"student": copier(damage)}, recipe(), tmp_path / name, cases=make_cases(), judges=[judge])
    evaluate({"student": copier(0)}, recipe(seeds=[7]), tmp_path / "c", cases=make_cases(), judges=[judge])
    forth, back = (compare_runs(tmp_path / x, tmp_path / y) for x, y in (("a", "b"), ("b", "a")))
    edits = forth["editing_bench"]["mean"]
    assert edits.n == 6 and edits.mean == pytest.approx(-back["editing_bench"]["mean"].mean)
    assert edits.mean > 0
    with pytest.raises(UserError, match="different cases or seeds"):
        compare_runs(tmp_path / "a", tmp_path / "c")
    with pytest.raises(UserError, match="workbench evaluate"):
        compare_runs(tmp_path / "a", tmp_path)


def test_selection_finds_the_better_candidate(judge: LocalJudge) -> None:
    best, rows = select_few_step([copier(90), copier(0, 5)], recipe(), judge, cases=make_cases())
    assert best.nfe == 5 and [row["nfe"] for row in rows] == [5, 4]


def test_every_few_step_candidate_costs_four_evaluations() -> None:
    assert {how.nfe for how in few_step_candidates(1.5)} == {4}
    assert len(few_step_candidates(1.5)) == 8
    assert len(few_step_candidates(1.0)) == 4
    assert Sampling(4, times=(1.0, 0.9, 0.75, 0.5)).grid().tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_noise_follows_the_case_and_the_seed_alone() -> None:
    case, other = make_cases()[:2]
    assert case.noise_seed(0) == Case(case.id, "t2i", "x", "y").noise_seed(0)
    assert len({case.noise_seed(0), case.noise_seed(1), other.noise_seed(0)}) == 3


def test_a_smaller_benchmark_is_a_prefix_of_a_larger_one() -> None:
    small, large = world_cases("edit", "search", 1, 64), world_cases("edit", "search", 2, 64)
    assert [case.id for case in small] == [case.id for case in large][::2]
    assert len({case.id for case in large}) == 12


def test_a_real_pipeline_answers_alike_in_any_company(tiny_pipeline_folder: Path) -> None:
    loaded = families.load(str(tiny_pipeline_folder))
    denoiser = RoleDenoiser(single_role(loaded), "teacher")
    cases = world_cases("t2i", "search", 1, 64)[:2] + world_cases("edit", "search", 1, 64)[:1]
    models = [
        from_sampler(Sampler(loaded, denoiser), Encodings(loaded, 64, 8), Sampling(2, 3.0, scale))
        for scale in (1.0, 2.0)
    ]
    assert [model.nfe for model in models] == [2, 4]
    for model in models:
        together, _ = model.draw(cases, [case.noise_seed(0) for case in cases])
        alone, _ = model.draw(cases[1:2], [cases[1].noise_seed(0)])
        other, _ = model.draw(cases[1:2], [cases[1].noise_seed(1)])
        assert np.abs(together[1].astype(int) - alone[0].astype(int)).max() <= 1
        assert np.abs(together[1].astype(int) - other[0].astype(int)).max() > 1
