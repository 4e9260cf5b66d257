"""`workbench encode` with the encoders of a real pipeline folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.pack import pack
from datamodules.shards.raw import raw_shards, read_raw
from workbench.backbones import families
from workbench.common.errors import UserError
from workbench.common.tables import stdout_console
from workbench.recipe.config import Data, Model, Recipe
from workbench.runs import encode_plan
from workbench.runs.encoding import ComparedImages, encode


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_folder: Path) -> Recipe:
    """Packed: five samples in three shards."""
    folder = tmp_path_factory.mktemp("encoding")
    samples = {"t2i": {"landscape": 2, "text": 1}, "edit": {"object": 2}}
    places = {"raw": str(folder / "raw"), "encoded": str(folder / "encoded"), "samples_per_shard": 2}
    data = Data(**places, encode_batch_size=3, resolution=64, samples=samples, num_workers=0)
    made = Recipe(model=Model(folder=str(tiny_pipeline_folder)), data=data)
    pack(made)
    return made


def test_a_real_pipeline_encodes_the_world_as_it_would_each_sample_alone(
    recipe: Recipe, tiny_pipeline_folder: Path
) -> None:
    data = recipe.data
    for reused in (False, True):
        summary = encode(recipe)
        assert summary is not None and (summary.num_samples, summary.reused) == (5, reused)
    dataset = EncodedDataset(data.encoded)
    pipeline = families.load(str(tiny_pipeline_folder))
    for i, raw in enumerate(raw for shard in raw_shards(data.raw) for raw in read_raw(shard)):
        stored = dataset.read(i)
        images = [raw.sources] if raw.sources else None
        for values, prompt in ((stored.prompt, raw.text), (stored.uncond, "")):
            alone = pipeline.encode_prompts([prompt], images)[0]
            np.testing.assert_allclose(values, alone.embeddings.numpy(), rtol=1e-3, atol=1e-3)
            if images:
                assert dataset.geometries[dataset.samples.geometry[i]].references == alone.references
        assert raw.target is not None and stored.latent is not None
        latent = pipeline.encode_images(torch.from_numpy(np.array(raw.target)[None]), exactly=True)[0]
        np.testing.assert_allclose(stored.latent, latent.numpy(), rtol=1e-3, atol=1e-3)


def test_a_dry_run_tells_sizes_disk_and_time_and_writes_nothing(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = replace(recipe, data=replace(recipe.data, encoded=str(tmp_path / "encoded")))
    encode_plan.show(there, stdout_console())
    said = capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    assert "5 samples in 3 shards" in said and "sizes of all samples: 1 of" in said
    (row,) = [line.split() for line in said.splitlines() if line.startswith("64 x 64")]
    assert row[3:] == ["16", "3", "2", "100.0%"]
    assert "0 of 3 shards are there" in said and "disk: about" in said and "5 samples with" in said


def test_bfloat16_tells_how_far_latents_are_from_float32_and_encodes_about_the_same(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounded = replace(recipe, data=replace(recipe.data, encoded=str(tmp_path / "encoded"), encode_dtype="bfloat16"))
    encode(recipe)
    encode(rounded)
    assert "in bfloat16 differ from float32 by" in capsys.readouterr().out
    found, expected = EncodedDataset(rounded.data.encoded), EncodedDataset(recipe.data.encoded)
    for i in range(len(expected)):
        ours, exact = found.read(i), expected.read(i)
        for values, wanted in ((ours.prompt, exact.prompt), (ours.latent, exact.latent)):
            assert values is not None and wanted is not None
            values, wanted = values.astype(np.float32), wanted.astype(np.float32)
            assert 0 < np.linalg.norm(values - wanted) / np.linalg.norm(wanted) < 0.04


def test_latents_that_bfloat16_spoils_are_refused_at_the_first_pictures() -> None:
    exact = torch.ones(6, 16, 4)
    for worse, refused in ((1.01, False), (1.5, True), (float("nan"), True)):
        images = ComparedImages(lambda _, worse=worse: worse * exact, lambda pixels: exact[: len(pixels)])
        if refused:
            with pytest.raises(UserError, match=r"data\.encode_dtype=float32"):
                images(torch.zeros(6, 64, 64, 3))
        else:
            assert torch.equal(images(torch.zeros(6, 64, 64, 3)), worse * exact)
