"""Many edits are measured by processes, which change no number and may die; what needs no measures takes none."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import pytest

from workbench.common import parent
from workbench.evaluation import measuring
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.measures.answer_measures import Measures
from workbench.evaluation.measures.drift import Drift
from workbench.evaluation.measuring import Measuring


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Pictures, edits with one right answer, and edits without."""
    return [*world_cases("t2i", "report", 1), *world_cases("edit", "report", 2)]


@pytest.fixture(scope="module")
def images(cases: list[Case]) -> list[np.ndarray]:
    """Targets, moved by two pixels."""
    return [np.roll(case.target, 2, axis=1) for case in cases if case.target is not None]


def measured(by: Measuring, cases: Sequence[Case], images: Sequence[np.ndarray]) -> list[Measures]:
    return list(by(cases, images, [None] * len(cases), [None] * len(cases)))


def test_processes_measure_what_one_does(
    cases: list[Case], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Measuring() as by:
        alone = measured(by, cases, images)
        assert by._helpers._pool is None
    monkeypatch.setattr(measuring, "PARALLEL_EDITS", 2)
    monkeypatch.setattr(measuring, "usable_cores", lambda: 2)
    with Measuring() as by:
        assert measured(by, cases, images) == alone
        # Another chunk goes to the same processes; one that was killed takes no answer with it.
        assert by._helpers._pool is not None
        of_pool = list(by._helpers._pool._processes.values())
        os.kill(of_pool[0].pid, signal.SIGKILL)
        of_pool[0].join()
        assert measured(by, cases, images) == alone
    assert all(not process.is_alive() for process in of_pool)
    moved = [found.displacement for found, case in zip(alone, cases, strict=True) if case.task == "edit"]
    assert any(value is not None and value > 1 for value in moved)
    assert all(found.displacement is None for found, case in zip(alone, cases, strict=True) if case.task == "t2i")


def test_where_no_process_can_be_started_one_does_it_all(
    cases: list[Case], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Measuring() as by:
        alone = measured(by, cases, images)

    def refused(workers: int, deaf: bool) -> NoReturn:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(measuring, "PARALLEL_EDITS", 2)
    monkeypatch.setattr(measuring, "usable_cores", lambda: 2)
    monkeypatch.setattr(parent, "spawned_pool", refused)
    with Measuring() as by:
        assert measured(by, cases, images) == alone


def test_only_answers_that_are_read_for_it_are_measured(
    cases: list[Case], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(answer: np.ndarray, source: np.ndarray, target: np.ndarray | None = None) -> Drift | None:
        asked.append(1)
        return None

    monkeypatch.setattr(measuring, "drift", counted)
    from workbench.evaluation.answers import Answers, judge_into

    unmeasured, read = Answers(), Answers()
    judge_into(unmeasured, cases, images, 0, [])
    assert not asked and [row.measures for row in unmeasured.rows] == [Measures()] * len(cases)
    with Measuring() as by:
        judge_into(read, cases, images, 0, [], measuring=by)
    assert len(asked) == sum(case.task == "edit" for case in cases)
    assert all(row.measures.noise is not None for row in read.rows)
