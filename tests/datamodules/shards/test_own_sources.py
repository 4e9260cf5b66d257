"""Images and prompts as people have them: every form gives the same samples, and what cannot be says so by its name."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shard_fakes import png

from datamodules.shards.left_out import Tally
from datamodules.shards.pack import FINISHED, PackSummary, pack
from datamodules.shards.raw import raw_shards, read_raw
from datamodules.shards.user_images import list_own
from workbench.common.errors import UserError
from workbench.recipe.config import Data, Recipe

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

ROWS = [
    ("red.png", "a red field", ""),
    ("new.png", "make it new, please", "old.png"),
    ("", "只有文字\nsecond line", ""),
]
TEXTS = {None: ["a red field", "只有文字\nsecond line"], "old": ["make it new, please"]}


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("red.png", "new.png", "old.png")):
        (folder / name).write_bytes(png(seed, (90, 60)))
    return folder


def run_pack(source: Path, raw: Path, **values) -> PackSummary:
    data = {"source": str(source), "raw": str(raw), "resolution": 64, "num_workers": 0, **values}
    return pack(Recipe(data=Data(**data)))


def samples_of(raw: Path) -> list[tuple[str, bool, str]]:
    found = [sample for shard in raw_shards(str(raw)) for sample in read_raw(shard)]
    assert all(sample.target is None or sample.target.size == (96, 64) for sample in found)
    return [(sample.text, sample.target is not None, sample.task) for sample in found]


EXPECTED = [(text, bool(image), "edit" if source else "t2i") for image, text, source in ROWS]


def as_rows(names: tuple[str, str, str]) -> list[dict[str, Any]]:
    return [{name: value for name, value in zip(names, row, strict=True)} for row in ROWS]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    match path.suffix:
        case ".csv":
            write_csv(path, rows)
        case ".jsonl":
            path.write_text("".join(json.dumps({k: v or None for k, v in row.items()}) + "\n\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(
    "names",
    [
        ("image", "caption", "source"),
        ("file_name", "text", "source_image"),
        ("image", "prompt", "edit_image"),
        ("edited_image", "edit_prompt", "input_image"),
    ],
)
def test_tables_of_every_form_and_maker(suffix: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    own = pictures(tmp_path / "own")
    table = write_table(own / f"list{suffix}", as_rows(names))
    summary = run_pack(table, tmp_path / "raw")
    assert samples_of(tmp_path / "raw") == EXPECTED and summary.left_out.broken == []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_hugging_face_folder_is_read_by_its_metadata(suffix: str, tmp_path: Path, capsys) -> None:
    pictures(tmp_path / "own" / "train")
    pictures(tmp_path / "own" / "test")
    (tmp_path / "own" / "README.md").write_text("a card")
    (tmp_path / "own" / "train" / "unlisted.jpg").write_bytes(png(9))
    (tmp_path / "own" / "train" / "notes.txt").write_text("not a caption")
    rows = [{**row, "width": 90} for row in as_rows(("file_name", "text", "source"))]
    write_table(tmp_path / "own" / "train" / f"metadata{suffix}", rows)
    write_table(tmp_path / "own" / "test" / f"metadata{suffix}", [{"file_name": "red.png", "text": "a test"}])
    summary = run_pack(tmp_path / "own", tmp_path / "raw")
    assert samples_of(tmp_path / "raw") == [("a test", True, "t2i"), *EXPECTED]
    # 2 pictures of the test split are in no table
    assert summary.left_out.ignored == {"column width": 1, ".jpg": 1, ".md": 1, ".txt": 1, ".png": 2}
    assert "ignored: 2 .png, 1 column width" in capsys.readouterr().out


def embedded(path: Path, image: bytes | None, as_struct: bool) -> Any:
    if not as_struct:
        return image
    return {"bytes": image, "path": None if image else path.name}


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_with_its_pictures_inside(as_struct: bool, tmp_path: Path) -> None:
    own = pictures(tmp_path / "own")
    rows = []
    for image, text, source in ROWS * 2:
        picture = embedded(own / image, (own / image).read_bytes() if image else None, as_struct and bool(image))
        before = embedded(own / source, (own / source).read_bytes() if source else None, as_struct and bool(source))
        rows.append({"image": picture, "prompt": text, "edit_image": before})
    # HF's own way for pictures that stay outside: no bytes, a path
    if as_struct:
        rows[0]["image"] = {"bytes": None, "path": "red.png"}
    parquet.write_table(pyarrow.Table.from_pylist(rows), own / "train-00000.parquet", row_group_size=2)
    run_pack(own, tmp_path / "raw", samples_per_shard=4)
    assert samples_of(tmp_path / "raw") == EXPECTED * 2


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = pictures(tmp_path / "own")
    table = write_table(own / "list.parquet", as_rows(("image", "caption", "source")))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'few-step-workbench\[parquet\]'"):
        run_pack(table, tmp_path / "raw")


@pytest.mark.parametrize("content", [b"", b"PAR1 and more", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_what_is_no_parquet_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.parquet is no Parquet file"):
        run_pack(tmp_path / "x.parquet", tmp_path / "raw")


@pytest.mark.parametrize("inside", ["the file", "the folder"])
def test_a_list_of_prompts_is_one_sample_a_line(inside: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "prompts.txt").write_bytes("\ufeffa fox\r\n\r\nein Schild, „Ö\u2028k“\na cat".encode())
    source = tmp_path / "own" / "prompts.txt" if inside == "the file" else tmp_path / "own"
    summary = run_pack(source, tmp_path / "raw")
    assert summary.counts == {"t2i/custom": 3}
    texts = [text for text, *_ in samples_of(tmp_path / "raw")]
    assert texts == ["a fox", "ein Schild, „Ö\u2028k“", "a cat"]


def test_twenty_thousand_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"a sign that says {i}\n" for i in range(20_000)))
    samples = list_own(Data(source=str(tmp_path / "prompts.txt")), Tally())
    assert len(samples) == 20_000 and samples[-1].text == "a sign that says 19999"


def test_lists_of_prompts_between_other_files_are_named(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own")
    (own / "red.txt").write_text("a red field\n\nof two paragraphs, which a caption may have")
    for name in ("new.png", "old.png"):
        (own / name).unlink()
    (own / "prompts.txt").write_text("a fox\n" * 200)
    with pytest.raises(UserError, match=r"prompts\.txt has 200 lines and no picture.*name the file itself"):
        run_pack(own, tmp_path / "raw")


def test_tables_that_captions_make_superfluous_are_counted(tmp_path: Path, capsys) -> None:
    own = pictures(tmp_path / "own")
    for name in ("red", "new", "old"):
        (own / f"{name}.txt").write_text("a field")
    write_table(own / "list.csv", as_rows(("image", "caption", "source")))
    assert run_pack(own, tmp_path / "raw").left_out.ignored == {"list.csv": 1}
    assert "ignored: 1 list.csv" in capsys.readouterr().out


GAP = "sources are numbered 1, 2, 3 and so on without a gap"
WRONG: dict[str, tuple[dict[str, bytes], str]] = {
    "a list of images": ({"x.jsonl": b'{"text": "x", "image": ["a.png", "b.png"]}'}, "line 1: several images"),
    "a hole in a list": ({"x.jsonl": b'{"text": "x", "edit_image": ["a.png", null]}'}, "line 1: the source is null"),
    "an empty column": ({"x.csv": b"prompt,source1,source2\nx,,b.png\n"}, f"line 2: has source_2: {GAP}"),
    "two names of one source": ({"x.csv": b"prompt,source,source1\nx,a.png,\n"}, "and source1, both for the source"),
    "a numbered gap": ({"a.txt": b"x", "a.source1.png": png(1), "a.source3.png": png(1)}, f"source, source_3: {GAP}"),
    "two source files": ({"a.txt": b"x", "a.source.png": png(1), "a.source1.png": png(1)}, "the same key 'a'"),
    "two names of one column": ({"x.csv": b"prompt,text\nx,y\n"}, "columns prompt and text, both for the caption"),
    "no caption in the header": ({"x.csv": b"image,words\na.png,x\n"}, "it needs caption"),
    "no caption in a line": ({"x.jsonl": b'{"image": "a.png"}'}, r"line 1: .*it needs caption"),
    "an empty caption": ({"x.jsonl": b'{"text": "y"}\n{"text": " "}'}, "line 2: the caption is empty"),
    "a caption that is a number": ({"x.jsonl": b'{"text": 5}'}, "line 1: the caption is no text"),
    "a broken line": ({"x.jsonl": b'{"text": "y"}\n{"text":'}, "x.jsonl, line 2: not valid JSON"),
    "a picture that is not there": ({"x.jsonl": b'{"text": "y", "image": "no.png"}'}, r"line 1: there is no .*no\.png"),
    "a picture with a nul": ({"x.jsonl": b'{"text": "y", "image": "a\\u0000.png"}'}, "line 1: there is no"),
    "a picture that is a number": ({"x.jsonl": b'{"text": "y", "image": 7}'}, "the image is 7, not the path"),
    "an object instead of a list": ({"x.json": b'{"text": "y"}'}, r"x\.json: must be an array|x\.json: .*list"),
    "a caption of a book": ({"x.csv": b"text\n" + b"y" * 30_000}, "line 2: the caption has 30,000 characters"),
    "a prompt of a book": ({"x.txt": b"a fox\n" + b"y" * 30_000}, "line 2: the prompt has 30,000 characters"),
    "a caption file of a book": ({"a.png": png(1), "a.txt": b"y" * 30_000}, r"a\.txt has 30,000 characters"),
    "a thin picture": ({"a.png": png(1, (4000, 8)), "a.txt": b"y"}, r"a is 4000 x 8 pixels.*data\.min_side"),
    "a dot": ({"a.png": png(1, (1, 1)), "a.txt": b"y"}, "a is 1 x 1 pixels"),
    "a long picture": ({"a.png": png(1, (500, 100)), "a.txt": b"y"}, r"5 to 1, beyond data\.max_aspect=4"),
    "other frames": ({"a.png": png(1), "a.source.png": png(1, (128, 64)), "a.txt": b"y"}, "nobody can tell what lies"),
}  # fmt: skip
SKIPPED = {
    "a list of images", "a hole in a list", "an empty column", "a numbered gap", "an empty caption",
    "a caption that is a number", "a broken line",
    "a picture that is not there", "a picture with a nul", "a picture that is a number", "a caption of a book",
    "a prompt of a book", "a thin picture", "a dot", "a long picture", "other frames", "a caption file of a book",
}  # fmt: skip
"""What is wrong with a sample; the rest is wrong with a source."""
GOOD = {".jsonl": b'{"text": "good"}\n', ".csv": b"", ".txt": b"good\n", ".png": b""}


def source_with(tmp_path: Path, content: dict[str, bytes]) -> Path:
    own = tmp_path / "own"
    own.mkdir()
    for name, value in content.items():
        (own / name).write_bytes(value)
    for name in ("a.png", "b.png"):
        if "x." in str(list(content)):
            (own / name).write_bytes(png(1))
    tables = [own / name for name in content if name.startswith("x.")]
    return tables[0] if tables else own


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_source_is_named(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    source = source_with(tmp_path, content)
    with pytest.raises(UserError, match=message):
        run_pack(source, tmp_path / "raw")
    assert not (tmp_path / "raw" / FINISHED).exists()


@pytest.mark.parametrize("name", sorted(SKIPPED))
def test_what_is_wrong_with_one_sample_can_be_skipped(name: str, tmp_path: Path, capsys) -> None:
    content, _ = WRONG[name]
    source = source_with(tmp_path, content)
    if source.is_dir():
        (source / "good.txt").write_text("good")
    elif source.suffix == ".csv":
        source.write_bytes(source.read_bytes() + (b"good,,\n" if b"source1" in source.read_bytes() else b"\ngood"))
    else:
        source.write_bytes(source.read_bytes() + b"\n" + GOOD[source.suffix])
    summary = run_pack(source, tmp_path / "raw", broken="skip")
    assert len(summary.left_out.broken) == 1 and "good" in [text for text, *_ in samples_of(tmp_path / "raw")]
    assert json.loads((tmp_path / "raw" / FINISHED).read_text())["left_out"]["broken"] == summary.left_out.broken
    assert "1 broken samples left out, named in pack.json" in capsys.readouterr().out
    # a finished one says so again
    assert run_pack(source, tmp_path / "raw", broken="skip").left_out == summary.left_out


def test_a_cut_picture_among_many_is_skipped_by_any_number_of_workers(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for i in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (90, 60), (20 * i, 0, 0)).save(buffer, "JPEG")
        (own / f"{i:02d}.jpg").write_bytes(buffer.getvalue()[: 200 if i % 5 == 2 else None])
        (own / f"{i:02d}.txt").write_text(f"number {i}")
    with pytest.raises(UserError, match=r"02\.jpg: the image does not decode.*data\.broken=skip"):
        run_pack(own, tmp_path / "raw")
    with pytest.raises(UserError, match=r"2 broken samples, more than data\.max_broken=1; the last: .*07\.jpg"):
        run_pack(own, tmp_path / "raw", broken="skip", max_broken=1)
    summary = run_pack(own, tmp_path / "raw", broken="skip", max_broken=2, samples_per_shard=5)
    assert (summary.num_samples, [line.split(":")[0][-6:] for line in summary.left_out.broken]) == (
        10,
        ["02.jpg", "07.jpg"],
    )


def test_a_source_of_broken_samples_alone_is_refused(tmp_path: Path) -> None:
    source = source_with(tmp_path, {"a.png": b"junk", "a.txt": b"y"})
    with pytest.raises(UserError, match="all 1 samples are broken"):
        run_pack(source, tmp_path / "raw", broken="skip")
