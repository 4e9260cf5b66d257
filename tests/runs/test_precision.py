"""Every command at every precision that it accepts, text to image and edits, with both kinds of autoencoder.

On a CPU `bf16-mixed` computes in bfloat16 under autocast or over bfloat16 weights, as it does on a GPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from datamodules.shards.encoded import EncodedDataset
from studies.tiny_model.assemble import SMALLEST, assemble
from workbench import cli

CAPTIONS = ["a red fox under a clear sky", 'a sign that says "CAT"', "make the fox blue"]
SETTINGS = [
    "data.resolution=64",
    "data.num_workers=0",
    "data.samples={t2i: {landscape: 2, portrait: 2}, edit: {object: 2, style: 2}}",
    "mixture.batch_size=4",
    "dmd.fake_updates=1",
    "teachers.cfg_scale=2",
    "trainer.updates=2",
    "trainer.accelerator=cpu",
    "trainer.sample_every=2",
    "optim.warmup_updates=0",
    "evaluation.t2i_cases=1",
    "evaluation.editing_cases=1",
    "evaluation.teacher_steps=2",
    "evaluation.num_bootstrap=20",
]


@pytest.fixture(scope="module")
def folded_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest pipeline with an autoencoder that folds pixel patches into channels first."""
    folder = tmp_path_factory.mktemp("pipeline") / "folded"
    assemble(folder, CAPTIONS, seed=0, sizes=replace(SMALLEST, vae_patch=2, vae_mult=(1, 2, 2, 2)))
    return folder


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0, words


# Every precision, both kinds of roles and both autoencoders, each pair of the last two with the riskiest precision.
@pytest.mark.parametrize(
    ("precision", "roles", "autoencoder", "eight_bits"),
    [
        ("32-true", "full", "plain", ()),
        ("tf32", "lora", "plain", ()),
        ("bf16-mixed", "full", "folded", ()),
        ("bf16-mixed", "lora", "plain", ("model.frozen=fp8", "optim.moments=8bit")),
    ],
)
def test_every_command_runs_at_every_precision(
    precision: str,
    roles: str,
    autoencoder: str,
    eight_bits: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    fixture = "tiny_pipeline_folder" if autoencoder == "plain" else "folded_pipeline_folder"
    model: Path = request.getfixturevalue(fixture)
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text("seed: 1\n")
    words = [
        *SETTINGS,
        *eight_bits,
        f"model.folder={model}",
        f"model.roles={roles}",
        f"trainer.precision={precision}",
        f"trainer.folder={out}",
        f"data.raw={tmp_path / 'raw'}",
        f"data.encoded={tmp_path / 'encoded'}",
    ]
    for command in ("pack", "encode", "distill"):
        run(command, str(recipe), *words)

    assert len(EncodedDataset(str(tmp_path / "encoded"))) == 8
    weights = load_file(out / "student" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert (
        len(lines) >= 1 and np.isfinite(lines[-1]["loss/student/t2i"]) and np.isfinite(lines[-1]["loss/student/edit"])
    )

    picture, source = tmp_path / "picture.png", tmp_path / "source.png"
    Image.fromarray(np.full((64, 96, 3), (200, 40, 90), dtype=np.uint8)).save(source)
    run("sample", str(out), "a fox", "--out", str(picture))
    run("sample", str(out), "make it blue", "--image", str(source), "--out", str(tmp_path / "edit.png"))
    assert np.asarray(Image.open(picture)).std() > 0

    run("evaluate", str(out))
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"teacher", "teacher_few_step", "student"} <= metrics["models"].keys()
    run("export", str(out), str(tmp_path / "exported"))
    run("sample", str(tmp_path / "exported"), "a fox", "--out", str(tmp_path / "again.png"))
    assert picture.read_bytes() == (tmp_path / "again.png").read_bytes()
    if roles == "lora":
        run("export", str(out), str(tmp_path / "student.safetensors"), "--lora")
