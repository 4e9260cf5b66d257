"""The report: renders whatever is there, escapes every text, needs nothing from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.common.errors import UserError
from workbench.reporting.page import report

EVIL = "<script>alert('x')</script> & \"quotes\""


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 20}


def model(nfe: int, mean: float) -> dict[str, object]:
    t2i = {name: interval(mean) for name in ("landscape", "portrait", "text", "mean")}
    return {"nfe": nfe, "n": 60, "seconds_per_image": 0.1, "sampling": {"steps": nfe}, "t2i_bench": t2i,
            "diversity": None, "frechet": None}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    metrics = {
        "recipe": "abc",
        "split": "report",
        "seeds": [0],
        "models": {"teacher": model(80, 3.5), "student": model(4, 3.2)},
        "comparisons": [
            {"a": "student", "b": "teacher", "bench": "t2i_bench", "difference": -0.3, "low": -0.4, "high": -0.2,
             "verdict": "teacher better"}
        ],
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    lines = [
        {"update": 5 * i, "loss": 1 / (i + 1), "mixture/t2i/text": 0.5, "mixture/edit/text": 0.5} for i in range(4)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"update": 25, "lo')
    (tmp_path / "recipe.yaml").write_text(
        "mixture: {tasks: {t2i: 0.5, edit: 0.5}}\nteachers: {specialists: {portrait: p}}\n"
        f"guidance: {{tables: {{default: [[1, 0], [0.5, 0.5]]}}}}\n# {EVIL}\n"
    )
    (tmp_path / "environment.json").write_text(json.dumps({"torch": EVIL}))
    sheets = tmp_path / "samples" / "evaluation"
    sheets.mkdir(parents=True)
    for path in (tmp_path / "samples" / "update-000005.png", sheets / "t2i-text.png"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    rows = [{"prompt": EVIL, "scores": {"student": 3.0}}]
    sheet = {"file": "t2i-text.png", "task": "t2i", "category": "text", "columns": ["student"], "rows": rows}
    (sheets / "index.json").write_text(json.dumps([sheet]))
    return tmp_path


def test_run_report_escapes_every_text_and_loads_nothing(run: Path) -> None:
    page = report(run).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith(("data:", "#")), address
    assert "url(http" not in page and "@import" not in page
    assert page.count("data:image/webp") == 2


def test_run_report_says_what_was_left_out_of_the_data(run: Path) -> None:
    left_out = {"broken": [f"sample {EVIL}"], "ignored": {".cls": 7}, "warned": {"have long captions": 3}}
    record = {"samples": 12_345, "categories": ["t2i/custom"], "resolution": 256, "left_out": left_out}
    (run / "data.json").write_text(json.dumps(record))
    html = report(run).read_text()
    for part in (
        "12,345 samples of t2i/custom at data.resolution=256",
        "1 broken samples left out, named in index.json",
        "ignored: 7 .cls",
        "warning: 3 samples have long captions",
    ):
        assert part in html
    assert EVIL not in html
    (run / "data.json").write_text('{"samples": -1}')
    assert "broken samples" not in report(run).read_text()


def test_run_report_shows_scores_verdicts_mixture_and_lambda(run: Path) -> None:
    page = report(run).read_text()
    assert "3.10 to 3.30" in page and "Teacher better" in page and "50.0 %" in page and "step 1" in page


def test_a_schedule_is_drawn_as_the_table_that_it_becomes(run: Path) -> None:
    """The chart of a switch to 0.7 at step 2 is that of its rows written out."""

    def chart(guidance: str) -> str:
        (run / "recipe.yaml").write_text(f"teachers: {{specialists: {{portrait: p}}}}\nguidance: {guidance}\n")
        return report(run).read_text().split("student step</h3>")[1].split("</svg>")[0]

    rows = "[[1, 0], [1, 0], [0.3, 0.7], [0.3, 0.7]]"
    scheduled = chart("{schedules: {t2i: {kind: switch, at: 2, weights: {portrait: 0.7}}}}")
    assert scheduled == chart(f"{{tables: {{t2i: {rows}}}}}") and ">0.7<" in scheduled
    assert "alone at every step" in chart("{schedules: {t2i: {kind: swich}}}")


def test_where_curves_are_many_the_losses_stay_and_the_throughput_goes(run: Path) -> None:
    losses = [
        f"loss/{term}/{task}" for term in ("fake_score", "student", "classifier", "data") for task in ("t2i", "edit")
    ]
    names = [*losses, "x0_gap/t2i", "x0_gap/edit", *(f"throughput/{name}" for name in ("a", "b", "c"))]
    lines = [json.dumps({"update": i, **dict.fromkeys(names, 0.5)}) for i in range(4)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = report(run).read_text()
    assert [name for name in names if f">{name}<" not in page] == ["throughput/c"]


def test_diagnostics_are_a_map_of_the_later_half_of_the_run_and_no_curves(run: Path) -> None:
    lines = [{"update": i, "loss": 1.0, "per_step/x0_gap/t2i/text/step1": 0.5 if i > 4 else 99.0} for i in range(8)]
    lines[6]["per_step/x0_gap/edit/scene/step0"] = 0.125
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(run).read_text()
    section = page.split("by student step</h3>")[1].split("</svg>")[0]
    assert ">x0_gap<" in section and ">edit/scene<" in section and ">0.12<" in section
    assert f">{(99 + 3 * 0.5) / 4:.2g}<" in section and "per_step/" not in page


@pytest.mark.parametrize("missing", ["metrics.json", "metrics.jsonl", "recipe.yaml", "environment.json", "samples"])
def test_run_report_stands_without_any_one_part(run: Path, missing: str) -> None:
    path = run / missing
    path.rename(run / "gone")
    assert "</html>" in report(run).read_text()


def test_minimal_run_and_strange_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run"):
        report(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        report(tmp_path / "none")
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    page = report(tmp_path).read_text()
    assert "No metrics.json" in page and "No mixture was logged" in page
