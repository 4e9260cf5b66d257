"""`workbench encode` with the encoders of a real pipeline folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.pack import pack
from datamodules.shards.raw import raw_shards, read_raw
from workbench.backbones import families
from workbench.recipe.config import Data, Model, Recipe
from workbench.runs.encoding import encode


def test_a_real_pipeline_encodes_the_world_as_it_would_each_sample_alone(
    tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    samples = {"t2i": {"landscape": 2, "text": 1}, "edit": {"object": 2}}
    folders = {"raw": str(tmp_path / "raw"), "encoded": str(tmp_path / "encoded")}
    data = Data(**folders, encode_batch_size=3, resolution=64, samples=samples, num_workers=0)
    recipe = Recipe(model=Model(folder=str(tiny_pipeline_folder)), data=data)
    pack(recipe)
    assert encode(recipe).num_samples == 5
    assert encode(recipe).reused
    dataset = EncodedDataset(data.encoded)
    pipeline = families.load(str(tiny_pipeline_folder))
    for i, raw in enumerate(raw for shard in raw_shards(data.raw) for raw in read_raw(shard)):
        stored = dataset.read(i)
        images = [[raw.source]] if raw.source is not None else None
        for values, prompt in ((stored.prompt, raw.text), (stored.uncond, "")):
            alone = pipeline.encode_prompts([prompt], images)[0]
            np.testing.assert_allclose(values, alone.embeddings.numpy(), rtol=1e-3, atol=1e-3)
            if images:
                assert dataset.geometries[dataset.samples.geometry[i]].references == alone.references
        assert raw.target is not None and stored.latent is not None
        latent = pipeline.encode_images(torch.from_numpy(np.array(raw.target)[None]), exactly=True)[0]
        np.testing.assert_allclose(stored.latent, latent.numpy(), rtol=1e-3, atol=1e-3)
