"""Weights read straight into the shards of two CPU processes (gloo): the same bits as a network that is loaded whole,
without anyone holding it whole."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh

from workbench.backbones import families, folders, lora, lora_files, placement, roles, weight_files
from workbench.backbones.base import RoleNetworks
from workbench.backbones.load import load_for_training, load_roles
from workbench.backbones.placement import frozen_dtype
from workbench.bench import mkfolder
from workbench.common.errors import UserError
from workbench.common.large_files import LargeFile
from workbench.recipe.config import Model, Recipe, Teachers, Trainer
from workbench.runs import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

WORLD = 2
LIBRARIES = ["workbench.backbones.load", "workbench.runs.checkpoint", "workbench.bench.mkfolder"]
LARGE = mkfolder.Options(blocks=5, heads=8, file="32MB")
FILE_BYTES = 32 * 10**6
"""Well above what heap that is not given back and code that is read late add to a peak: 8 to 27 MB were seen, whatever
the size of a file. The whole network has 150 MB."""


def recipes(folder: Path) -> dict[str, Recipe]:
    base = str(folder / "small")
    full = Recipe(
        model=Model(folder=base, roles="full", student=str(folder / "start.safetensors")),
        teachers=Teachers(specialists={"other": str(folder / "other")}),
    )
    low_rank = Recipe(model=Model(folder=base, roles="lora", lora_rank=2), trainer=Trainer(precision="bf16-mixed"))
    return {"full": full, "lora": low_rank}


def load(recipe: Recipe) -> RoleNetworks:
    return load_roles(recipe, load_for_training(recipe, recipe.model.folder), frozen_dtype(recipe))


def sharded(recipe: Recipe) -> Recipe:
    return replace(recipe, trainer=replace(recipe.trainer, strategy="fsdp", devices=WORLD))


def weights(denoiser: RoleNetworks) -> dict[str, torch.Tensor]:
    return {
        f"{role}/{name}": values.contiguous()
        for role in denoiser.network_of_role
        for name, values in roles.merged_state(denoiser, role).items()
    }


def write(denoiser: RoleNetworks, out: Path, rank: int) -> str:
    """The student, in files that the ranks take turns at, into a pipeline folder; again, while the last rank's disk is
    full: what that rank is told."""
    state = roles.MergedState(denoiser, roles.STUDENT)
    like = {name: values.bfloat16() for name, values in roles.merged_state(denoiser, roles.STUDENT).items()}

    def write_files() -> None:
        with folders.replaced_by_all(out) as part:
            weight_files.write(part, state, like, largest="300KB")
            (part / folders.INDEX_FILE).write_text("{}")

    write_files()
    with pytest.MonkeyPatch.context() as patch:
        if rank == WORLD - 1:
            patch.setattr(LargeFile, "write", full_disk)
        try:
            write_files()
        except UserError as error:
            return str(error)
    return ""


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def run_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(WORLD))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("data_parallel",))
    for name, recipe in recipes(folder).items():
        denoiser = load(sharded(recipe))
        placement.shard(denoiser, mesh, "32-true")
        found = weights(denoiser)
        if rank == 0:
            save_file(found, folder / f"{name}.safetensors")
    report: dict[str, object] = {"full": write(denoiser, folder / "written", rank)}
    trained = {name: p.detach().zero_() for name, p in denoiser.named_parameters() if p.requires_grad}
    checkpoint.load(folder / "checkpoint" / "update-000001", {"parameters": trained})
    found = weights(denoiser)
    if rank == 0:
        save_file(found, folder / "resumed.safetensors")

    try:
        broken = Recipe(model=Model(folder=str(folder / "broken"), roles="full"))
        placement.shard(load(sharded(broken)), mesh, "32-true")
    except UserError as error:
        report["refused"] = str(error)

    large = Recipe(model=Model(folder=str(folder / "large"), roles="full"))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    denoiser = load(sharded(large))
    placement.shard(denoiser, mesh, "32-true")
    report["taken"] = peak_bytes() - before
    report["shards"] = sum(parameter.to_local().nbytes for parameter in denoiser.parameters())
    (folder / f"report-{rank}.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    mkfolder.make(folder / "small", mkfolder.Options())
    mkfolder.make(folder / "other", mkfolder.Options(seed=1))
    for part in ("text_encoder", "vae"):  # which specialists share with the base teacher
        shutil.rmtree(folder / "other" / part)
        shutil.copytree(folder / "small" / part, folder / "other" / part)
    mkfolder.make(folder / "large", LARGE)
    break_last_row(folder)
    layer = "transformer_blocks.0.attn.to_q"
    lora_files.write({layer: (torch.randn(2, 128), torch.randn(128, 2))}, folder / "start.safetensors", header={})
    denoiser = alone(recipes(folder)["lora"], random=True)
    trained = {name: p.detach() for name, p in denoiser.named_parameters() if p.requires_grad}
    checkpoint.save(folder / "checkpoint", {"parameters": trained}, checkpoint.Progress(1, 0))
    multiprocessing.set_forkserver_preload(LIBRARIES)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.start_processes(run_rank, (store.port, folder), nprocs=WORLD, start_method="forkserver")
    return folder


def break_last_row(folder: Path) -> None:
    """A pipeline folder with a value that only the last rank reads."""
    shutil.copytree(folder / "small", folder / "broken")
    (file,) = [
        path for path in (folder / "broken/transformer").glob("*.safetensors") if "proj_out.weight" in load_file(path)
    ]
    tensors = load_file(file)
    tensors["proj_out.weight"][-1, -1] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


def alone(recipe: Recipe, random: bool = False) -> RoleNetworks:
    """Loaded whole, with adapters that say something."""
    denoiser = load(recipe)
    if random:
        generator = torch.Generator().manual_seed(0)
        for _, layer in lora.role_linears(denoiser):
            for half in layer.lora_B.values():
                torch.nn.init.normal_(half.weight, generator=generator)
    return denoiser


@pytest.mark.parametrize(
    ("name", "case", "random"), [("full", "full", False), ("lora", "lora", False), ("resumed", "lora", True)]
)
def test_shards_hold_what_a_whole_network_does(name: str, case: str, random: bool, two_processes: Path) -> None:
    """A full student that starts from a LoRA and a specialist of its own; adapters; adapters of a checkpoint that one
    process wrote."""
    expected, found = (
        weights(alone(recipes(two_processes)[case], random)),
        load_file(two_processes / f"{name}.safetensors"),
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    student, teacher = (found[f"{role}/transformer_blocks.0.attn.to_q.weight"] for role in ("student", "teacher"))
    assert torch.equal(student.to(teacher.dtype), teacher) == (name == "lora"), "fresh adapters alone add nothing"


def test_ranks_write_files_in_turns_and_fail_together(two_processes: Path) -> None:
    out = two_processes / "written"
    files = folders.weight_files(out)
    assert len(files) > WORLD
    found = {name: values for file in files for name, values in load_file(file).items()}
    expected = roles.merged_state(alone(recipes(two_processes)["lora"]), roles.STUDENT)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], values.bfloat16()) for name, values in expected.items())
    for rank in range(WORLD):
        refused = json.loads((two_processes / f"report-{rank}.json").read_text())["full"]
        assert re.fullmatch(r"cannot write \S*/written: .*No space left on device; free space.*", refused)
    assert not list(two_processes.glob(".written*")), "the folder of before stays, and nothing else"


def test_every_rank_refuses_a_value_that_only_one_reads(two_processes: Path) -> None:
    for rank in range(WORLD):
        refused = json.loads((two_processes / f"report-{rank}.json").read_text())["refused"]
        assert "proj_out.weight holds values that are not finite" in refused


def test_no_process_holds_more_than_its_shards_and_a_file(two_processes: Path) -> None:
    whole = sum(path.stat().st_size for path in (two_processes / "large" / "transformer").glob("*.safetensors"))
    for rank in range(WORLD):
        report = json.loads((two_processes / f"report-{rank}.json").read_text())
        # Three networks in float32, of which each process has its share.
        assert report["shards"] == pytest.approx(3 * 2 * whole / WORLD, rel=0.01)
        assert report["taken"] <= 1.3 * FILE_BYTES + report["shards"], report


def test_files_that_do_not_fit_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    mkfolder.make(folder, mkfolder.Options(file="5GB"))
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)

    def load_empty(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, file, metadata={"format": "pt"})
        families.load(str(folder), text_encoder=False, empty=True)

    with pytest.raises(UserError, match="lacks the weights of img_in.weight"):
        load_empty({name: values for name, values in tensors.items() if name != "img_in.weight"})
    with pytest.raises(UserError, match=r"img_in.weight is of shape \[1\], its configuration says"):
        load_empty({**tensors, "img_in.weight": torch.zeros(1)})
    load_empty({**tensors, "old": torch.zeros(1)})
    assert "old belong to no layer" in capsys.readouterr().out


@pytest.mark.parametrize("rank", range(WORLD))
def test_a_rank_that_has_all_weights_makes_only_those_that_it_writes(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Whole(weight_files.RankTensors):
        is_gathered = False
        asked: ClassVar[list[str]] = []

        def __getitem__(self, name: str) -> torch.Tensor:
            self.asked.append(name)
            return torch.full((1000,), float(name))

        def __iter__(self) -> Iterator[str]:
            return map(str, range(6))

        def __len__(self) -> int:
            return 6

    monkeypatch.setattr(weight_files.ranks, "rank", lambda: rank)
    monkeypatch.setattr(weight_files.ranks, "world_size", lambda: WORLD)
    state = Whole()
    weight_files.write(tmp_path, state, {name: torch.empty(1000, device="meta") for name in state}, largest="8KB")
    written = [load_file(file) for file in sorted(tmp_path.glob("*.safetensors"))]
    assert len(written) in (1, 2) and {name for part in written for name in part} == {*Whole.asked}
    assert all(torch.equal(part[name], torch.full((1000,), float(name))) for part in written for name in part)
