"""The zoo's report on a random folder and an untrained judge: every row, taken up again, and put into the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from datamodules.openmoji import HEADS, MAX_CHARACTERS, MULTI_LABEL
from studies.tiny_model import figures, judge_weights, measured, report
from studies.tiny_model.benchmarks import benchmarks, markdown
from studies.tiny_model.judge_data import vocabulary
from workbench.backbones import families
from workbench.common.arguments import read_options
from workbench.common.errors import UserError
from workbench.evaluation.diversity import DIVERSITY_SAMPLES
from workbench.evaluation.judges import local_network
from workbench.method.rollout import Sampling
from workbench.sampling.sampler import Sampler


@pytest.fixture(scope="module")
def options(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> figures.Options:
    place = tmp_path_factory.mktemp("zoo")
    folder = place / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    (folder / "README.md").write_text("# A model\n\nwords before\n")
    transformer = families.load(str(folder)).transformer
    layer = "transformer_blocks.0.attn.to_q"
    width = transformer.get_submodule(layer).weight.shape
    (folder / "specialists").mkdir()
    adapter = {"lora_A": torch.randn(2, width[1]), "lora_B": torch.randn(width[0], 2)}
    named = {f"transformer.{layer}.{half}.weight": tensor for half, tensor in adapter.items()}
    save_file(named, folder / "specialists" / "portrait.safetensors")
    heads = vocabulary(HEADS)
    config = local_network.JudgeConfig(heads, tuple(MULTI_LABEL), MAX_CHARACTERS, widths=(8, 8, 8, 8), num_features=8)
    judge_weights.save(local_network.JudgeNetwork(config), place / "judge", {})
    (place / "run").mkdir()
    (place / "run" / "student").symlink_to(folder)
    return figures.Options(
        folder=str(folder),
        judge=str(place / "judge"),
        second_judge=str(place / "judge"),
        out=str(place / "out"),
        docs=str(place / "docs"),
        cases=2,
        choosing=1,
        seeds=[0, 1],
        student=str(place / "run"),
        card=True,
    )


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "CFG_SCALES", (1.0, 2.0))
    monkeypatch.setattr(figures, "TEACHER_STEPS", 3)
    monkeypatch.setattr("workbench.backbones.qwen_image_21.model.DEFAULT_SAMPLING", Sampling(1))


def test_every_section_is_measured_written_and_taken_up_again(
    options: figures.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = report.report(options)
    told = {figure.what: figure for rows in found.values() for figure in rows}
    for what in (
        "autoencoder, PSNR on text, dB",
        "judge, word",
        "second judge, word",
        "judge, compliance under wrong captions",
        "teacher, best CFG",
        "teacher, T2I, sky exactly right",
        "teacher, edits, kept (mean axis)",
        "teacher, T2I, two words exactly right",
        "teacher, T2I, hard text, letters right (1 - edit distance / length)",
        "teacher, editing_bench, style less hard text, 1 to 5",
        "teacher, least lower end of these, 1 to 5",
        "t2i_bench, headroom",
        "editing_bench, headroom",
        "Frechet distance, ratio at equal n",
        "specialist portrait less base, its own",
        "specialist portrait less base, elsewhere",
        "reader of pattern, right",
        "reader of typeface of damaged pictures, right",
        "base, signature of text among free choices",
        "specialist portrait, signature of portrait among free choices, pattern",
        "student, signature of portrait among free choices",
        "size of the largest file, MB",
    ):
        assert what in told, sorted(told)
    assert told["t2i_bench, headroom"].n == 6 and told["teacher, edits, kept (mean axis)"].low is not None
    assert len([what for what in told if "Spearman" in what]) >= 6
    sheets = json.loads((Path(options.docs) / "index.json").read_text())
    assert {sheet["category"] for sheet in sheets} >= {"landscape", "portrait", "text", "identity", "style"}
    assert len(sheets[-1]["columns"]) == 5 and (Path(options.docs) / sheets[-1]["file"]).is_file()
    card = (Path(options.folder) / "README.md").read_text()
    assert card.startswith("# A model\n\nwords before\n") and card.count(report.BEGIN) == 1

    def refuse(zoo: figures.Zoo) -> list[figures.Figure]:
        raise AssertionError("measured twice")

    monkeypatch.setattr(report, "SECTIONS", {**dict.fromkeys(report.SECTIONS, refuse), "sizes": measured.sizes})
    again = report.report(options)
    # As text: what could not be read is NaN in both.
    before, after = (str({name: rows for name, rows in of.items() if name != "sizes"}) for of in (found, again))
    assert before == after
    assert (Path(options.folder) / "README.md").read_text().count(report.BEGIN) == 1


def test_other_weights_are_measured_anew(options: figures.Options, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(options.folder, other)
    before = figures.Zoo(options)
    after = figures.Zoo(replace(options, folder=str(other)))
    assert report.key_of(before) == report.key_of(after)
    next((other / "transformer").glob("*.safetensors")).write_bytes(b"other")
    assert report.key_of(before) != report.key_of(after)
    assert report.key_of(before) != report.key_of(figures.Zoo(replace(options, seeds=[0])))


def test_bad_words_and_a_foreign_judge_are_user_errors(options: figures.Options, tmp_path: Path) -> None:
    for words, message in ((["cass=2"], "cass=2"), (["cases=many"], "cases"), (["cases"], "no option")):
        with pytest.raises(UserError, match=message):
            read_options(figures.Options, words)
    config = local_network.JudgeConfig({"sky": ("day",)}, (), widths=(8, 8, 8, 8), num_features=8)
    judge_weights.save(local_network.JudgeNetwork(config), tmp_path, {})
    with pytest.raises(UserError, match="another vocabulary"):
        measured.judge(figures.Zoo(replace(options, judge=str(tmp_path))))


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high, n = figures.wilson(0.9, 100)
    assert (low, high, n) == (pytest.approx(0.8256, abs=1e-3), pytest.approx(0.9448, abs=1e-3), 100)


def test_the_page_of_benchmarks_takes_up_what_the_report_drew(
    options: figures.Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the report, only what it did not ask is drawn: repeated answers to one prompt."""
    asked: list[int] = []
    sample = Sampler.sample

    def count(self: Sampler, cases: Sequence[object], *rest: object) -> object:
        asked.append(len(cases))
        return sample(self, cases, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "sample", count)
    metrics = benchmarks(options, tmp_path / "page.md")
    assert list(metrics["models"]) == ["teacher", "specialist_portrait", "teacher_few_step", "student"]
    num_prompts = 3 * options.cases
    assert asked == [num_prompts] * 4 * DIVERSITY_SAMPLES
    page = (tmp_path / "page.md").read_text()
    for row in ("| real |", "| teacher few step | 4 |", "| specialist portrait |", "| student | 1 |"):
        assert row in page
    assert "nan" not in page and "None" not in page


def test_a_reading_that_no_model_has_gets_no_column(options: figures.Options, tmp_path: Path) -> None:
    metrics = benchmarks(options, tmp_path / "page.md")
    for model in (metrics["ceiling"], *metrics["models"].values()):
        model["secondary"]["kid"] = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 30}
    assert "| KID |" in markdown(metrics)
    for model in (metrics["ceiling"], *metrics["models"].values()):
        model["secondary"]["kid"] = None
    assert "| KID |" not in markdown(metrics)


def test_a_specialist_of_pictures_is_measured_on_what_it_was_trained_on() -> None:
    """Editing a text is another category than writing one; one of edits is for all of them."""
    cells = [("t2i_bench", "text"), ("t2i_bench", "portrait"), ("editing_bench", "text"), ("editing_bench", "object")]
    assert [cell for cell in cells if measured.is_own("text", *cell)] == cells[:1]
    assert [cell for cell in cells if measured.is_own("editing", *cell)] == cells[2:]
