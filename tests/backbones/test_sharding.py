"""FSDP2, and whole copies, over two CPU processes (gloo), through Lightning's strategies as the runner uses them.

The slow file of the suite: one pair of processes starts, trains every case of `CASES`, and writes what it got.
Each test then compares that with one process, which trains on the whole global batch.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch
from diffusers import QwenImage21Transformer2DModel, QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from workbench.backbones import roles
from workbench.backbones.base import NetworkFactory
from workbench.backbones.lora_files import AdapterLayer
from workbench.backbones.qwen_image.transformer import DualTransformer
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Batch, Condition, Layout, Reference, StepData, Task
from workbench.engine.optimisation import MovingAverage
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Dmd, Guidance, Mixture, Model, Optim, Recipe, Schedule, Teachers, Trainer
from workbench.runs import checkpoint, machine

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

UPDATES = 4
LEARNING_RATE, ADAM_EPS = 0.1, 1.0
"""With an epsilon far above every gradient a step of AdamW is the rate times the gradient: the steps of its usual
epsilon begin as signs, and a rounding of a gradient near zero would become a whole step of that one element."""
WORLD = 2
LIBRARIES = ["lightning.pytorch", "torch._dynamo", "workbench.runs.machine", "workbench.modules.distiller"]
CATEGORIES = ("t2i/text", "edit/text")
NUM_SAMPLES: dict[Task, int] = {"t2i": 5, "edit": 3}
LAYOUTS: dict[Task, Layout] = {"t2i": Layout(7, 4, 4), "edit": Layout(9, 4, 4, (Reference(3, 2, 4, 2),))}


@dataclass(frozen=True)
class Case:
    kind: Literal["full", "lora"]
    gradient_checkpointing: bool
    rollout: Literal["euler", "renoise"]
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    reusing: bool = False
    """One rollout for all updates, and a low-rank specialist over the base teacher."""
    adversarial: bool = False
    strategy: Literal["fsdp", "ddp"] = "fsdp"
    compiled: bool = False
    """The two processes compile their blocks; the process that they are compared with does not."""
    tasks: tuple[Task, ...] = ("t2i", "edit")
    """Compiled cases have one, each another: every layout has six graphs or more, and compiling them takes longer than
    all training here."""
    dual: bool = False
    """A network whose last text nothing reads: some of its weights never have a gradient."""
    moments: Literal["float32", "8bit"] = "float32"


CASES = {
    "full": Case("full", False, "euler"),
    "lora, checkpointed": Case("lora", True, "renoise"),
    "reusing, routed": Case("full", False, "euler", reusing=True, adversarial=True),
    "bfloat16": Case("full", True, "euler", "bf16-mixed"),
    "lora, checkpointed, compiled": Case("lora", True, "euler", compiled=True, adversarial=True, tasks=("edit",)),
    "lora, replicated": Case("lora", False, "euler", adversarial=True, strategy="ddp"),
    "8-bit moments": Case("full", False, "euler", moments="8bit"),
    "two streams": Case("full", True, "euler", adversarial=True, dual=True),
    "two streams, lora": Case("lora", False, "euler", strategy="ddp", dual=True),
    "lora over a bfloat16 base": Case("lora", True, "euler", "bf16-mixed", reusing=True, compiled=True, tasks=("t2i",)),
}


def make_recipe(case: Case) -> Recipe:
    return Recipe(
        model=Model(roles=case.kind, lora_rank=3, lora_alpha=3.0, gradient_checkpointing=case.gradient_checkpointing),
        mixture=Mixture(batch_size=sum(NUM_SAMPLES[task] for task in case.tasks)),
        teachers=Teachers(specialists={"text": "lora"} if case.reusing else {}),
        guidance=Guidance(schedules={"default": Schedule("ramp", {"text": 1.0})} if case.reusing else {}),
        dmd=Dmd(
            student_steps=3,
            rollout=case.rollout,
            fake_updates=2 if case.reusing else 1,
            fake_samples="student_rollout" if case.reusing else "fresh",
            adversarial_weight=1.0 if case.adversarial else 0.0,
            classifier_weight=1.0,
        ),
        optim=Optim(
            student_lr=LEARNING_RATE,
            fake_lr=LEARNING_RATE,
            student_clip=0.5,
            fake_clip=0.5,
            warmup_updates=2,
            moments=case.moments,
        ),
        trainer=Trainer(
            updates=UPDATES,
            accelerator="cpu",
            devices=WORLD,
            strategy=case.strategy,
            precision=case.precision,
            task_gradients_every=2,
        ),
    )


def make_transformer(dual: bool) -> QwenImageTransformer2DModel | QwenImage21Transformer2DModel:
    sizes: dict[str, Any] = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 8}
    sizes["axes_dims_rope"] = (4, 6, 6)
    if dual:
        return QwenImageTransformer2DModel(**sizes, out_channels=2, joint_attention_dim=24, zero_cond_t=True)
    return QwenImage21Transformer2DModel(**sizes, out_channels=8, context_in_dim=24)


def make_distiller(case: Case, world: int = 1) -> Distiller:
    transformer = make_transformer(case.dual)
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    recipe = make_recipe(case)
    update = torch.randn(2, 2, 32, generator=generator)
    adapter = {"transformer_blocks.1.attn.to_q": AdapterLayer(update[0], update[1].T, 0.5)}
    specialists = {"text": adapter} if case.reusing else {}
    dtype = torch.bfloat16 if case.kind == "lora" and case.precision == "bf16-mixed" else None
    factory: NetworkFactory = DualTransformer if case.dual else SplitTransformer
    denoiser = roles.build(factory, transformer, recipe.model, specialists=specialists, frozen_dtype=dtype)
    if case.compiled and world > 1:
        # Cut into forward and backward as on a GPU, and run by torch's own kernels.
        denoiser.compile_blocks("aot_eager")
    return Distiller(denoiser, recipe, CATEGORIES)


def make_batch(task: Task, seed: int, rank: int, world: int) -> Batch:
    """The rows of one rank; a rank that is a row short repeats its last one at weight 0."""
    layout, count = LAYOUTS[task], NUM_SAMPLES[task]
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(count, layout.text_tokens, 24, generator=generator)
    num_reference_tokens = sum(reference.num_tokens for reference in layout.references)
    references = torch.randn(count, num_reference_tokens, 8, generator=generator)
    rows = rank + world * torch.arange(-(-count // world))
    weight, rows = (rows < count).float(), rows.clamp_max(count - 1)
    return Batch(
        task=task,
        condition=Condition(
            prompt[rows], (layout.text_tokens - rows % 2), layout, references[rows] if layout.references else None
        ),
        uncond=None,
        target=torch.randn(count, layout.num_target_tokens, 8, generator=generator)[rows],
        rows=rows,
        weight=weight,
        num_samples=count,
        category=torch.full((len(rows),), CATEGORIES.index(f"{task}/text")),
        sample_ids=tuple(f"{task}-{row}" for row in rows.tolist()),
    )


def make_data(tasks: tuple[Task, ...], rank: int, world: int) -> list[StepData]:
    def groups(seed: int) -> tuple[Batch, ...]:
        return tuple(make_batch(task, seed + i, rank, world) for i, task in enumerate(tasks))

    return [StepData(step, groups(100 * step), (groups(100 * step + 10),)) for step in range(UPDATES)]


class Witness(L.Callback):
    """Losses and gradient norms of every update, the gradients of the first, the student's moving average and its
    samples, and what is whole."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.means: list[dict[str, float]] = []
        self.gradients: dict[str, Tensor] = {}
        self.unsharded: list[str] = []
        self.average: dict[str, Tensor] = {}
        self.samples = torch.empty(0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self._average = MovingAverage(module.averaged_parameters(), 0.9)
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["eps"] = ADAM_EPS
            optimizer.register_step_pre_hook(self._keep_first_gradients)
        self._look(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller)
        self.means.append(module.means.pop())
        self._average.update(module.num_updates)
        self._look(module)
        if module.num_updates == 2:
            self._sample_the_average(module)

    def _keep_first_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """As the optimiser gets them, summed over the processes."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradient, name = parameter.grad, self._names[parameter]
                if name not in self.gradients and gradient is not None:
                    whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                    self.gradients[name] = whole.detach().clone()

    def _look(self, module: Distiller) -> None:
        trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        assert trainable
        self.unsharded += [name for name, parameter in trainable if not is_sharded(parameter)]

    def _sample_the_average(self, module: Distiller) -> None:
        """As the grid of fixed prompts does, in shapes that are compiled already; the training that goes on must not
        see the averaged weights."""
        batch = make_batch(self.task, 7, 0, WORLD)
        noise = torch.randn(len(batch.rows), 16, 8, generator=torch.Generator().manual_seed(0))
        self._average.swap()
        self.samples = module.student.sample(batch.condition, noise, lambda step: noise)
        self._average.swap()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self._average.swap()
        self.average = roles.merged_state(module.denoiser, STUDENT)  # type: ignore[arg-type]
        self._average.swap()


def is_sharded(parameter: Tensor) -> bool:
    return isinstance(parameter, DTensor) and parameter.placements[0].is_shard()


def train(case: Case, rank: int, world: int) -> tuple[Distiller, Witness]:
    distiller, witness = make_distiller(case, world), Witness(case.tasks[0])
    strategy = machine.strategy_of(distiller.recipe.trainer) if world > 1 else "auto"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy,
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[witness],
    )
    loader = DataLoader(make_data(case.tasks, rank, world), batch_size=None, collate_fn=lambda item: item)  # type: ignore[arg-type]
    trainer.fit(distiller, loader)
    return distiller, witness


def weights(distiller: Distiller, witness: Witness) -> dict[str, Tensor]:
    """Whole weights of every role, and of the student's moving average with what it draws."""
    merged = {role: roles.merged_state(distiller.denoiser, role) for role in (STUDENT, FAKE_SCORE, TEACHER)}  # type: ignore[arg-type]
    merged["average"] = {**witness.average, "samples": witness.samples}
    return {f"{role}/{name}": tensor.contiguous() for role, state in merged.items() for name, tensor in state.items()}


def run_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    # The store is served already.
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    for name, case in CASES.items():
        distiller, witness = train(case, rank, WORLD)
        whole = weights(distiller, witness)
        (Path(folder) / f"{name}-{rank}.json").write_text(
            json.dumps({"means": witness.means, "unsharded": witness.unsharded})
        )
        if rank == 0:
            save_file(whole, Path(folder) / f"{name}.safetensors")
            save_file(witness.gradients, Path(folder) / f"{name}-gradients.safetensors")
    damage_a_checkpoint(Path(folder), distiller, rank)


def damage_a_checkpoint(folder: Path, distiller: Distiller, rank: int) -> None:
    """Both ranks write two checkpoints of sharded weights and look for the whole ones, then the newer is damaged."""
    state = {"parameters": {name: value.detach() for name, value in distiller.trained_parameters().items()}}
    for update in (1, 2):
        path = checkpoint.save(folder / "checkpoints", state, checkpoint.Progress(update, 0))
    found = [checkpoint.newest_whole(folder / "checkpoints")]
    if rank == 0:
        (path / "__1_0.distcp").write_bytes((path / "__1_0.distcp").read_bytes()[:-1] + b"x")
    torch.distributed.barrier()
    found += [checkpoint.newest_whole(folder / "checkpoints")]
    checkpoint.load(found[-1][0], state)
    (folder / f"checkpoints-{rank}.json").write_text(json.dumps([progress.num_updates for _, progress in found]))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    # Both processes are forked off one that has read the libraries: reading them twice took longer than the training.
    multiprocessing.set_forkserver_preload(LIBRARIES)
    # This process serves their store, at a port that the system chose and nobody else can take.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (store.port, str(folder))
    torch.multiprocessing.start_processes(run_rank, arguments, nprocs=WORLD, start_method="forkserver")
    return folder


def report(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def test_every_rank_takes_the_same_whole_checkpoint(two_processes: Path) -> None:
    for rank in range(WORLD):
        assert report(two_processes, "checkpoints", rank) == [2, 1]
    assert {path.name for path in (two_processes / "checkpoints" / "update-000001").iterdir()} == {
        *(".metadata", "progress.json", "__0_0.distcp", "__1_0.distcp")
    }


def test_one_process_reads_the_checkpoint_of_two(two_processes: Path) -> None:
    """The other way round: tests/backbones/test_stored_weights.py."""
    name = list(CASES)[-1]
    distiller = make_distiller(CASES[name])
    trained = {key: parameter.detach() for key, parameter in distiller.trained_parameters().items()}
    checkpoint.load(two_processes / "checkpoints" / "update-000001", {"parameters": trained})
    expected = load_file(two_processes / f"{name}.safetensors")
    for role in (STUDENT, FAKE_SCORE):
        for key, values in roles.merged_state(distiller.denoiser, role).items():  # type: ignore[arg-type]
            assert torch.equal(values, expected[f"{role}/{key}"]), key


@pytest.mark.parametrize("name", CASES)
def test_every_trainable_parameter_is_sharded_or_none_is(name: str, two_processes: Path) -> None:
    for rank in range(WORLD):
        unsharded = report(two_processes, name, rank)["unsharded"]
        assert (unsharded == []) == (CASES[name].strategy == "fsdp")


COMPARED = [
    *("full", "lora, checkpointed", "reusing, routed", "lora, checkpointed, compiled", "lora, replicated"),
    *("two streams", "two streams, lora"),
]


@pytest.mark.parametrize("name", COMPARED)
def test_two_processes_train_as_one(name: str, two_processes: Path) -> None:
    """Same losses, gradients, norms and weights, with 5 + 3 samples in rows of 3 + 2 a process.

    Gradients of fresh adapters come from a small difference of two large x0, which rounding reaches first (5e-4 of
    their norm was seen); their weights, after updates whose size is the gradient's, inherit it.
    """
    distiller, witness = train(CASES[name], 0, 1)
    for rank in range(WORLD):
        means = report(two_processes, name, rank)["means"]
        assert len(means) == UPDATES
        looks = [update for update in range(UPDATES) if "task_gradients/norm/edit" in means[update]]
        assert looks == ([1, 3] if len(CASES[name].tasks) > 1 else [])
        for found, expected in zip(means, witness.means, strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)

    gradients = load_file(two_processes / f"{name}-gradients.safetensors")
    assert gradients.keys() == witness.gradients.keys() > set()
    for key, expected in witness.gradients.items():
        assert distance(gradients[key], expected) <= 2e-3 * expected.norm(), key

    after = load_file(two_processes / f"{name}.safetensors")
    before, expected_after = weights(make_distiller(CASES[name]), witness), weights(distiller, witness)
    assert after.keys() == expected_after.keys()
    moved = set()
    for key, expected in expected_after.items():
        role, _, layer = key.partition("/")
        if layer == "samples":
            continue
        went = distance(expected, before[f"{STUDENT}/{layer}" if role == "average" else key])
        assert distance(after[key], expected) <= 0.01 * went, key
        if went > 0 and role != "average":
            moved.add(role)
    assert moved == {STUDENT, FAKE_SCORE}
    torch.testing.assert_close(after["average/samples"], witness.samples, rtol=1e-4, atol=1e-4)


def distance(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(found.double() - expected.double()))


def test_bfloat16_computes_roughly_the_same_and_keeps_float32_shards(two_processes: Path) -> None:
    _, witness = train(CASES["full"], 0, 1)
    first = report(two_processes, "bfloat16", 0)["means"][0]
    assert first.keys() == witness.means[0].keys()
    for name in ("loss/fake_score/t2i", "loss/fake_score/edit", "gradient_norm/fake_score"):
        assert first[name] == pytest.approx(witness.means[0][name], rel=0.005), name
    assert all(
        math.isfinite(value) for update in report(two_processes, "bfloat16", 0)["means"] for value in update.values()
    )
    assert all(t.dtype == torch.float32 for t in load_file(two_processes / "bfloat16.safetensors").values())


def test_adapters_over_a_bfloat16_base_learn_and_leave_it_alone(two_processes: Path) -> None:
    """The frozen weights are gathered in bfloat16 beside float32 adapters, in one group a block."""
    name = "lora over a bfloat16 base"
    found = load_file(two_processes / f"{name}.safetensors")
    before = weights(make_distiller(CASES[name]), Witness("t2i"))
    for key, tensor in found.items():
        role, _, layer = key.partition("/")
        if role == TEACHER:
            assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, before[key]), key
        elif role in (STUDENT, FAKE_SCORE) and "attn.to_q" in layer:
            assert tensor.dtype == torch.float32 and not torch.equal(tensor, before[key]), key
    means = report(two_processes, name, 0)["means"]
    assert all(math.isfinite(value) for update in means for value in update.values())
    _, alone = train(replace(CASES[name], precision="32-true"), 0, 1)
    loss = "loss/fake_score/t2i"
    assert means[0][loss] == pytest.approx(alone.means[0][loss], rel=0.01)
