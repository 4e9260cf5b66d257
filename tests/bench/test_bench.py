"""The benchmark: what it measures and reports, and errors for bad options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import toy_family

from workbench.bench import __main__ as command
from workbench.bench.data import Shapes, random_batch, typical_seed
from workbench.bench.options import read as options_of
from workbench.bench.plain import PlainEngine
from workbench.common.errors import UserError
from workbench.method import rng

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = ["model=random:blocks=2,width=32,heads=2,text=24,channels=8", "device=cpu", "batch_size=2", "side=4"]


def test_a_report_of_both_engines_and_every_phase(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    code = command.main([*SMALL, "fake_updates=2", "repeats=2", "text_tokens=8", f"json={out}"])
    assert code == 0
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"t2i", "edit", "5:5"}
    for mix, result in results.items():
        samples = 2 * (2 if mix == "5:5" else 1) * (1 + 2)
        for engine in ("ours", "plain", "student_rollout"):
            row = result[engine]
            assert len(row["wall_s"]) == 2 and min(row["wall_s"]) > 0
            assert row["samples_per_s"] == pytest.approx(samples / row["median_s"])
        assert result["ours"]["speed_up"] > 0 and result["student_rollout"]["speed_up"] > 0
        phases = result["phases_s"]
        assert {"student rollout", "student graded: forward", "student graded: backward", "teacher", "optimiser"} < set(
            phases
        )
        assert min(phases.values()) >= 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["repeats"], "key=value"),
        (["repeat=3"], "repeat"),
        (["side=5"], "even"),
        (["batch_size=0"], "batch_size"),
        (["model=random:depth=3"], "depth=3"),
        (["model=random:width=100"], "width"),
        (["model=/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0]


def test_folders_of_a_family_that_brings_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_family.write_folder(tmp_path / "toy")
    with toy_family.known():
        assert command.main([f"model={tmp_path / 'toy'}"]) == 2
    assert "a ToyPipeline cannot be measured here" in capsys.readouterr().err


def test_prompts_are_padded_and_keep_the_reference_slots() -> None:
    batch = random_batch(Shapes(8, 20, 4, 6, 8, slots=4), "edit", seed=1, guided=True)
    layout = batch.condition.layout
    (reference,) = layout.references
    assert batch.condition.lengths.max() == layout.text_tokens and batch.condition.lengths.min() < layout.text_tokens
    assert batch.condition.lengths.min() > reference.slot + reference.num_slots
    assert batch.uncond is not None and torch.equal(batch.uncond.references, batch.condition.references)
    # As encoded data have it.
    assert layout.padded and batch.uncond.layout.padded


def test_overrides_read_back() -> None:
    options = options_of(["model=random:blocks=2,width=64", "cfg_scale=1.0", "mix=5:5"])
    assert (options.model, options.cfg_scale, options.mix) == ("random:blocks=2,width=64", 1.0, "5:5")
    with pytest.raises(UserError):
        options_of(["mix=both"])


def test_a_typical_seed_draws_what_the_law_expects() -> None:
    seed = typical_seed(4, 5, 2)

    def total(stream: str) -> int:
        return sum(rng.integer(4, seed=seed, stream=stream, step=update) for update in range(2))

    assert total("graded_step") == 3 and sum(total(f"fake{r}/step") for r in range(5)) == 15


FULL = ["size=full", *SMALL, "batch_size=1", "text_tokens=5", "compile=false", "repeats=1", "fake_updates=1"]


def test_a_full_size_report_holds_every_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "full.json"
    assert command.main([*FULL, "mix=edit", "phases=true", f"json={out}"]) == 0
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"edit"}
    assert set(results["edit"]) == {"ours", "plain", "student_rollout", "phases_s"}
    for name in ("ours", "plain", "student_rollout"):
        row = results["edit"][name]
        assert len(row["wall_s"]) == 1 and row["wall_s"][0] > 0
        assert name == "plain" or (row["speed_up"] > 0 and row["stored"] == 2)
    assert command.main([*FULL, "depth=3"]) == 2 and "depth" in capsys.readouterr().err


def test_one_failed_measurement_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(PlainEngine, "step", fails)
    assert command.main([*FULL, "mix=t2i"]) == 1
    printed = capsys.readouterr().out
    assert "RuntimeError: out of memory" in printed and "student_rollout" in printed
    assert printed.count(" x ") == 0, "no speed-up over what was not measured"


def test_the_second_family_is_measured_with_its_own_blocks(tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    words = ["pipeline=QwenImageEditPlusPipeline", "mix=edit", "phases=false", "reuse=none", f"json={out}"]
    assert command.main([*FULL, *words]) == 0
    row = json.loads(out.read_text())["results"]["edit"]["ours"]
    assert row["speed_up"] > 0 and row["stored"] == 2
