"""The plan keeps its quotas, gives every prompt its turn, and knows neither ranks nor where it was resumed."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import mixture
from datamodules.mixture import MixturePlan, advance_quotas, fake_stream, micro_batches
from datamodules.openmoji import CATEGORIES
from workbench.common.errors import UserError
from workbench.recipe.config import Mixture

NAMES = tuple(f"{task}/{name}" for task, names in CATEGORIES.items() for name in names)


def make_plan(seed: int = 0, num: int = 500, mixture: Mixture | None = None, geometries: int = 2) -> MixturePlan:
    rng = np.random.default_rng(seed)
    category = np.concatenate([np.arange(len(NAMES)), rng.integers(0, len(NAMES), num)])
    geometry = (category >= 3) * geometries + rng.integers(0, geometries, len(category))
    return MixturePlan(category, geometry, NAMES, mixture or Mixture(batch_size=13), seed)


@given(
    shares=st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    increments=st.lists(st.integers(0, 40), min_size=1, max_size=60),
)
@settings(max_examples=200, deadline=None)
def test_quotas_stay_within_one_sample_and_never_fall(shares: list[int], increments: list[int]) -> None:
    counts, total, whole = [0] * len(shares), 0, sum(shares)
    for increment in increments:
        total += increment
        after = advance_quotas(counts, total, shares)
        assert sum(after) == total
        assert all(b >= a for a, b in zip(counts, after, strict=True))
        assert all(abs(count * whole - total * share) < whole for count, share in zip(after, shares, strict=True))
        counts = after


weights = st.lists(st.integers(0, 20), min_size=6, max_size=6).filter(any).map(lambda w: [x / sum(w) for x in w])


@given(edit=st.floats(0, 1), of_edits=weights, batch_size=st.integers(1, 70), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_realised_mixture_is_exact_at_every_step(
    edit: float, of_edits: list[float], batch_size: int, seed: int
) -> None:
    shares = dict(zip(CATEGORIES["edit"], of_edits, strict=True))
    mixture = Mixture(tasks={"t2i": 1 - edit, "edit": edit}, categories={"edit": shares}, batch_size=batch_size)
    plan = make_plan(seed, mixture=mixture, geometries=1)
    tasks: Counter[str] = Counter()
    for step in range(30):
        for group in plan.global_batch(step, "student"):
            tasks[group.task] += len(group.samples)
        total = (step + 1) * batch_size
        assert tasks.total() == total
        slack = 1 + total * 1e-5  # weights count as fractions with denominators up to a million
        assert abs(tasks["edit"] - total * edit) < slack
        realised = plan.realised(step + 1)
        assert sum(realised.values()) == total
        for name, share in shares.items():
            assert abs(realised[f"edit/{name}"] - tasks["edit"] * share) < slack
            if not share:
                assert realised[f"edit/{name}"] == 0


@pytest.mark.parametrize("world", [2, 3, 4, 7, 64])
def test_ranks_divide_the_rows_of_one(world: int) -> None:
    plan = make_plan()
    for step in range(20):
        for group in plan.global_batch(step, "student"):
            parts = [group.of_rank(rank, world) for rank in range(world)]
            assert len({len(rows) for rows, _ in parts}) == 1
            real = np.concatenate([rows[weight == 1] for rows, weight in parts])
            assert sorted(real.tolist()) == list(range(len(group.samples)))
            for rows, weight in parts:
                assert set(rows[weight == 0].tolist()) <= {len(group.samples) - 1}


@given(num_rows=st.integers(1, 200), size=st.integers(1, 64))
def test_micro_batches_cover_the_rows_evenly(num_rows: int, size: int) -> None:
    parts = micro_batches(num_rows, size)
    assert np.concatenate([np.arange(num_rows)[part] for part in parts]).tolist() == list(range(num_rows))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) <= size and max(lengths) - min(lengths) <= 1 and len(parts) == -(-num_rows // size)


def test_any_step_at_once_equals_walking_there() -> None:
    walked, jumped = make_plan(), make_plan()
    sequential = [walked.global_batch(step, "student") for step in range(120)]
    for step in (119, 3, 60, 0, 118):
        for a, b in zip(sequential[step], jumped.global_batch(step, "student"), strict=True):
            assert (a.task, a.geometry, a.samples.tolist()) == (b.task, b.geometry, b.samples.tolist())


def test_threads_that_share_a_plan_count_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log asks what was drawn while the next steps are prepared."""
    uneven = Mixture(tasks={"t2i": 0.377, "edit": 0.623}, batch_size=10)
    expected = [make_plan(mixture=uneven).drawn(step).tolist() for step in range(30)]

    def switching(*arguments: Any) -> list[int]:
        time.sleep(1e-4)
        return advance_quotas(*arguments)

    monkeypatch.setattr(mixture, "advance_quotas", switching)
    plan = make_plan(mixture=uneven)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(plan.drawn, range(30)))
    assert [plan.drawn(step).tolist() for step in range(30)] == expected


def test_counts_repeat_after_the_period_as_if_replayed() -> None:
    mixture = Mixture(tasks={"t2i": 0.7, "edit": 0.3}, categories={"edit": {"scene": 0.25, "text": 0.75}}, batch_size=7)
    category = np.arange(9).repeat(4)
    geometry = (category >= 3).astype(int)
    short = MixturePlan(category, geometry, NAMES, mixture, 0)
    replayed = MixturePlan(category, geometry, NAMES, mixture, 0)
    assert 1 < short._period < 1000
    replayed._period = 10**9
    for step in range(3 * short._period):
        assert short.drawn(step).tolist() == replayed.drawn(step).tolist()


