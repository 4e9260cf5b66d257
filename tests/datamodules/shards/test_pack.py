"""Packing one's own images and the world: the same bytes by any number of workers, or a clear refusal."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from killing import contents, die, is_killed
from PIL import Image
from shard_fakes import png

from datamodules.shards import pack as packing
from datamodules.shards.pack import FINISHED, pack
from datamodules.shards.raw import raw_shards, read_raw
from workbench.common.errors import UserError
from workbench.common.files import UNFINISHED
from workbench.recipe.config import Data, Recipe


def recipe_for(source: Path | str, raw: Path, **values) -> Recipe:
    return Recipe(data=Data(**{"source": str(source), "raw": str(raw), "resolution": 64, "num_workers": 0, **values}))


def own_folder(folder: Path) -> Path:
    (folder / "cats").mkdir(parents=True)
    Image.new("RGB", (100, 50), "red").save(folder / "wide.jpg")
    (folder / "wide.txt").write_text("a red field")
    Image.new("RGBA", (32, 64), (0, 0, 0, 0)).save(folder / "cats" / "clear.v2.webp", lossless=True)
    (folder / "cats" / "clear.v2.txt").write_text("nothing at all")
    (folder / "cats" / "new.png").write_bytes(png(1))
    (folder / "cats" / "new.source.PNG").write_bytes(png(2))
    (folder / "cats" / "new.txt").write_text("make it new")
    (folder / "cats" / "only.txt").write_text("a cat, no picture")
    (folder / "ATTRIBUTION.txt").write_text("drawn by me")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def read_all(folder: Path) -> dict:
    return {sample.key: sample for shard in raw_shards(str(folder)) for sample in read_raw(shard)}


def test_more_samples_than_the_disk_holds_are_refused_at_once(tmp_path: Path) -> None:
    data = Data(raw=str(tmp_path / "raw"), samples={"t2i": {"text": 999_999_999_999}})
    with pytest.raises(UserError, match=r"packing 999,999,999,999 samples needs about [0-9,]+ MB .* are free"):
        pack(Recipe(data=data))
    assert not (tmp_path / "raw").exists()


def test_a_folder_becomes_square_rgb_samples(tmp_path: Path) -> None:
    summary = pack(recipe_for(own_folder(tmp_path / "own"), tmp_path / "raw", aspects="square"))
    assert summary.counts == {"t2i/custom": 1, "t2i/cats": 2, "edit/cats": 1}
    samples = read_all(tmp_path / "raw")
    assert set(samples) == {"wide", "cats_clear_v2", "cats_new", "cats_only"}
    for sample in samples.values():
        for image in (sample.target, *sample.sources):
            assert image is None or (image.size, image.mode) == ((64, 64), "RGB")
    assert samples["cats_only"].target is None
    assert len(samples["cats_new"].sources) == 1 and samples["cats_new"].text == "make it new"
    assert samples["cats_clear_v2"].target.getpixel((5, 5)) == (255, 255, 255)
    assert "drawn by me" in (tmp_path / "raw" / FINISHED).read_text()


def test_a_csv_file_gives_the_same_samples(tmp_path: Path) -> None:
    own = own_folder(tmp_path / "own")
    (own / "list.csv").write_text(
        "caption,image,source,category\n"
        "a red field,wide.jpg,,\n"
        '"make it, new",cats/new.png,cats/new.source.PNG,cats\n'
        "a cat without a picture,,,cats\n"
    )
    summary = pack(recipe_for(own / "list.csv", tmp_path / "raw"))
    assert summary.counts == {"t2i/custom": 1, "edit/cats": 1, "t2i/cats": 1}
    assert [sample.text for sample in read_all(tmp_path / "raw").values()][1] == "make it, new"


def broken_folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    own = tmp_path / "own"
    own.mkdir()
    for name, content in files.items():
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_bytes(content)
    return own


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no samples in"),
        ({"readme.md": b"x"}, "no samples in"),
        ({"a.png": png(1), "a.txt": b" "}, r"caption .*a\.txt is empty"),
        ({"a.png": png(1)}, r"a\.png has no caption"),
        ({"a.source.png": png(1)}, r"a\.source\.png has no caption"),
        ({"a.png": b"junk", "a.txt": b"x"}, r"a\.png: the image does not decode"),
        ({"a.png": png(1), "a.jpg": png(1), "a.txt": b"x"}, "same key"),
        ({"a.b.txt": b"x", "a_b.txt": b"x"}, "same key 'a_b'"),
        ({"a.txt": "é".encode("latin-1")}, r"a\.txt is not UTF-8"),
        ({"a.gif": b"GIF89a", "a.txt": b"x"}, r"a\.gif is none of png, jpg"),
        ({"a.png": png(1), "a.source.bmp": b"BM", "a.txt": b"x"}, r"a\.source\.bmp is none of png, jpg"),
        ({"a.txt": b"\xef\xbb\xbf \n"}, r"caption .*a\.txt is empty"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(tmp_path: Path, content: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(recipe_for(broken_folder(tmp_path, content), tmp_path / "raw"))
    assert not list((tmp_path / "raw").glob("**/*.tar")) and not (tmp_path / "raw" / FINISHED).exists()


def test_linked_folders_are_entered_once_and_links_to_nothing_are_named(tmp_path: Path) -> None:
    own = broken_folder(tmp_path, {"a.png": png(1), "a.txt": b"\xef\xbb\xbfa cat"})
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "b.txt").write_text("a dog")
    (own / "dogs").symlink_to(tmp_path / "far")
    (own / "dogs" / "back").symlink_to(own)
    pack(recipe_for(own, tmp_path / "raw"))
    assert {key: sample.text for key, sample in read_all(tmp_path / "raw").items()} == {"a": "a cat", "dogs_b": "a dog"}
    (own / "c.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"c\.png is a link that leads nowhere"):
        pack(recipe_for(own, tmp_path / "again"))


def test_grey_of_sixteen_bits_keeps_its_shades(tmp_path: Path) -> None:
    own = broken_folder(tmp_path, {"a.txt": b"a ramp"})
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 64, 0)
    Image.fromarray(ramp).save(own / "a.png")
    pack(recipe_for(own, tmp_path / "raw"))
    assert (np.asarray(read_all(tmp_path / "raw")["a"].target)[:, :, 0] == ramp >> 8).all()


def test_shards_of_which_more_are_to_come_are_not_read(tmp_path: Path) -> None:
    pack(recipe_for(own_folder(tmp_path / "own"), tmp_path / "raw"))
    (tmp_path / "raw" / FINISHED).rename(tmp_path / "raw" / UNFINISHED)
    with pytest.raises(UserError, match="raw is half packed: run `workbench pack` again"):
        raw_shards(str(tmp_path / "raw"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,words\na.png,x\n", "needs caption"),
        ("", "needs caption"),
        ("caption\n", "no samples"),
        ("caption,image\nx,none.png\n", r"line 2: there is no .*none\.png"),
        ("caption,image\n ,a.png\n", "line 2: the caption is empty"),
        ("caption,image\na house, red,a.png\n", "line 2: more fields than columns"),
        ('image,caption\na.png,"unclosed\na.png,second\n', "not a UTF-8 CSV file: unexpected end of data"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    own = broken_folder(tmp_path, {"a.png": png(1), "list.csv": text.encode()})
    with pytest.raises(UserError, match=message):
        pack(recipe_for(own / "list.csv", tmp_path / "raw"))


def test_a_finished_pack_is_reused_and_another_is_refused(tmp_path: Path, capsys) -> None:
    recipe = recipe_for(own_folder(tmp_path / "own"), tmp_path / "raw", samples_per_shard=2)
    assert not pack(recipe).reused
    before = digests(tmp_path / "raw")
    assert pack(recipe).reused and "reused" in capsys.readouterr().out
    assert digests(tmp_path / "raw") == before and len(before) == 2
    with pytest.raises(UserError, match="other settings"):
        pack(replace(recipe, data=replace(recipe.data, resolution=32)))
    (tmp_path / "own" / "wide.txt").write_text("another caption")
    with pytest.raises(UserError, match="other settings or inputs"):
        pack(recipe)


def test_shards_of_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="did not write"):
        pack(recipe_for(own_folder(tmp_path / "own"), tmp_path / "raw"))
    assert (tmp_path / "raw" / "mine.tar").read_bytes() == b"precious"


def test_a_crash_leaves_whole_shards_only_and_a_second_run_completes(tmp_path: Path, monkeypatch) -> None:
    recipe = recipe_for(own_folder(tmp_path / "own"), tmp_path / "raw", samples_per_shard=1)
    whole, calls = packing.own_members, []

    def crash(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(packing, "own_members", crash)
    with pytest.raises(KeyboardInterrupt):
        pack(recipe)
    assert len(digests(tmp_path / "raw")) == 2 and not (tmp_path / "raw" / FINISHED).exists()
    assert not list((tmp_path / "raw").glob(".*.part"))
    monkeypatch.setattr(packing, "own_members", whole)
    assert pack(recipe).num_shards == 4
    other = replace(recipe, data=replace(recipe.data, raw=str(tmp_path / "other")))
    pack(other)
    assert digests(tmp_path / "raw") == digests(tmp_path / "other")


def test_killed_at_every_file_operation_the_same_command_completes_and_leaves_nothing(tmp_path: Path) -> None:
    own = own_folder(tmp_path / "own")

    def recipe_into(name: str) -> Recipe:
        return recipe_for(own, tmp_path / name, samples_per_shard=2)

    pack(recipe_into("whole"))
    for at in itertools.count(1):
        again = recipe_into(f"killed {at}")
        if not is_killed(lambda again=again: pack(again), at):
            break
        pack(again)
        assert contents(Path(again.data.raw)) == contents(tmp_path / "whole"), at
    assert at > 15


def test_the_world_packs_to_the_same_bytes_by_any_number_of_workers(tmp_path: Path) -> None:
    counts = {"t2i": {"landscape": 3, "text": 2, "portrait": 0}, "edit": {"object": 2}}
    for workers in (0, 2):
        pack(recipe_for("openmoji", tmp_path / str(workers), samples=counts, samples_per_shard=4, num_workers=workers))
    assert digests(tmp_path / "0") == digests(tmp_path / "2")
    samples = read_all(tmp_path / "0")
    assert len(samples) == 7
    for sample in samples.values():
        assert sample.target is not None and set(sample.meta) == {
            *("scene", "source_scene", "named", "kept"),
            *("accepted", "exact"),
        }


def test_impossible_requests_to_the_world(tmp_path: Path) -> None:
    for samples, message in (
        ({"t2i": {"text": 0}}, "no samples"),
        ({"t2i": {"cats": 1}}, r"t2i\.cats: the world has no"),
    ):
        with pytest.raises(UserError, match=message):
            pack(recipe_for("openmoji", tmp_path / "raw", samples=samples))
    with pytest.raises(UserError, match="neither"):
        pack(recipe_for(tmp_path / "none", tmp_path / "raw"))
    for raw in ("http://h/x", "pipe:cat x"):
        with pytest.raises(UserError, match="folder"):
            pack(Recipe(data=Data(raw=raw)))


def test_a_pack_that_fails_at_once_leaves_nothing_and_can_be_mended(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.png").write_bytes(b"no image")
    (own / "a.txt").write_text("a cat")
    recipe = Recipe(data=Data(source=str(own), raw=str(tmp_path / "raw"), resolution=32))
    with pytest.raises(UserError, match="does not decode"):
        pack(recipe)
    assert not (tmp_path / "raw").exists()
    (own / "a.png").unlink()
    assert pack(recipe).num_samples == 1


def test_a_killed_worker_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(own_folder(tmp_path / "own"), tmp_path / "raw", samples_per_shard=2, num_workers=2)
    monkeypatch.setattr(packing, "write_shard", die)
    with pytest.raises(UserError, match=r"data\.num_workers=2 processes was killed.*; the same command continues"):
        pack(recipe)
