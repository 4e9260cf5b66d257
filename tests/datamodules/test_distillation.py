"""Step data: shapes that stay, rows that add up over ranks, and a resume that changes nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from datamodules.distillation import AHEAD, DistillationData, batches_for
from datamodules.shards.arrays import npy_bytes
from datamodules.shards.encoded import EncodedDataset, Geometry, geometry_from_json, geometry_to_json
from workbench.backbones import families
from workbench.batch import Batch, Layout, Reference, StepData
from workbench.common.errors import UserError
from workbench.recipe.config import Mixture

NUM_STEPS = 6


def make_data(dataset: EncodedDataset, start_step: int = 0, **mixture) -> DistillationData:
    data = DistillationData(
        dataset,
        Mixture(**{"batch_size": 9, "micro_batch_size": 3, **mixture}),
        fake_updates=2,
        num_steps=NUM_STEPS,
        seed=3,
    )
    data.start_step = start_step
    return data


def flat(batch: Batch) -> list:
    tensors = [batch.condition.prompt, batch.condition.lengths, batch.condition.references, batch.target, batch.rows]
    tensors += [batch.weight, batch.category, batch.uncond.prompt if batch.uncond else None]
    return [batch.task, batch.num_samples, batch.sample_ids, batch.condition.layout, *tensors]


def assert_equal(a: StepData, b: StepData) -> None:
    for left, right in zip((a.student, *a.fake), (b.student, *b.fake), strict=True):
        for x, y in zip(left, right, strict=True):
            for p, q in zip(flat(x), flat(y), strict=True):
                assert torch.equal(p, q) if isinstance(p, torch.Tensor) else p == q


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-2] + b"\x00\x7c", r"key-2 of .*latent\.npy: holds values that are not finite"),
        (lambda content: content[:-16], r"key-2 of .*latent\.npy: not a plain array"),
        (lambda _: npy_bytes(np.ones((3, 3)), "x"), r"key-2 of .*latent\.npy: 3 rows, 4 in the index"),
    ],
)
def test_a_batch_names_the_sample_that_is_wrong(
    dataset: EncodedDataset, change, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, damaged = dataset._read_member, np.flatnonzero(dataset.samples.geometry == 0)[2]
    keys = tuple(f"key-{i}" for i in range(len(dataset)))
    monkeypatch.setattr(dataset, "samples", replace(dataset.samples, keys=keys))

    def changed(i: int, name: str, *more) -> bytes:
        content = read(i, name, *more)
        return change(content) if i == damaged and name == "latent.npy" else content

    monkeypatch.setattr(dataset, "_read_member", changed)
    with pytest.raises(UserError, match=message.replace("key-2", f"key-{damaged}")):
        batches_for(dataset, range(len(dataset)))


def test_batches_hold_the_encoded_samples_right_padded(dataset: EncodedDataset) -> None:
    number = {key: i for i, key in enumerate(dataset.samples.keys)}
    step = make_data(dataset).step_data(2)
    for batch in step.student:
        assert batch.uncond is not None
        for row, key in enumerate(batch.sample_ids):
            stored = dataset.read(number[key])
            # The empty prompt of T2I is a constant and has one row.
            empty = row if batch.task == "edit" else 0
            assert batch.uncond_is_constant == (batch.task == "t2i")
            for condition, prompt, at in (
                (batch.condition, stored.prompt, row),
                (batch.uncond, stored.uncond, empty),
            ):
                length = int(condition.lengths[at])
                assert length == len(prompt) and condition.prompt.dtype == torch.float32
                assert torch.equal(condition.prompt[at, :length], torch.tensor(prompt.astype(np.float32)))
                assert not condition.prompt[at, length:].any()
                assert condition.prompt.shape[1] == condition.layout.text_tokens
            assert dataset.categories[int(batch.category[row])] == "/".join(key.split("-")[:2])
            assert (batch.condition.references is not None) == (batch.task == "edit")
            assert batch.target is not None and torch.equal(
                batch.target[row], torch.tensor(stored.latent.astype(np.float32))
            )
    assert all(batch.uncond is None and batch.target is None for group in step.fake for batch in group)


def test_the_name_that_noise_is_drawn_under_stays_what_it_was() -> None:
    """Every number of a run hangs on it: fields that came later have no part in it."""
    layout = Layout(40, 8, 8, (Reference(7, 8, 6, 12),), padded=False)
    assert f"{layout}" == (
        "Layout(text_tokens=40, height=8, width=8, references=(Reference(slot=7, height=8, width=6),))"
    )


def test_an_index_without_numbers_of_slots_is_read_as_it_was_written() -> None:
    reference = Reference(7, 8, 6, 12)
    geometry = Geometry("edit", 8, 8, (reference,), (reference,))
    written = geometry_to_json(geometry)
    assert geometry_from_json(written) == geometry
    earlier = {**written, "references": [[7, 8, 6]], "uncond_references": [[7, 8, 6]]}
    assert geometry_from_json(earlier) == geometry


def test_the_shipped_encoder_begins_alike_with_and_without_a_prompt() -> None:
    """What precedes the reference in the template is constant: bit for bit, whatever the length of what follows."""
    shipped, image = families.load("tiny"), Image.effect_mandelbrot((128, 128), (-2, -1, 1, 1), 20).convert("RGB")
    prompts = ["Make the fox red and put a very large house behind it, please.", "blue"]
    given, empty = (shipped.encode_prompts(texts, [[image]] * 2) for texts in (prompts, ["", ""]))
    for one, other in zip(given, empty, strict=True):
        assert one.references == other.references and len(one.embeddings) >= len(other.embeddings)
        slot = one.references[0].slot
        assert slot and torch.equal(one.embeddings[:slot].half(), other.embeddings[:slot].half())


def test_the_first_batch_after_resuming_far_in_comes_within_five_seconds(dataset: EncodedDataset) -> None:
    """At weights whose quotas never come out even within the run, so that no period shortens the way."""
    data = make_data(dataset, tasks={"t2i": 0.377, "edit": 0.623}, start_step=10_000)
    data.num_steps = 10_010
    started = time.perf_counter()
    first = next(iter(data.train_dataloader()))
    assert time.perf_counter() - started < 5
    assert first.step == 10_000


def test_shapes_are_the_same_at_every_step(dataset: EncodedDataset) -> None:
    data = make_data(dataset, batch_size=8, micro_batch_size=4)
    shapes = {
        (batch.task, *batch.condition.prompt.shape, batch.condition.layout)
        for step in range(6)
        for batch in data.step_data(step).student
    }
    assert len(shapes) == 2


@pytest.mark.parametrize(("world", "batch_size"), [(1, 7), (2, 7), (1, 1)], ids=["one", "two", "a layout a step"])
def test_a_batch_of_every_shape_is_there_before_the_first_step(
    dataset: EncodedDataset, world: int, batch_size: int
) -> None:
    def shape(batch: Batch) -> tuple:
        present = (batch.uncond is not None, batch.target is not None, batch.uncond_is_constant)
        return (batch.task, len(batch.rows), batch.condition.layout, *present)

    data = make_data(dataset, batch_size=batch_size)
    steps = [data.step_data(step, rank, world) for step in range(NUM_STEPS) for rank in range(world)]
    found = data.of_each_shape(world)
    assert {shape(student) for student, _ in found} == {shape(b) for step in steps for b in step.student}
    assert {shape(fake) for _, fake in found} == {shape(b) for step in steps for group in step.fake for b in group}


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_add_up_to_one(dataset: EncodedDataset, world: int) -> None:
    data = make_data(dataset)
    for step in range(NUM_STEPS):
        one = data.step_data(step)
        parts = [data.step_data(step, rank, world) for rank in range(world)]
        for stream, of_one in enumerate((one.student, *one.fake)):
            of_ranks = [(part.student, *part.fake)[stream] for part in parts]
            assert len({tuple((b.task, b.condition.prompt.shape) for b in batches) for batches in of_ranks}) == 1

            def rows(batches: tuple[Batch, ...]) -> Counter:
                return Counter(
                    (batch.task, int(row), key, batch.num_samples)
                    for batch in batches
                    for row, key, weight in zip(batch.rows, batch.sample_ids, batch.weight, strict=True)
                    if weight
                )

            assert rows(of_one) == sum((rows(batches) for batches in of_ranks), Counter())


def test_steps_are_prepared_while_one_is_used_and_no_further_than_agreed(dataset: EncodedDataset) -> None:
    data, asked = make_data(dataset), []
    prepare = data.step_data
    data.step_data = lambda step, rank, world: (asked.append(step), prepare(step, rank, world))[1]  # type: ignore
    steps = iter(data.train_dataloader())
    assert next(steps).step == 0
    deadline = time.perf_counter() + 20
    while len(asked) <= AHEAD and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert asked == list(range(1 + AHEAD))
    steps.close()


def test_an_error_in_preparing_a_step_is_raised_where_it_is_due(dataset: EncodedDataset) -> None:
    data = make_data(dataset)
    prepare = data.step_data

    def broken(step: int, rank: int, world: int) -> StepData:
        if step == 2:
            raise UserError("shard 2 is truncated")
        return prepare(step, rank, world)

    data.step_data = broken  # type: ignore[method-assign]
    steps = iter(data.train_dataloader())
    assert [next(steps).step, next(steps).step] == [0, 1]
    with pytest.raises(UserError, match="truncated"):
        next(steps)
    assert next(steps, None) is None


def test_beside_a_gpu_every_tensor_is_pinned_in_the_thread_that_prepares_it(
    dataset: EncodedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pinned, devices = make_data(dataset), [], []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(threading.current_thread().name)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    steps = list(data.train_dataloader())
    assert devices == [3] and all(name.startswith("step data") for name in pinned)
    plain = data.step_data(0)
    tensors = sum(
        isinstance(value, torch.Tensor)
        for batch in (*plain.student, *(batch for group in plain.fake for batch in group))
        for part in (batch, batch.condition, batch.uncond)
        if part is not None
        for value in vars(part).values()
    )
    assert len(pinned) == tensors * len(steps)
    assert_equal(steps[0], plain)


def test_a_resumed_loader_continues_bit_for_bit(dataset: EncodedDataset) -> None:
    whole = list(make_data(dataset).train_dataloader())
    resumed = make_data(dataset, start_step=4).train_dataloader()
    assert len(whole) == NUM_STEPS and len(resumed) == 2
    for a, b in zip(whole[4:], resumed, strict=True):
        assert a.step == b.step
        assert_equal(a, b)


def test_realised_counts_are_those_of_the_batches(dataset: EncodedDataset) -> None:
    data = make_data(dataset)
    drawn: Counter[str] = Counter()
    for step in range(NUM_STEPS):
        for batch in data.step_data(step).student:
            drawn.update(data.categories[int(c)] for c, w in zip(batch.category, batch.weight, strict=True) if w)
        assert {name: drawn[name] for name in data.categories} == data.realised(step + 1)
    assert data.passes(NUM_STEPS)["t2i/text"] == pytest.approx(3 * drawn["t2i/text"] / 5)


def test_chosen_samples_come_in_batches_that_scatter_back(dataset: EncodedDataset) -> None:
    chosen = [20, 0, 3, 17, 1, 0]
    keys: dict[int, str] = {}
    for batch in batches_for(dataset, chosen):
        keys |= dict(zip(batch.rows.tolist(), batch.sample_ids, strict=True))
        assert batch.num_samples == len(batch.rows)
    assert [keys[row] for row in range(len(chosen))] == [dataset.samples.keys[i] for i in chosen]


class Listener(LightningModule):
    """Notes the steps it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps: list[int] = []

    def training_step(self, batch: StepData, _: int) -> None:
        assert isinstance(batch, StepData)
        self.steps.append(batch.step)

    def configure_optimizers(self) -> None:
        return None


def test_lightning_is_given_the_remaining_steps_once(dataset: EncodedDataset, tmp_path) -> None:
    module = Listener()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=make_data(dataset, start_step=2))
    assert module.steps == [2, 3, 4, 5]