def test_step_ten_thousand_comes_within_a_second() -> None:
    plan = make_plan(num=100_001, mixture=Mixture(batch_size=512))
    start = time.process_time()
    plan.global_batch(10_000, "student")
    assert time.process_time() - start < 1


def test_every_prompt_is_drawn_once_a_pass_and_streams_differ() -> None:
    plan = make_plan(num=90)
    for stream in ("student", fake_stream(0), fake_stream(1)):
        seen: Counter[int] = Counter()
        for step in range(60):
            for group in plan.global_batch(step, stream):
                seen.update(group.samples.tolist())
        by_cell: dict[tuple[int, int], list[int]] = {}
        rng_plan = make_plan(num=90)
        for group in rng_plan._groups:
            for category, members in zip(group.categories, group.members, strict=True):
                by_cell[group.geometry, category] = [seen[int(i)] for i in members]
        assert all(max(counts) - min(counts) <= 1 for counts in by_cell.values())
        assert any(max(counts) > 1 for counts in by_cell.values())
    first = {stream: plan.global_batch(0, stream)[0].samples.tolist() for stream in ("student", "fake0", "fake1")}
    assert first["student"] != first["fake0"] != first["fake1"] != first["student"]


def test_passes_count_all_streams() -> None:
    plan = make_plan()
    realised = plan.realised(40)
    for i, name in enumerate(NAMES):
        assert plan.passes(40, num_streams=3)[name] == pytest.approx(3 * realised[name] / plan.num_samples[i])


def test_categories_do_not_sit_in_fixed_rows() -> None:
    plan = make_plan(mixture=Mixture(tasks={"t2i": 1.0}, batch_size=12), geometries=1)
    category = {
        int(i): c for group in plan._groups for c, m in zip(group.categories, group.members, strict=True) for i in m
    }
    first_rows = Counter(category[int(plan.global_batch(step, "student")[0].samples[0])] for step in range(60))
    assert len(first_rows) == 3


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (Mixture(), r"mixture\.tasks\.edit is 0\.5.*only t2i/landscape, t2i/text; .* 'mixture\.tasks=\{t2i: 1\}'"),
        (
            Mixture(tasks={"t2i": 1.0}, categories={"t2i": {"portrait": 1.0}}),
            r"categories\.t2i\.portrait is 1.*only t2i",
        ),
    ],
)
def test_weights_on_what_is_not_there_are_named(mixture: Mixture, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MixturePlan(np.array([0, 1]), np.array([0, 0]), ("t2i/landscape", "t2i/text"), mixture, 0)


def test_a_task_without_weight_needs_no_samples() -> None:
    mixture = Mixture(tasks={"t2i": 1.0, "edit": 0.0}, batch_size=3)
    plan = MixturePlan(np.array([0, 1]), np.array([0, 0]), ("t2i/landscape", "t2i/text"), mixture, 0)
    assert [group.task for group in plan.global_batch(5, "student")] == ["t2i"]


def drawn_prompts(mixture: Mixture, seed: int, steps: int = 40) -> dict[str, set[int]]:
    """Samples that a run of so many steps draws, over all streams, by category."""
    category = np.arange(9).repeat(40)
    plan = MixturePlan(category, (category >= 3).astype(int), NAMES, mixture, seed)
    found: dict[str, set[int]] = {}
    for step in range(steps):
        for stream in ("student", fake_stream(0)):
            for group in plan.global_batch(step, stream):
                for sample in group.samples.tolist():
                    found.setdefault(NAMES[category[sample]], set()).add(sample)
    assert plan.passes(steps) == {
        name: pytest.approx(count / len(found[name]) if count else 0.0) for name, count in plan.realised(steps).items()
    }
    return found


def test_a_limit_on_prompts_follows_the_batchs_shares_and_is_redrawn_by_the_seed() -> None:
    shares = {"t2i": {"landscape": 0.5, "text": 0.5}, "edit": {"style": 1.0}}
    small, larger = (
        Mixture(tasks={"t2i": 0.8, "edit": 0.2}, categories=shares, batch_size=15, prompts=num) for num in (20, 50)
    )
    found = drawn_prompts(small, seed=0)
    assert {name: len(samples) for name, samples in found.items()} == {
        "t2i/landscape": 8, "t2i/text": 8, "edit/style": 4,
    }  # fmt: skip
    assert drawn_prompts(small, seed=1) != found == drawn_prompts(small, seed=0)
    assert all(samples < drawn_prompts(larger, seed=0)[name] for name, samples in found.items())


def test_a_share_of_the_prompts_is_one_of_every_category() -> None:
    found = drawn_prompts(Mixture(tasks={"t2i": 1.0}, batch_size=15, prompt_share=1 / 3), seed=0)
    assert {name: len(samples) for name, samples in found.items()} == dict.fromkeys(NAMES[:3], 13)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [(122, "asks for 41 samples of t2i/[a-z]*, the data have 40: choose fewer"), (2, "asks for 0 .*: choose more")],
)
def test_a_limit_that_the_data_cannot_meet_is_named(prompts: int, message: str) -> None:
    with pytest.raises(UserError, match=f"mixture.prompts={prompts} {message}"):
        drawn_prompts(Mixture(tasks={"t2i": 1.0}, batch_size=15, prompts=prompts), seed=0)
