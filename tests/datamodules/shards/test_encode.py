"""Encoding keeps order, batches what is alike, resumes by shard and never leaves a half-made index."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from killing import contents, is_killed
from shard_fakes import COUNTS, fake_encoder, fake_latents, fake_prompts, members, png, write_raw, write_tar

from datamodules.shards.counts import INDEX
from datamodules.shards.encode import encode_shards
from datamodules.shards.encode_batch import Encoder, FamilyLimits
from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.raw import raw_shards, read_raw
from workbench.common.errors import UserError
from workbench.recipe.config import Data


def data_for(tmp_path: Path, **values) -> Data:
    folders = {"raw": str(tmp_path / "raw"), "encoded": str(tmp_path / "encoded")}
    return Data(**{**folders, "encode_batch_size": 3, "resolution": 32, **values})


def mixed(tmp_path: Path) -> Data:
    """Two tasks, two sizes, edits of one and three sources and prompt-only samples, all mixed up."""
    halves: list[dict[str, bytes]] = [{}, {}]
    for i in range(20):
        sample = members(f"k{i:02d}", i, "edit" if i % 3 == 0 else "t2i", "any", prompt_only=i % 5 == 1)
        if i % 9 == 0:
            sample |= {f"k{i:02d}.source_2.png": png(i + 2000, (64, 32)), f"k{i:02d}.source_3.png": png(i + 3000)}
        if i % 4 == 0:
            sample = {name: png(i, (64, 32)) if name.endswith(".png") else value for name, value in sample.items()}
        halves[i > 12] |= sample
    for name, content in zip("ab", halves, strict=True):
        write_tar(tmp_path / "raw" / f"{name}.tar", content)
    return data_for(tmp_path, keep_raw=True)


def test_each_sample_is_encoded_as_if_alone_and_in_order(tmp_path: Path) -> None:
    data = mixed(tmp_path)
    calls = []

    def prompts(texts, images):
        calls.append(len(texts))
        return fake_prompts(texts, images)

    encode_shards(data, lambda _: Encoder(prompts, fake_latents, 16, FamilyLimits(32, 3)), "f")  # type: ignore[arg-type]
    assert max(calls) == data.encode_batch_size
    dataset = EncodedDataset(data.encoded)
    raws = [raw for shard in raw_shards(data.raw) for raw in read_raw(shard)]
    assert [raw.key for raw in raws] == list(dataset.samples.keys)
    for i, raw in enumerate(raws):
        encoded = dataset.read(i)
        images = [raw.sources] if raw.sources else None
        alone, empty = fake_prompts([raw.text], images)[0], fake_prompts([""], images)[0]
        half = lambda x: np.asarray(x, dtype=np.float16)  # noqa: E731
        np.testing.assert_array_equal(encoded.prompt, half(alone.embeddings))
        np.testing.assert_array_equal(encoded.uncond, half(empty.embeddings))
        targets = [raw.target] if raw.target else []
        for pictures, latent in ((targets, encoded.latent), (raw.sources, encoded.source_latent)):
            assert (not pictures) == (latent is None)
            if pictures:
                each = [half(fake_latents(torch.from_numpy(np.array(image)[None]))[0]) for image in pictures]
                np.testing.assert_array_equal(latent, np.concatenate(each))
        assert dataset.geometries[dataset.samples.geometry[i]].references == alone.references
        assert dataset.has_target(i) == (raw.target is not None)
        assert dataset.read_text(i) == raw.text
        assert [image.tobytes() for image in dataset.read_sources(i)] == [image.tobytes() for image in raw.sources]
    assert dataset.categories == ("edit/any", "t2i/any")


def test_captions_of_all_sizes_go_together_by_length_and_pictures_by_size(tmp_path: Path) -> None:
    data = mixed(tmp_path)
    texts, sizes = [], []

    def prompts(chosen, images):
        texts.append((images is not None, [len(text) for text in chosen]))
        return fake_prompts(chosen, images)

    def images(pixels):
        sizes.append(len(pixels))
        return fake_latents(pixels)

    encode_shards(data, lambda _: Encoder(prompts, images, 16, FamilyLimits(32, 3)), "f")
    captions = [lengths for with_image, lengths in texts if not with_image][1:]  # the first is the empty prompt
    assert [len(lengths) for lengths in captions] == [3, 3, 2, 3, 2]
    assert all(lengths == sorted(lengths) for lengths in captions)
    assert all(a[-1] <= b[0] for a, b in ((captions[0], captions[1]), (captions[1], captions[2])))
    assert max(sizes) == data.encode_batch_size


@pytest.mark.parametrize("part", ["prompts", "images"])
def test_what_does_not_fit_the_memory_goes_in_halves_with_a_line_each_time(
    tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tried = replace(mixed(tmp_path), encode_batch_size=8), []

    def of_little_memory(function, most):
        def tight(items, *more):
            tried.append(len(items))
            if len(items) > most and items != [""]:
                raise torch.OutOfMemoryError("tried to allocate")
            return function(items, *more)

        return tight

    def encoder(most: int) -> Encoder:
        parts = {"prompts": fake_prompts, "images": fake_latents}
        return Encoder(
            **{**parts, part: of_little_memory(parts[part], most)}, pixels_per_token=16, limits=FamilyLimits(32, 3)
        )

    encode_shards(data, lambda _: fake_encoder(), "f")
    halved = replace(data, encoded=str(tmp_path / "halved"))
    encode_shards(halved, lambda _: encoder(2), "f")
    for path in (tmp_path / "encoded").iterdir():
        assert path.read_bytes() == (tmp_path / "halved" / path.name).read_bytes()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("out of memory")]
    assert len(lines) == len({*lines}) == sum(count > 2 for count in tried), "each failure is told, and comes once"
    with pytest.raises(UserError, match=r"one of \w+ .*needs more memory than there is"):
        encode_shards(replace(data, encoded=str(tmp_path / "none")), lambda _: encoder(0), "f")


def test_padded_lengths_hold_the_longest_prompt_of_a_geometry(dataset: EncodedDataset) -> None:
    for geometry in range(len(dataset.geometries)):
        mine = dataset.samples.geometry == geometry
        layout, uncond = dataset.layouts(geometry)
        for tokens, lengths in (
            (layout.text_tokens, dataset.samples.length),
            (uncond.text_tokens, dataset.samples.uncond_length),
        ):
            assert tokens % 8 == 0 and 0 <= tokens - lengths[mine].max() < 8
    assert dataset.categories == ("t2i/landscape", "t2i/text", "edit/scene", "edit/own")


def test_without_keep_raw_there_is_text_and_asking_for_an_image_says_how_to_get_it(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", COUNTS)
    encode_shards(data_for(tmp_path), fake_encoder, "f")
    dataset = EncodedDataset(str(tmp_path / "encoded"))
    assert all(dataset.read_text(i) for i in range(len(dataset)))
    with pytest.raises(UserError, match="keep_raw=true"):
        dataset.read_target(next(i for i in range(len(dataset)) if dataset.has_target(i)))


def test_a_crash_resumes_with_the_unfinished_shard_and_gives_the_same_bytes(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", COUNTS)
    data, calls = data_for(tmp_path), []

    def crash(texts, images):
        calls.append(len(texts))
        if len(calls) == 6:
            raise RuntimeError("out of memory")
        return fake_prompts(texts, images)

    with pytest.raises(RuntimeError):
        encode_shards(data, lambda _: Encoder(crash, fake_latents, 16, FamilyLimits(32)), "f")  # type: ignore[arg-type]
    finished = sorted(path.name for path in (tmp_path / "encoded").glob("*.tar"))
    assert finished == ["000000.tar"] and not (tmp_path / "encoded" / INDEX).exists()
    assert not list((tmp_path / "encoded").glob(".*.part"))
    stamp = (tmp_path / "encoded" / "000000.tar").stat().st_mtime_ns
    with pytest.raises(UserError, match="unfinished"):
        encode_shards(data, fake_encoder, "another")
    assert not encode_shards(data, fake_encoder, "f").reused
    assert (tmp_path / "encoded" / "000000.tar").stat().st_mtime_ns == stamp
    other = replace(data, encoded=str(tmp_path / "other"))
    encode_shards(other, fake_encoder, "f")
    for path in (tmp_path / "other").iterdir():
        assert path.read_bytes() == (tmp_path / "encoded" / path.name).read_bytes()


def test_killed_at_every_file_operation_the_same_command_completes_and_leaves_nothing(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", {"t2i/text": 5, "edit/own": 3})
    encode_shards(data_for(tmp_path), fake_encoder, "f")
    for at in itertools.count(1):
        again = data_for(tmp_path, encoded=str(tmp_path / f"killed {at}"))
        if not is_killed(lambda again=again: encode_shards(again, fake_encoder, "f"), at):
            break
        encode_shards(again, fake_encoder, "f")
        assert contents(Path(again.encoded)) == contents(tmp_path / "encoded"), at
    assert at > 30


def test_who_comes_second_waits_and_takes_what_the_first_made(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", COUNTS)
    data, begun, may_end = data_for(tmp_path), Event(), Event()

    def slow(_: int) -> Encoder:
        begun.set()
        assert may_end.wait(20)
        return fake_encoder()

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(encode_shards, data, slow, "f")
        assert begun.wait(20)
        second = threads.submit(encode_shards, data, fake_encoder, "f")
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)
        may_end.set()
        assert (first.result(20).reused, second.result(20).reused) == (False, True)


def test_an_error_in_one_shard_stops_the_workers_and_one_process_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", {"t2i/text": 60}, per_shard=2)
    data = data_for(tmp_path, encode_workers=2)
    with pytest.raises(UserError, match="misread"):
        encode_shards(data, slow_encoder, "f")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "encoded").glob("*.tar")}
    assert 0 < len(made) < 20
    encode_shards(replace(data, encode_workers=1), fake_encoder, "f")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in made.items())
    other = replace(data, encoded=str(tmp_path / "other"), encode_workers=1)
    encode_shards(other, fake_encoder, "f")
    for path in (tmp_path / "other").iterdir():
        assert path.read_bytes() == (tmp_path / "encoded" / path.name).read_bytes()


def slow_encoder(_: int) -> Encoder:
    """Reads all captions but those of the fifth shard."""

    def prompts(texts, images):
        time.sleep(0.2)
        if any(text.endswith(" 9") for text in texts):
            raise UserError("misread")
        return fake_prompts(texts, images)

    return Encoder(prompts, fake_latents, 16, FamilyLimits(32))  # type: ignore[arg-type]


def test_a_finished_encoding_is_reused_only_for_the_same_inputs(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", COUNTS)
    data = data_for(tmp_path)
    encode_shards(data, fake_encoder, "f")

    def never(_: int) -> Encoder:
        raise AssertionError("nothing is left to encode")

    assert encode_shards(data, never, "f").reused
    for changed, fingerprint in ((data, "g"), (replace(data, keep_raw=True), "f")):
        with pytest.raises(UserError, match="other settings or inputs"):
            encode_shards(changed, never, fingerprint)
    write_raw(tmp_path / "raw", {**COUNTS, "t2i/text": 6})
    with pytest.raises(UserError, match="other settings or inputs"):
        encode_shards(data, never, "f")


def test_encoding_from_a_pipe_and_over_http(tmp_path: Path, serve) -> None:
    url, _ = serve(write_raw(tmp_path / "raw", COUNTS))
    local = data_for(tmp_path)
    encode_shards(local, fake_encoder, "f")
    for name, raw in (("pipe", f"pipe:cat {tmp_path}/raw/{{000..003}}.tar"), ("http", f"{url}/{{000..003}}.tar")):
        encode_shards(replace(local, raw=raw, encoded=str(tmp_path / name)), fake_encoder, "f")
        for shard in (tmp_path / "encoded").glob("*.tar"):
            assert shard.read_bytes() == (tmp_path / name / shard.name).read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.txt": b"x", "a.png": png(1, (4000, 8))}, r"x\.tar, sample a is 4000 x 8 pixels.*data\.min_side"),
        ({"a.txt": b"x", "a.json": b'{"height": "tall"}'}, "height and width"),
        ({}, "no samples"),
    ],
)
def test_what_cannot_be_encoded_is_named(tmp_path: Path, content: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "raw" / "x.tar", content)
    with pytest.raises(UserError, match=message):
        encode_shards(data_for(tmp_path), fake_encoder, "f")
    assert not (tmp_path / "encoded" / INDEX).exists()


def test_a_key_that_occurs_twice_is_named_with_both_shards(tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        write_tar(tmp_path / "raw" / name, {"a.txt": b"x"})
    with pytest.raises(UserError, match=r"key 'a' occurs in .*one\.tar and in .*two\.tar"):
        encode_shards(data_for(tmp_path), fake_encoder, "f")


def test_an_overflow_names_the_sample(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", {"t2i/text": 2})
    huge = Encoder(fake_prompts, lambda images: fake_latents(images) * 1e6, 16, FamilyLimits(32))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"t2i-text-0000.*latent\.npy.*float16"):
        encode_shards(data_for(tmp_path), lambda _: huge, "f")
