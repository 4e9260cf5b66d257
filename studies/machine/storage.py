"""A study's data base: opened, waited for while it is away, and one guard over all processes and hosts."""

from __future__ import annotations

import fcntl
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
    SQLAlchemyError,
)

from studies.machine.intervals import Intervals
from workbench.common.errors import UserError

RETRY_FOR_S = 300.0
LONGEST_PAUSE_S = 10.0
OPENING_ATTEMPTS = 5
Outcome = TypeVar("Outcome")


class DataBaseAway(UserError):
    """Not answered for as long as anybody would wait."""


def connect(url: str, intervals: Intervals) -> RDBStorage:
    """The storage behind any Optuna URL.

    Raises: UserError without the URL's password where it does not open; what it says of being away is `is_away`'s.
    """
    try:
        parsed = _with_driver(make_url(url))
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise UserError("storage=sqlite:// keeps nothing and serves one process: name a file, sqlite:///study.db")
        return _opened(parsed, intervals)
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError) as error:
        if is_away(error):
            raise
        # The first line may hold the URL, and with it a password.
        raise unopened(error) from error


def unopened(error: BaseException) -> UserError:
    """What the user is told when a storage does not open."""
    return UserError(
        f"the study's storage does not open ({type(error).__name__}); is storage= a database URL that answers?"
    )


def _opened(url: URL, intervals: Intervals) -> RDBStorage:
    """Two hosts that make the tables at once get in each other's way: the second finds them at its next attempt."""
    for attempt in range(OPENING_ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = RDBStorage(
                    url.render_as_string(hide_password=False),
                    engine_kwargs=_engine_options(url),
                    heartbeat_interval=intervals.heartbeat,
                    grace_period=intervals.grace,
                )
            if url.get_backend_name() == "sqlite":
                _quicken(storage)
            return storage
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            made_by_another = not isinstance(error, OperationalError) or "already exists" in str(error)
            if not made_by_another or attempt == OPENING_ATTEMPTS - 1:
                raise
            time.sleep(0.2 + random.random())
    raise AssertionError


def _quicken(storage: RDBStorage) -> None:
    """Of SQLite: readers and a writer side by side, and no wait for the disk at every commit. A process that dies loses
    nothing by it; a machine that does may lose the last seconds."""
    storage.engine.dispose()

    @event.listens_for(storage.engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")


def _with_driver(url: URL) -> URL:
    """`postgresql://` means the driver of our extra, whichever this SQLAlchemy would choose."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _engine_options(url: URL) -> dict[str, Any]:
    match url.get_backend_name(), url.get_driver_name():
        case "sqlite", _:
            return {"connect_args": {"timeout": 60}}
        case "postgresql", "psycopg" | "psycopg2":
            # A server that is cut off answers nothing at all: without these a query waits for it a quarter of an hour.
            lost = {"connect_timeout": 10, "keepalives_idle": 15, "keepalives_interval": 5, "tcp_user_timeout": 30_000}
            return {"pool_pre_ping": True, "connect_args": lost}
        case _:
            return {"pool_pre_ping": True}


def is_away(error: BaseException) -> bool:
    """Whether the data base cannot be reached just now, or is locked; asked again, it may answer."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, OperationalError | InterfaceError | PendingRollbackError)


class Retry:
    """Repeats what fails while the data base is away, for `limit_s`; what it repeats must bear being done twice.

    last_trouble: monotonic time of the last failure, None before the first.
    """

    def __init__(self, name: str, limit_s: float = RETRY_FOR_S, say: Callable[[str], None] = print) -> None:
        self.name, self.limit_s, self.say = name, limit_s, say
        self.last_trouble: float | None = None

    def __call__(self, attempt: Callable[[], Outcome]) -> Outcome:
        """The outcome of `attempt`. Raises: DataBaseAway when the data base stays away for longer than `limit_s`."""
        began, pause = time.monotonic(), 0.25
        while True:
            try:
                found = attempt()
            except (StorageInternalError, SQLAlchemyError) as error:
                if not is_away(error):
                    raise
                self.last_trouble = now = time.monotonic()
                if now - began > self.limit_s:
                    raise DataBaseAway(
                        f"the study's data base ({self.name}) has not answered for {now - began:.0f} s: when it does, "
                        "the same command continues"
                    ) from error
                if pause == 0.25:
                    self.say(f"the data base ({self.name}) does not answer: waiting, at most {self.limit_s:.0f} s")
                time.sleep(pause * (0.5 + random.random()))
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if pause > 0.25:
                    self.say("the data base answers again")
                return found

    def is_steady(self, for_s: float) -> bool:
        """Whether there was no failure in the last `for_s` seconds."""
        return self.last_trouble is None or time.monotonic() - self.last_trouble > for_s


def shown(url: str) -> str:
    """`url` without its password, for messages and files."""
    return make_url(url).render_as_string(hide_password=True)


@contextmanager
def guard(storage: RDBStorage, study_id: int) -> Iterator[None]:
    """Held by one process at a time, over all hosts; lost by one that dies or hangs for a minute.

    On a server it is a lock on the study's directions: rows that Optuna writes once and never locks itself.
    """
    if storage.engine.name == "sqlite":
        with locked(Path(f"{storage.engine.url.database}.lock")):
            yield
        return
    with storage.engine.begin() as connection:
        if storage.engine.name == "postgresql":
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        query = text("SELECT objective FROM study_directions WHERE study_id = :study FOR UPDATE")
        connection.execute(query, {"study": study_id}).all()
        yield


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """An exclusive lock on a file, waited for; yields its descriptor. It goes with the processes that hold it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextmanager
def locked_at_once(path: Path) -> Iterator[int | None]:
    """As `locked`, but None at once if somebody else has it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
        else:
            yield file.fileno()


class Heartbeat:
    """Says every few seconds that a trial's process lives. Unlike Optuna's own it outlives a data base that is away."""

    def __init__(self, storage: RDBStorage, trial_id: int) -> None:
        self.storage, self.trial_id = storage, trial_id
        self._ended = Event()
        self._thread = Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # A beat may hang on a data base that is away; the thread ends with it, nobody waits.
        self._thread.join(timeout=1)

    def _beat(self) -> None:
        interval_s = self.storage.get_heartbeat_interval()
        assert interval_s is not None
        while True:
            try:
                self.storage.record_heartbeat(self.trial_id)
                pause = float(interval_s)
            except Exception:  # whatever it was: a thread that ends here would let a living trial be taken for dead
                pause = min(2.0, interval_s)
            if self._ended.wait(pause):
                break
        self.storage.remove_session()
