"""Files of published benchmarks, made up in their forms, as cases: counts, categories, prompts, images, errors."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workbench.cli import main
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.case_file import read_jsonl
from workbench.evaluation.cases.convert import forms

ROOT = Path(__file__).parents[3]


def picture(colour: str, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(out, format=kind)
    return out.getvalue()


def converted(tmp_path: Path, form: str, files: list[Path], *keys: str) -> list[Case]:
    out = tmp_path / "out" / "cases.jsonl"
    out.parent.mkdir(exist_ok=True)
    assert main(["cases", form, *map(str, files), str(out), *keys]) == 0
    return read_jsonl(out)


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, content)) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(text)
    return path


IMAGE_BENCH = [
    {
        "ID": 1,
        "prompt_en": "A poster.",
        "prompt_cn": "海报。",
        "dims_en": "Quality / Detail / Naturalness; Creative Generation / Text Rendering / Text Accuracy",
    },
    {"ID": 2, "prompt_en": "A man.", "prompt_cn": "人。", "dims_en": "Aesthetics / Anatomical Portraiture / Anatomy"},
    {
        "ID": 3,
        "prompt_en": "A hill.",
        "prompt_cn": "山。",
        "dims_en": "Alignment / Scene / Scene; Quality / Detail / X",
    },
    {"ID": 4, "prompt_en": "A cube.", "prompt_cn": "方。", "dims_en": "Real-world Fidelity / Fairness / Bias"},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_prompts_with_several_dimensions(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The released file has a row for every model's answer: the same prompt comes many times."""
    rows, path = [*IMAGE_BENCH, *IMAGE_BENCH[:2]], tmp_path / f"bench{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    cases = converted(tmp_path, "image-bench", [path])
    assert [(case.id, case.category) for case in cases] == [
        ("image-bench-1", "text"),
        ("image-bench-2", "portrait"),
        ("image-bench-3", "landscape"),
        ("image-bench-4", "real-world fidelity"),
    ]
    told = capsys.readouterr().out
    assert "4 cases of Qwen-Image-Bench" in told and "2 rows that repeat one" in told and "Apache-2.0" in told
    assert [case.prompt for case in cases] == [row["prompt_en"] for row in IMAGE_BENCH]
    chinese = converted(tmp_path, "image-bench", [path], "language=cn")
    assert [case.prompt for case in chinese] == [row["prompt_cn"] for row in IMAGE_BENCH]


def test_long_texts_are_what_a_right_answer_shows(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": 0, "category": "sign", "length": "short", "prompt": 'A sign: "OPEN late".', "text": "OPEN late"},
        {"prompt_id": 1, "category": "poster", "length": "long", "prompt": "A poster.", "text": ["Big", "Sale\ntoday"]},
    ]
    files = [write(tmp_path / name, rows) for name in ("text_prompts.jsonl", "text_prompts_zh.jsonl")]
    cases = converted(tmp_path, "longtext", files)
    assert len({case.id for case in cases}) == 4 and {case.category for case in cases} == {"text"}
    assert [case.text for case in cases] == ["OPEN late", "Big Sale today"] * 2


def test_several_texts_in_one_picture(tmp_path: Path) -> None:
    row = {
        "index": 7,
        "prompt": "Two signs.",
        "carrier_list": ["a sign", "a wall"],
        "sentence_list": ["STOP", "GO now"],
    }
    files = [write(tmp_path / kind / "2.json", {"data_list": [row]}) for kind in ("CVTG", "CVTG-Style")]
    cases = converted(tmp_path, "cvtg", files)
    assert [(case.id, case.text) for case in cases] == [
        ("cvtg-CVTG-2-7", "STOP GO now"),
        ("cvtg-CVTG-Style-2-7", "STOP GO now"),
    ]


def test_edits_in_a_parquet_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ["background_change", "tone_transfer", "subject-add", "text_change", "ps_human", "style_change", "new_kind"]
    rows = [
        {
            "task_type": kind,
            "key": f"k{at}",
            "instruction": f"Do {kind}.",
            "instruction_language": language,
            "input_image": {"bytes": picture("green"), "path": "x.png"},
            "input_image_raw": {"bytes": picture("red", "JPEG"), "path": None},
            "Intersection_exist": True,
        }
        for at, kind in enumerate(kinds)
        for language in ("en", "cn")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gedit.parquet")
    cases = converted(tmp_path, "gedit", [tmp_path / "gedit.parquet"])
    expected = ["scene", "enhance", "object", "text", "identity", "style", "new_kind"]
    assert [case.category for case in cases] == expected
    assert all(case.task == "edit" and case.prompt == f"Do {kind}." for case, kind in zip(cases, kinds, strict=True))
    assert cases[0].source is not None and cases[0].source.shape == (32, 48, 3)
    assert np.abs(cases[0].source[0, 0].astype(int) - (255, 0, 0)).max() <= 2, "the raw image, not the resized one"
    assert "7 rows of another language" in capsys.readouterr().out


def test_edits_with_images_in_a_folder(tmp_path: Path) -> None:
    rows = {
        "1082": {"id": "animal/1.jpg", "prompt": "Smooth its shell.", "edit_type": "adjust"},
        "5": {"id": "animal/1.jpg", "prompt": "Let it jump.", "edit_type": "action"},
    }
    path = write(tmp_path / "basic_edit.json", rows)
    (tmp_path / "animal").mkdir()
    (tmp_path / "animal" / "1.jpg").write_bytes(picture("blue", "JPEG"))
    cases = converted(tmp_path, "imgedit", [path])
    assert [(case.id, case.category) for case in cases] == [("imgedit-1082", "object"), ("imgedit-5", "identity")]


@pytest.mark.parametrize(
    ("form", "name", "content", "match"),
    [
        ("gedit", "a.json", {"1": {"id": "x"}}, "not of the form of GEdit-Bench"),
        ("imgedit", "a.json", [{"id": "x"}], "not of the form of ImgEdit-Bench"),
        ("imgedit", "a.json", {"1": {"id": "x.png", "prompt": "p", "edit_type": "add"}}, "put ImgEdit-Bench"),
        ("imgedit", "a.json", {"1": {"id": "../../x.png", "prompt": "p"}}, "has no edit_type, only key, id, prompt"),
        ("cvtg", "a.json", {"data": []}, "no list of objects under data_list"),
        ("longtext", "a.jsonl", [{"prompt_id": 1, "prompt": "p"}], "text must be a text"),
        ("longtext", "a.jsonl", IMAGE_BENCH, "a.jsonl, row 1: has no prompt_id, only ID, prompt_en"),
        ("image-bench", "a.jsonl", [{**IMAGE_BENCH[0]}, {**IMAGE_BENCH[0], "prompt_en": "other"}], "another prompt"),
        ("image-bench", "a.txt", [], "comes as .json"),
        ("image-bench", "a.json", [], "holds no rows"),
        ("imagebench", "a.json", [], "no form 'imagebench'.*image-bench"),
    ],
)
def test_a_file_of_another_form_is_one_clear_line(
    form: str, name: str, content: Any, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    path = write(tmp_path / name, content)
    assert main(["cases", form, str(path), str(tmp_path / "out.jsonl")]) == 2
    error = capsys.readouterr().err
    assert re.search(match, error) and error.count("\n") == 1 and not (tmp_path / "out.jsonl").exists()


def test_the_documented_table_is_the_one_that_is_used() -> None:
    text = (ROOT / "docs" / "cases.md").read_text()
    for name, form in forms().items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert form.title in row and form.licence in row
        for kind, category in form.categories.items():
            assert f"{kind} → {category}" in row
