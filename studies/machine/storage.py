"""A study's database: opening it, waiting while it is away, and a lock over all processes and hosts."""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import optuna
from filelock import FileLock
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
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential_jitter,
    wait_fixed,
    wait_random,
)

from studies.machine.intervals import Intervals
from studies.machine.journal import PREFIX, Journal, open_journal
from workbench.common.errors import UserError

RETRY_FOR_S = 300.0
LONGEST_PAUSE_S = 10.0
OPENING_ATTEMPTS = 5
_AWAY = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EAGAIN)
"""Errors of a journal's file whose server is away."""
Outcome = TypeVar("Outcome")


Storage = RDBStorage | Journal


class DatabaseAway(UserError):
    """The database did not answer for as long as a study waits."""


def connect(url: str, intervals: Intervals) -> Storage:
    """The storage behind any Optuna URL, or in the file of `journal:FILE`.

    Raises: UserError without the URL's password where it does not open; the database's error where it `is_away`.
    """
    if url.startswith(PREFIX):
        _require_content(Path(url.removeprefix(PREFIX)))
        return open_journal(url, intervals)
    try:
        parsed = _with_driver(make_url(url))
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise UserError("storage=sqlite:// keeps nothing and serves one process: name a file, sqlite:///study.db")
        if parsed.get_backend_name() == "sqlite":
            _require_content(Path(str(parsed.database)))
        return _opened(parsed, intervals)
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError) as error:
        if is_away(error):
            raise
        # The first line may hold the URL, and with it a password.
        raise unopened(error) from error


def _require_content(path: Path) -> None:
    """An empty data base next to what a study wrote has lost it; opened, it would begin the study again."""
    if path.is_file() and path.stat().st_size == 0 and path.with_name("study.json").is_file():
        raise UserError(
            f"{path} is empty, but {path.with_name('study.json')} says that a study was run here: bring the data base "
            "back, or delete both to begin again"
        )


def unopened(error: BaseException) -> UserError:
    """The error of a storage that does not open."""
    return UserError(
        f"the study's storage does not open ({type(error).__name__}); is storage= a database URL that answers?"
    )


def _made_by_another(error: BaseException) -> bool:
    """Whether another host created the tables at the same time; they are found at the next attempt."""
    if isinstance(error, OperationalError):
        return "already exists" in str(error)
    return isinstance(error, IntegrityError | ProgrammingError)


@retry(
    retry=retry_if_exception(_made_by_another),
    stop=stop_after_attempt(OPENING_ATTEMPTS),
    wait=wait_fixed(0.2) + wait_random(0, 1),
    reraise=True,
)
def _opened(url: URL, intervals: Intervals) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=_engine_options(url),
            heartbeat_interval=intervals.heartbeat,
            grace_period=intervals.grace,
        )
    if url.get_backend_name() == "sqlite":
        _use_write_ahead_log(storage)
    return storage


def _use_write_ahead_log(storage: RDBStorage) -> None:
    """Let SQLite serve readers during a write, without waiting for the disk at every commit. A process that dies loses
    nothing; a machine that goes down may lose the last seconds."""
    storage.engine.dispose()

    @event.listens_for(storage.engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")


def _with_driver(url: URL) -> URL:
    """`postgresql://` with the driver that the extra `postgres` installs, whichever SQLAlchemy would choose."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _engine_options(url: URL) -> dict[str, Any]:
    match url.get_backend_name(), url.get_driver_name():
        case "sqlite", _:
            return {"connect_args": {"timeout": 60}}
        case "postgresql", "psycopg" | "psycopg2":
            # A server that is cut off answers nothing: without these a query waits for a quarter of an hour.
            lost = {"connect_timeout": 10, "keepalives_idle": 15, "keepalives_interval": 5, "tcp_user_timeout": 30_000}
            return {"pool_pre_ping": True, "connect_args": lost}
        case _:
            return {"pool_pre_ping": True}


def is_away(error: BaseException) -> bool:
    """Whether the database cannot be reached just now, or is locked; asked again, it may answer."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError):
        return error.errno in _AWAY
    return isinstance(error, OperationalError | InterfaceError | PendingRollbackError)


class Retry:
    """Repeats what fails while the database is away, for `limit_s`; what is repeated must bear being done twice.

    last_trouble: monotonic time of the last failure, None before the first.
    """

    def __init__(self, name: str, limit_s: float = RETRY_FOR_S, say: Callable[[str], None] = print) -> None:
        self.name, self.limit_s, self.say = name, limit_s, say
        self.last_trouble: float | None = None

    def __call__(self, attempt: Callable[[], Outcome]) -> Outcome:
        """The outcome of `attempt`. Raises: DatabaseAway when the database stays away for longer than `limit_s`."""
        retrying = Retrying(
            retry=retry_if_exception(is_away),
            stop=stop_after_delay(self.limit_s),
            wait=wait_exponential_jitter(initial=0.25, max=LONGEST_PAUSE_S, jitter=0.25),
            after=self._failed,
        )
        try:
            outcome = retrying(attempt)
        except RetryError as error:
            raise DatabaseAway(
                f"the study's database ({self.name}) has not answered for {self.limit_s:.0f} s: when it does, "
                "the same command continues"
            ) from error.last_attempt.exception()
        if retrying.statistics["attempt_number"] > 1:
            self.say("the database answers again")
        return outcome

    def _failed(self, state: RetryCallState) -> None:
        self.last_trouble = time.monotonic()
        if state.attempt_number == 1:
            self.say(f"the database ({self.name}) does not answer: waiting, at most {self.limit_s:.0f} s")

    def is_steady(self, for_s: float) -> bool:
        """Whether there was no failure in the last `for_s` seconds."""
        return self.last_trouble is None or time.monotonic() - self.last_trouble > for_s


def shown(url: str) -> str:
    """`url` without its password, for messages and files."""
    return url if url.startswith(PREFIX) else make_url(url).render_as_string(hide_password=True)


@contextmanager
def guard(storage: Storage, study_id: int) -> Iterator[None]:
    """A lock that one process holds at a time, over all hosts; one that dies or hangs for a minute loses it.

    SQLite and a journal: a lock file. A server: a row lock on the study's directions, which Optuna writes once and
    never locks.
    """
    if isinstance(storage, Journal):
        with FileLock(f"{storage.path}.guard"):
            yield
        return
    if storage.engine.name == "sqlite":
        with FileLock(f"{storage.engine.url.database}.lock"):
            yield
        return
    with storage.engine.begin() as connection:
        if storage.engine.name == "postgresql":
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        query = text("SELECT objective FROM study_directions WHERE study_id = :study FOR UPDATE")
        connection.execute(query, {"study": study_id}).all()
        yield


class Heartbeat:
    """Records every few seconds that a trial's process lives. Unlike Optuna's it outlives a database that is away."""

    def __init__(self, storage: Storage, trial_id: int) -> None:
        self.storage, self.trial_id = storage, trial_id
        self._ended = Event()
        self._thread = Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # A beat may hang on a database that is away: do not wait for it.
        self._thread.join(timeout=1)

    def _beat(self) -> None:
        interval_s = self.storage.get_heartbeat_interval()
        assert interval_s is not None
        while True:
            try:
                self.storage.record_heartbeat(self.trial_id)
                pause = float(interval_s)
            except Exception:  # of any kind: if this thread ended, a living trial would be taken for dead
                pause = min(2.0, interval_s)
            if self._ended.wait(pause):
                break
        self.storage.remove_session()
