"""What comes from outside is read through one door: nothing broken passes, nothing leaves its folder."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.shards import remote
from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.index import INDEX
from workbench.common import images
from workbench.common.errors import UserError
from workbench.common.images import decode_image, read_image
from workbench.common.outside import Count, Outside, PlainName, as_name, inside, parse, read_bytes, read_lines
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.case_file import read_jsonl, write_jsonl
from workbench.recipe.reading import from_mapping, load

NAMES = ["", ".", "..", ".hidden", "../up", "/abs", "a/b", "a\\b", "nul\0", "line\n", "x" * 200, "\ud800"]


class Row(Outside):
    name: PlainName
    counts: dict[str, Count]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_from_outside_leads_out_of_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no plain file name"):
        inside(tmp_path, name)
    assert inside(tmp_path, as_name(name)).parent == tmp_path
    inside(tmp_path, as_name(name)).write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 1


def test_names_stay_as_they_are_where_they_can_and_apart_where_not() -> None:
    assert as_name("t2i-portrait_0.1 ä") == "t2i-portrait_0.1 ä"
    assert len({as_name(name) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "f: not valid JSON"),
        ("[" * 100_000, "f: not valid JSON"),
        ('{"name": "\\ud800", "counts": {}}', "f: not valid JSON"),
        (b'{"name": "\xff", "counts": {}}', "f: not valid JSON"),
        ("[]", "f: must be an object"),
        ('{"name": "a"}', "f: counts: Field required"),
        ('{"name": "a", "counts": {"x": "1"}}', r"f: counts\.x: must be a valid integer"),
        ('{"name": "a", "counts": {"x": true}}', r"f: counts\.x: must be a valid integer"),
        ('{"name": "a", "counts": {"x": -1}}', r"f: counts\.x: must be greater than or equal to 0"),
        ('{"name": "a", "counts": {"x": 1e400}}', r"f: counts\.x"),
        ('{"name": "../a", "counts": {}}', r"f: name: '\.\./a' is no plain file name"),
    ],
)
def test_json_of_another_form_is_named_by_its_field(content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}.*; write it again$"):
        parse(content, Row, "f", "write it again")


def test_lines_are_named_by_number(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('\ufeff{"name": "a", "counts": {}}\n\n{"name": 5, "counts": {}}\n')
    rows = read_lines(tmp_path / "rows.jsonl", Row, "mend")
    assert next(rows) == (1, Row(name="a", counts={}))
    with pytest.raises(UserError, match=r"rows\.jsonl:3: name: must be a valid string"):
        next(rows)


def test_what_is_no_file_of_a_bounded_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large").write_bytes(bytes(100))
    for path, message in ((tmp_path / "pipe.png", "no regular file"), (Path("/dev/zero"), "no regular file")):
        with pytest.raises(UserError, match=message):
            read_image(path, "the picture", "replace it")
    for path in (tmp_path, tmp_path / "none", tmp_path / "nul\0"):
        with pytest.raises(UserError, match="cannot be read"):
            read_bytes(path, "mend")
    with pytest.raises(UserError, match="100 bytes, 99 at most"):
        read_bytes(tmp_path / "large", "mend", largest=99)


def test_only_the_promised_formats_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow starts Ghostscript for an EPS file, whatever its name."""
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for kind in ("EPS", "GIF", "TIFF", "BMP"):
        picture.save(tmp_path / "x.png", format=kind)
        with pytest.raises(UserError, match="it is no PNG, JPEG or WebP"):
            read_image(tmp_path / "x.png", "the picture", "replace it")
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    monkeypatch.setattr(images, "LARGEST_PIXELS", 63)
    with pytest.raises(UserError, match="8 x 8 pixels, 63 at most"):
        decode_image(encoded.getvalue(), "x")


@pytest.mark.parametrize("name", ["../../../up", "/tmp/abs", "a/b", "nul\0", "..", "same"])
def test_images_of_cases_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    picture = np.full((32, 32, 3), 7, np.uint8)
    write_jsonl([Case(name, "edit", "object", "Add a tree.", source=picture)], place / "cases.jsonl")
    files = {path.relative_to(tmp_path).parts[:3] for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {("a", "b", "cases.jsonl"), ("a", "b", "cases_images")}
    again = read_jsonl(place / "cases.jsonl")
    assert again[0].id == name and again[0].source is not None and (again[0].source == picture).all()


def test_an_index_cannot_name_places_outside_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    file = {"name": "000000.tar", "bytes": 1, "sha256": "a" * 64}
    geometry = {"task": "t2i", "height": 2, "width": 2, "references": [], "uncond_references": []}
    sample = {"key": "a", "task": "t2i", "category": "c", "geometry": 0, "length": 1, "uncond_length": 1}
    good = {"version": 1, "settings": "", "pipeline": "", "attribution": "", "uncond_t2i": file, "shards": [file]}
    good |= {"geometries": [geometry], "samples": [{**sample, "members": {"prompt.npy": [0, 0, 1]}}]}

    def fetched(*_: object) -> bytes:
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(remote, "cache_files", fetched)
    for change in ({"sha256": "/x/y"}, {"sha256": "../../up/xxxxxx"}, {"name": "../x.tar"}, {"name": "/x.tar"}):
        index = {**good, "shards": [{**file, **change}]}
        monkeypatch.setattr(remote, "fetch_bytes", lambda _, index=index: json.dumps(index).encode())
        with pytest.raises(UserError, match=r"index\.json: shards\[0\]\."):
            EncodedDataset("http://127.0.0.1:1/shards")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {INDEX}


def test_recipes_read_nothing_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    for value in ("${oc.env:SECRET_KEY}", "http://h/${oc.env:SECRET_KEY}", "${oc.decode:${oc.env:SECRET_KEY}}"):
        (tmp_path / "r.yaml").write_text(f'data: {{encoded: "{value}"}}')
        for attempt in (lambda: load(tmp_path / "r.yaml"), lambda value=value: from_mapping({}, [f"data.raw={value}"])):
            with pytest.raises(UserError) as raised:
                attempt()
            assert "s3cret" not in str(raised.value) and "oc.env" in str(raised.value)
    assert from_mapping({}, ["data.raw=${data.encoded}/raw"]).data.raw.endswith("/raw")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.weight_decay=.inf", "optim.weight_decay must be a finite number"),
        ("pretrain.text_encoder_lr=.inf", "pretrain.text_encoder_lr must be a finite number"),
        ("dmd.student_times=[1, .nan, 0.4, 0.1]", "."),
        ("seed=99999999999999999999", "seed must lie within"),
        ("model.folder=" + "x" * 70_000, "model.folder has 70,000 characters"),
        ("x" * 70_000 + "=1", "unknown key"),
        ("trainer.updates=" + "x" * 70_000, "trainer.updates"),
        ("evaluation.seeds=[0, 1, 0]", "evaluation.seeds names one twice"),
    ],
)
def test_numbers_without_meaning_and_endless_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        from_mapping({}, [override])
    assert len(str(raised.value)) < 1700
