"""What a finished run draws: scored against its teacher, at which sizes, over which pictures."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_runs import in_folder, student_weights

from workbench.backbones import families
from workbench.common.errors import UserError
from workbench.evaluation.answer_cache import Store
from workbench.evaluation.metrics_file import Metrics
from workbench.recipe.config import Recipe
from workbench.runs import inference
from workbench.runs.runner import distill

ONE_CASE = ("evaluation.t2i_cases=1", "evaluation.editing_cases=1", "evaluation.split=search")


def scored(run: Path, shared: Store) -> tuple[Metrics, list[str]]:
    """Scores of a run on one case a category, and the folders that were loaded for them."""
    loaded, load = [], families.load

    def told(folder: str, **options: Any) -> Any:
        loaded.append(folder)
        return load(folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "load", told)
        metrics = inference.evaluate_run(run, [*ONE_CASE], shared=shared)
    assert metrics is not None
    return metrics, loaded


@pytest.fixture(scope="module")
def first_scored(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Metrics, list[str], Store]:
    """The finished run, and where the answers of its teacher are kept."""
    shared = Store(tmp_path_factory.mktemp("shared"))
    return *scored(finished, shared), shared


def test_a_teacher_that_answered_another_run_is_not_even_loaded(
    finished: Path, recipe: Recipe, first_scored: tuple[Metrics, list[str], Store]
) -> None:
    first, loaded, shared = first_scored
    assert sorted(loaded) == sorted([recipe.model.folder, str(finished / "student")])
    again, loaded = scored(finished, shared)
    assert loaded == [str(finished / "student")]
    assert again.few_step_selection == first.few_step_selection and again.comparisons == first.comparisons
    assert again.models["teacher"] == first.models["teacher"]


def test_the_choice_of_the_few_step_teacher_outlives_an_interruption(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, overrides = tmp_path / "run", ["evaluation.t2i_cases=1", "evaluation.editing_cases=1"]
    shutil.copytree(finished, run)
    loaded, load = [], families.load

    def told(folder: str, **options: Any) -> Any:
        loaded.append(folder)
        return load(folder, **options)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(families, "load", told)
    monkeypatch.setattr(inference, "evaluate", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            inference.evaluate_run(run, overrides)
    assert len(loaded) == 1, "the second time every answer is kept, and nothing is loaded"


def test_a_picture_to_edit_is_read_upright_and_named_where_it_cannot_be(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 6
    Image.new("RGB", (160, 64)).save(tmp_path / "photo.jpg", exif=orientation)
    inference.sample_image(str(finished), "add snow", [tmp_path / "photo.jpg"], tmp_path / "out.png", 0, resolution=64)
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.height > drawn.width
    with pytest.raises(UserError, match="--image .*none.png: cannot be read"):
        inference.sample_image(str(finished), "add snow", [tmp_path / "none.png"], tmp_path / "out.png", 0)


def test_a_picture_has_the_size_of_the_training_or_the_one_that_is_asked_for(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.png"
    Image.new("RGB", (300, 100), "red").save(tmp_path / "wide.png")

    def drawn(folder: Path, **options: Any) -> tuple[int, int]:
        inference.sample_image(str(folder), "a fox", options.pop("images", ()), out, 0, **options)
        with Image.open(out) as image:
            return image.size

    assert drawn(finished) == drawn(finished / "student") == (64, 64)
    assert drawn(finished, size="96x64") == (96, 64)
    assert drawn(finished, images=[tmp_path / "wide.png"]) == (96, 32)
    assert drawn(finished, images=[tmp_path / "wide.png"], size="64x96") == (64, 96)
    apart = shutil.copytree(finished / "student", tmp_path / "apart")
    index = json.loads((apart / "model_index.json").read_text())
    (apart / "model_index.json").write_text(json.dumps({**index, "_resolution": 32}))
    assert drawn(apart) == (32, 32)
    monkeypatch.setattr(inference, "FolderUnderTest", None)  # no model is loaded for a size that cannot be
    for size, message in (
        ("100x64", "multiples of 32 up to 8192; the nearest is 96x64"),
        ("0x64", "the nearest is 32x64"),
        ("99999x64", "the nearest is 8192x64"),
        ("128", "is not of the form WIDTHxHEIGHT"),
        ("-1x64", "is not of the form"),
        ("٦٤x64", "is not of the form"),
    ):
        with pytest.raises(UserError, match=message):
            drawn(finished, size=size)
    with pytest.raises(UserError, match="--image: 2 source images, and the pipeline folder takes 1"):
        drawn(finished, images=[tmp_path / "wide.png"] * 2)


def test_a_folder_that_says_nothing_draws_at_the_size_of_its_family(finished: Path, tmp_path: Path) -> None:
    assert families.resolution_of(families.resolve("tiny")) == 128
    for stored in (None, "128", 0, -1, 10**9, True):
        (tmp_path / "model_index.json").write_text(
            json.dumps({"_class_name": "QwenImage21Pipeline", "_resolution": stored})
        )
        assert families.resolution_of(tmp_path) == 1024


def test_milestones_are_scored_as_the_evaluation_does_and_change_nothing(
    finished: Path, recipe: Recipe, tmp_path: Path, first_scored: tuple[Metrics, list[str], Store]
) -> None:
    """The last milestone is the finished student's: scored through its export, it gets the same."""
    evaluation = replace(recipe.evaluation, milestone_cases=1, t2i_cases=1, editing_cases=1, split="search")
    run = distill(replace(in_folder(recipe, tmp_path / "scored", sample_every=2), evaluation=evaluation))
    rows = [json.loads(line) for line in (run / "milestones.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [2, 4] and all(row["alarm"] == 0 for row in rows)
    assert all(math.isfinite(row["distance"]) for row in rows)
    benches = first_scored[0].models["student"].benches
    assert rows[-1]["t2i"] == pytest.approx(benches["t2i_bench"]["mean"].mean, abs=1e-3)
    assert rows[-1]["editing"] == pytest.approx(benches["editing_bench"]["mean"].mean, abs=1e-3)
    assert rows[-1]["score"] == pytest.approx((rows[-1]["t2i"] + rows[-1]["editing"]) / 2)
    for name, weight in student_weights(finished).items():
        assert torch.equal(weight, student_weights(run)[name])
