"""A study's storage: waited for while it is away, guarded, and a heartbeat that survives."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, ProgrammingError

from studies.machine import options, trial_queue
from studies.machine import storage as storages
from studies.machine.intervals import Intervals
from studies.machine.journal import Journal
from studies.machine.storage import DatabaseAway, Heartbeat, Retry, connect, guard
from studies.machine.trial_queue import Call, Entry, TrialQueue
from workbench.common.errors import UserError

ENTRIES = tuple(Entry(arm, seed) for seed in (0, 1) for arm in ("a", "b"))


def away() -> StorageInternalError:
    error = StorageInternalError("commit")
    error.__cause__ = OperationalError("select", {}, Exception("server closed the connection"))
    return error


def queue(folder: Path, call: Call | None = None, grace_s: int = 60, url: str = "sqlite:///{}/study.db") -> TrialQueue:
    storage = connect(url.format(folder), Intervals(heartbeat=1, grace=grace_s))
    optuna_study = optuna.create_study(storage=storage, study_name="s", direction="maximize", load_if_exists=True)
    before = len(optuna_study.get_trials(deepcopy=False))
    found = call or Call(key="call", before=before)
    return TrialQueue(optuna_study, storage, storage.get_study_id_from_name("s"), ENTRIES, found, folder)


def test_what_fails_while_the_database_is_away_is_repeated_until_it_is_back() -> None:
    failures, said = [away(), away(), OperationalError("x", {}, Exception("locked"))], []

    def attempt() -> str:
        if failures:
            raise failures.pop()
        return "done"

    retry = Retry("sqlite:///x.db", say=said.append)
    assert retry(attempt) == "done" and failures == []
    assert len(said) == 2 and "does not answer" in said[0] and "answers again" in said[1]
    assert not retry.is_steady(60) and retry.is_steady(0)


def test_patience_ends_in_one_line() -> None:
    retry = Retry("postgresql://me:***@host/db", limit_s=0.5, say=lambda line: None)
    with pytest.raises(DatabaseAway, match=r"me:\*\*\*@host/db\) has not answered .* the same command continues"):
        retry(lambda: (_ for _ in ()).throw(away()))


def test_an_error_that_waiting_does_not_mend_is_raised_at_once() -> None:
    calls = []

    def attempt() -> None:
        calls.append(1)
        raise ProgrammingError("select", {}, Exception("no such table"))

    with pytest.raises(ProgrammingError):
        Retry("x")(attempt)
    assert len(calls) == 1


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_storage_that_keeps_nothing_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="keeps nothing"):
        connect(url, Intervals())


def test_an_empty_database_where_a_study_was_run_is_no_new_study(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"study\.db is empty, but .*study\.json says that a study was run"):
        queue(tmp_path)
    assert (tmp_path / "study.db").stat().st_size == 0
    (tmp_path / "study.json").unlink()
    queue(tmp_path)


@pytest.mark.parametrize("folder", ["runs/q?mode=memory", "p%41", "a#b"])
def test_a_folder_that_an_address_would_read_otherwise_is_refused(folder: str) -> None:
    with pytest.raises(UserError, match="an address of a data base cannot"):
        options.parse("x", [f"folder={folder}"])
    assert options.parse("x", [f"folder={folder}", "storage=sqlite:///s.db"]).storage == "sqlite:///s.db"


def test_a_heartbeat_outlives_a_database_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = queue(tmp_path).take("worker")
    assert taken is not None
    found = connect(f"sqlite:///{tmp_path}/study.db", Intervals(heartbeat=1))
    beats: list[float] = []

    def record(trial_id: int) -> None:
        beats.append(time.monotonic())
        if len(beats) < 3:
            raise away()

    monkeypatch.setattr(found, "record_heartbeat", record)
    with Heartbeat(found, taken[1]._trial_id):
        deadline = time.monotonic() + 20
        while len(beats) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(beats) >= 4


def test_the_guard_lets_one_in_at_a_time(tmp_path: Path) -> None:
    found, inside, most = queue(tmp_path), [], []

    def enter() -> None:
        with guard(found.storage, found.study_id):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8 and max(most) == 1


def test_entries_are_queued_once_and_taken_once_in_their_order(tmp_path: Path) -> None:
    first, second = queue(tmp_path), queue(tmp_path)
    taken = [source.take(f"worker {i}") for i, source in enumerate((first, second, second, first, first))]
    assert [pair and pair[0] for pair in taken] == [*ENTRIES, None]
    assert len(first.optuna_study.trials) == len(ENTRIES)


def test_a_claim_whose_answer_was_lost_is_found_again(tmp_path: Path) -> None:
    found = queue(tmp_path)
    once, again = found.take("worker"), found.take("worker")
    assert once is not None and again is not None and once[1].number == again[1].number


def test_a_silent_trial_is_queued_again_in_its_folder_until_the_entry_is_to_blame(tmp_path: Path) -> None:
    found = queue(tmp_path, Call(key="call", before=0), grace_s=1)
    numbers = []
    for attempt in range(trial_queue.MAX_REQUEUES + 1):
        taken = found.take(f"worker {attempt}")
        assert taken is not None and taken[0] == ENTRIES[0]
        numbers.append(taken[1].number)
        assert taken[1].user_attrs["run"] == "trial-0000"
        time.sleep(2.5)
    assert len(set(numbers)) == trial_queue.MAX_REQUEUES + 1
    taken = found.take("worker")
    assert taken is not None and taken[0] == ENTRIES[1]
    assert trial_queue.error_of(found.optuna_study.trials[numbers[-1]]) == trial_queue.DIED
    # A later call tries it once more.
    later = queue(tmp_path, grace_s=60).take("later")
    assert later is not None and later[0] == ENTRIES[0] and later[1].user_attrs["run"] == "trial-0000"


def test_just_after_the_database_was_away_nobody_is_taken_for_dead(tmp_path: Path) -> None:
    found = queue(tmp_path, grace_s=1)
    assert found.take("slow") is not None
    time.sleep(2.5)
    taken = found.take("other", lost=False)
    assert taken is not None and taken[0] == ENTRIES[1]


def test_a_entry_queued_twice_runs_once(tmp_path: Path) -> None:
    found = queue(tmp_path)
    for _ in range(2):
        found.optuna_study.enqueue_trial(ENTRIES[0].params, user_attrs={"entry": ENTRIES[0].key})
    taken = [found.take(f"worker {i}") for i in range(len(ENTRIES) + 1)]
    assert [pair and pair[0] for pair in taken] == [*ENTRIES, None]
    (dropped,) = found.optuna_study.get_trials(states=(TrialState.FAIL,))
    assert dropped.user_attrs["error"] == "queued twice: trial 0 is the same"


def test_what_was_queued_twice_is_no_attempt_at_its_entry(tmp_path: Path) -> None:
    found = queue(tmp_path, Call(key="call", before=0))
    found.fill()
    found.optuna_study.enqueue_trial(ENTRIES[0].params, user_attrs={"entry": ENTRIES[0].key})
    for worker in ("first", "second"):
        assert found.take(worker) is not None
    found.give_up("first")
    again = found.take("third")
    assert again is not None and again[0] == ENTRIES[0] and again[1].user_attrs["run"] == "trial-0000"


def test_a_url_is_shown_without_its_password_and_means_our_driver() -> None:
    assert storages.shown("postgresql://me:sesame@host/db") == "postgresql://me:***@host/db"
    assert storages._with_driver(storages.make_url("postgresql://me@host/db")).get_driver_name() == "psycopg"


JOURNAL = "journal:{}/shared/study.log"


def test_a_journal_hands_out_every_entry_once_and_what_is_silent_again(tmp_path: Path) -> None:
    first, second = (queue(tmp_path, Call(key="call", before=0), url=JOURNAL) for _ in range(2))
    assert isinstance(first.storage, Journal)
    taken = [source.take(f"worker {i}") for i, source in enumerate((first, second, second, first, first))]
    assert [pair and pair[0] for pair in taken] == [*ENTRIES, None]
    silent = taken[1]
    assert silent is not None
    beat = first.storage.beats / str(silent[1]._trial_id)
    os.utime(beat, (time.time() - 61,) * 2)
    again = second.take("other")
    assert again is not None and again[0] == ENTRIES[1] and again[1].user_attrs["run"] == silent[1].user_attrs["run"]
    assert first.take("another") is None, "the others live"
    assert trial_queue.error_of(first.optuna_study.trials[silent[1].number]) == trial_queue.DIED


def test_a_trial_that_lives_is_not_missed_whatever_this_hosts_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = queue(tmp_path, grace_s=1, url=JOURNAL)
    taken = found.take("worker")
    assert taken is not None
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with Heartbeat(found.storage, taken[1]._trial_id):
        assert found.storage._get_stale_trial_ids(found.study_id) == []
    for beat in found.storage.beats.iterdir():
        beat.unlink()
    assert found.storage._get_stale_trial_ids(found.study_id) == [], "a new heartbeat may be on its way"


def test_a_line_that_a_full_disk_cut_off_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = queue(tmp_path, url=JOURNAL)
    found.fill()
    path = tmp_path / "shared" / "study.log"
    whole = path.read_bytes()
    # A process that was cut off in the middle of a line, and one that finds the disk full.
    path.write_bytes(whole + b'{"op_code":8,"wor')
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        found.optuna_study.set_user_attr("a", 1)
    assert path.read_bytes() == whole
    path.write_bytes(whole + b'{"op_code":8,"wor')
    monkeypatch.setattr(os, "fsync", fsync)
    found.optuna_study.set_user_attr("a", 2)
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    assert queue(tmp_path, url=JOURNAL).optuna_study.user_attrs["a"] == 2


@pytest.mark.parametrize(
    "content", [b"no journal", b"SQLite format 3\x00", b"{}\n", b"[1]\n", b'{"op_code": 0}\n', b"\xff\n" * 3]
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.log").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.log is damaged, or no journal of Optuna"):
        queue(tmp_path, url="journal:{}/x.log")
    assert (tmp_path / "x.log").read_bytes() == content
    for address in ("journal:", "journal:{}"):
        with pytest.raises(UserError, match="names no file: give journal:FILE"):
            queue(tmp_path, url=address)


def test_an_empty_journal_where_a_study_was_run_is_no_new_study(tmp_path: Path) -> None:
    (tmp_path / "study.log").touch()
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"study\.log is empty, but .*study\.json says"):
        queue(tmp_path, url="journal:{}/study.log")


def test_a_file_server_that_is_away_is_waited_for() -> None:
    assert storages.is_away(OSError(errno.ESTALE, "Stale file handle"))
    assert not storages.is_away(FileNotFoundError(errno.ENOENT, "No such file"))
    assert storages.shown("journal:/mnt/study.log") == "journal:/mnt/study.log"
