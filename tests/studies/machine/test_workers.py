"""Workers as processes: side by side, killed, interrupted, and trials that die in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fake_study
import optuna
import pytest
from filelock import FileLock
from study_processes import FAKES, ROOT, completed, parent_of, start, trials, wait_for, writers

from studies.machine import runner, session
from studies.machine.trial import lock_of
from workbench.common.errors import UserError

ALL = Counter((arm, seed) for arm in fake_study.ARMS for seed in (0, 1, 2))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find this folder's modules."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), str(ROOT)]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "fake"
    place.mkdir()
    return place


def run(folder: Path, *words: str, worker: tuple[str, ...] = fake_study.WORKER) -> optuna.Study:
    return runner.run_study(
        "fake",
        ["smoke=true", f"folder={folder}", *words],
        study=fake_study.STUDY,
        worker=worker,
        intervals=fake_study.INTERVALS,
    )


def run_here(folder: Path, *words: str) -> optuna.Study:
    """The same command with all its trials in this process: what is left, without the cost of a worker."""
    return runner.run_study(
        "fake",
        ["smoke=true", f"folder={folder}", *words],
        study=fake_study.STUDY,
        execute=fake_study.execute,
        intervals=fake_study.INTERVALS,
    )


def test_two_workers_run_every_entry_once(folder: Path) -> None:
    optuna_study = run(folder, "workers=2")
    assert completed(folder) == ALL
    assert len(optuna_study.trials) == len(ALL)
    assert len({trial.user_attrs["worker"] for trial in optuna_study.trials}) > 1
    for trial in optuna_study.trials:
        cost = trial.user_attrs["cost"]
        assert cost["start"] + cost["distill"] + cost["evaluate"] == pytest.approx(cost["wall"])
        assert trial.intermediate_values.keys() == {0, 1, 2, 3, 4}


def test_two_commands_at_once_share_the_entries(folder: Path) -> None:
    commands = [start(folder), start(folder)]
    outputs = [command.communicate(timeout=280)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outputs
    run_here(folder)
    assert completed(folder) == ALL
    assert len(trials(folder)) == len(ALL)


def test_trials_that_die_are_recorded_and_the_study_goes_on(folder: Path) -> None:
    errors = {
        1: "killed by the system (SIGKILL): out of memory, most likely",
        2: "ArithmeticError: the loss is not finite",
        3: "ended with 7 without a word",
    }
    entries = Counter((arm, seed) for arm in fake_study.ARMS for seed in (0, *errors))
    (folder / "faults").write_text(json.dumps({1: "killed", 2: "diverged", 3: "exit"}))
    (folder / "seconds").write_text("0.1")
    run(folder, "workers=2", "seeds=0,1,2,3")
    assert completed(folder) == {entry: 1 for entry in entries if entry[1] == 0}
    failed = [trial for trial in trials(folder) if trial["state"] == "fail"]
    assert Counter(trial["seed"] for trial in failed) == {1: 2, 2: 2, 3: 2}
    assert all(trial["error"].startswith(errors[trial["seed"]]) for trial in failed)
    (folder / "faults").unlink()
    run_here(folder, "seeds=0,1,2,3")
    assert completed(folder) == entries
    # Tried again in their own folders, from where they were.
    assert len(writers(folder)) == len(entries)


@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "journal:{}/shared/study.log"])
def test_a_worker_killed_by_force_loses_nothing_and_its_trial_goes_on(folder: Path, storage: str) -> None:
    (folder / "seconds").write_text("1")
    command = start(folder, "workers=2", "seeds=0,1", f"storage={storage.format(folder)}")
    begun = wait_for(lambda: next((pids for pids in writers(folder).values() if len(pids) > 1), None))
    fork_server = parent_of(begun[0])
    os.kill(parent_of(fork_server), signal.SIGKILL)
    output = command.communicate(timeout=280)[0]
    assert command.returncode == 0, output
    assert "another takes its place" in output
    assert completed(folder) == {entry: 1 for entry in ALL if entry[1] < 2}
    died = [trial for trial in trials(folder) if trial["state"] == "fail"]
    assert [trial["error"] for trial in died] == ["its worker died"]
    (again,) = (t for t in trials(folder) if t["run"] == died[0]["run"] and t["state"] == "complete")
    assert len(set(writers(folder)[again["run"]])) == 2, "a second process goes on where the first was"


def test_a_supervisor_killed_by_force_takes_its_workers_along(folder: Path) -> None:
    (folder / "seconds").write_text("10")
    command = start(folder, "workers=2", "seeds=0")
    begun = wait_for(lambda: [pids[0] for pids in writers(folder).values() if pids])
    command.kill()
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in begun))
    (folder / "seconds").write_text("0.1")
    run_here(folder, "seeds=0")
    assert completed(folder) == {entry: 1 for entry in ALL if entry[1] == 0}


def test_an_interrupt_stops_all_workers_and_the_same_command_continues(folder: Path) -> None:
    (folder / "seconds").write_text("10")
    command = start(folder, "workers=2", "seeds=0")
    wait_for(lambda: len(writers(folder)) == 2)
    os.killpg(command.pid, signal.SIGINT)
    command.communicate(timeout=60)
    assert {trial["error"] for trial in trials(folder)} == {"interrupted"}
    (folder / "seconds").write_text("0.1")
    run_here(folder, "seeds=0")
    assert completed(folder) == {entry: 1 for entry in ALL if entry[1] == 0}
    assert len(writers(folder)) == 2


def test_a_run_folder_that_is_still_written_is_left_alone(folder: Path) -> None:
    (folder / "faults").write_text(json.dumps({1: "diverged"}))
    (folder / "seconds").write_text("0.1")
    run_here(folder)
    (folder / "faults").unlink()
    failed = next(trial for trial in trials(folder) if trial["state"] == "fail")
    with FileLock(lock_of(folder / failed["run"])):
        command = start(folder)
        wait_for(lambda: sum(completed(folder).values()) == len(ALL) - 1)
        time.sleep(2)
        assert command.poll() is None
        assert sum(completed(folder).values()) == len(ALL) - 1
    assert command.wait(timeout=60) == 0
    assert completed(folder) == ALL


def test_no_trial_is_begun_that_would_end_too_late(folder: Path) -> None:
    (folder / "seconds").write_text("1")
    run_here(folder, "budget=0.05")
    assert 0 < sum(completed(folder).values()) < len(ALL)


def test_workers_that_cannot_go_on_say_why(folder: Path) -> None:
    worker = (sys.executable, "-c", "print('error: no luck'); raise SystemExit(2)")
    with pytest.raises(UserError, match="no luck"):
        run(folder, worker=worker)
    worker = (sys.executable, "-c", "raise SystemExit(1)")
    with pytest.raises(UserError, match="again and again"):
        run(folder, worker=worker)


def test_a_search_draws_every_slot_once_and_prunes_what_is_far_below_the_median(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the noise floor that its supervisor found: the workers are told, and do not look themselves."""
    monkeypatch.setattr(session, "noise_floor_of", lambda *_: 0.001)
    (folder / "seconds").write_text("2")
    words = ("search=true", "trials=8", "evaluation.milestone_cases=1")
    optuna_study = run(folder, *words, "workers=2")
    shifts = [trial.params["shift"] for trial in optuna_study.trials]
    assert len(shifts) == len(set(shifts)) == 8
    states = Counter(trial.state.name for trial in optuna_study.trials)
    assert states["PRUNED"] >= 1 and states["COMPLETE"] >= 4 and states.total() == 8
    for trial in optuna_study.trials:
        if trial.state.name == "PRUNED":
            assert len(writers(folder)[trial.user_attrs["run"]]) < 5
    run_here(folder, *words)
    assert len(trials(folder)) == 8


def test_libraries_are_read_once_and_before_the_first_trial(tmp_path: Path) -> None:
    """Reading takes seconds, which are no part of a trial."""
    (tmp_path / "slow_library.py").write_text("print('read', flush=True)\n")
    (tmp_path / "__main__.py").write_text(
        "from studies.machine.trial_process import TrialProcess\n"
        "import fake_study\n"
        "if __name__ == '__main__':\n"
        "    trials = TrialProcess(fake_study.execute, ['slow_library'])\n"
        "    trials.prepare()\n"
        "    print('prepared', flush=True)\n"
        "    trials.prepare()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(FAKES), str(ROOT)])}
    told = subprocess.run(
        [sys.executable, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert told.stdout.split() == ["read", "prepared"], told.stderr
