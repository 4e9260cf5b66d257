"""One study end to end, as its make target runs it: data, two trials with specialists, milestones, report."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_adapter import write_adapter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from studies.analysis import arms, collapse
from studies.machine import options
from workbench.cli import main

SMOKE = str(options.RECIPES / "smoke.yaml")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_arms_of_the_guidance_study_from_data_to_report(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("portrait", "text", "editing"):
        write_adapter(tmp_path / f"{name}.safetensors", tiny_pipeline_folder)
    small = [f"model.folder={tiny_pipeline_folder}", "data.resolution=64"]
    assert main(["pack", SMOKE, *small]) == 0
    assert main(["encode", SMOKE, *small]) == 0
    specialists = "{portrait: portrait.safetensors, text: text.safetensors, editing: editing.safetensors}"
    words = ["trials=2", f"teachers.specialists={specialists}", "evaluation.milestone_cases=1"]
    assert main(["study", "teacher-guidance", f"recipe={SMOKE}", *small, *words]) == 0
    folder = tmp_path / "runs" / "studies" / "teacher-guidance"
    assert main(["report", str(folder)]) == 0
    found = {arm.name: arm for arm in arms.read_arms(folder, arms.read_study(folder))}
    finished = [name for name, arm in found.items() if arm.finished]
    assert finished == ["base-alone", "step-wise"]
    assert all(arms.tables([found[name]], "score")[0] for name in finished), "every case of every trial is known"
    at_end = [collapse.milestones_of(folder, found[name]) for name in finished]
    assert all(list(of) == [2] and len(of[2]) == 9 for of in at_end), "and at every milestone"
    page = (folder / "report.html").read_text()
    assert "score at milestones" in page and "Side by side" in page and page.count("data:image/webp") == 9
    (events,) = [EventAccumulator(str(run / "tensorboard")).Reload() for run in folder.glob("trial-*1")]
    tags = events.Tags()
    assert {"samples", "lambda"} <= set(tags["images"]) and {"search/score", "milestone/score"} <= set(tags["scalars"])
    assert "_hparams_/session_start_info" in events.summary_metadata
