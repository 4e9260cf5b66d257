"""A real PostgreSQL server: three workers, one killed, the server stopped and started again, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from study_processes import completed, parent_of, start, trials, wait_for, writers

FAKES = Path(__file__).parents[2] / "fakes"
ROOT = FAKES.parents[1]
SECONDS_AWAY = float(os.environ.get("POSTGRES_SECONDS_AWAY", "8"))
"""CI stops the server for 30."""


def binary(name: str) -> str | None:
    """A program of the server, which Debian keeps off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def missing() -> str | None:
    """What this test lacks here."""
    if binary("postgres") is None or binary("initdb") is None:
        return "no PostgreSQL server here: apt-get install postgresql"
    if find_spec("psycopg") is None:
        return "psycopg is not installed: pip install -e '.[postgres]'"
    return None


if missing() is not None and "POSTGRES_REQUIRED" not in os.environ:
    pytest.skip(str(missing()), allow_module_level=True)


@dataclass
class Server:
    """A server of its own data folder and port, with password authentication."""

    data: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://study:sesame@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        command = [str(binary("postgres")), "-D", str(self.data), "-p", str(self.port), "-k", str(self.data)]
        log = (self.data.parent / "server.log").open("ab")
        self.process = subprocess.Popen([*command, "-h", "127.0.0.1"], stdout=log, stderr=log, **as_nobody_special())
        wait_for(self.answers)

    def stop(self) -> None:
        """At once, as a machine that goes down: connections are cut in the middle of what they did."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(timeout=30)

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def as_nobody_special() -> dict[str, str]:
    """The server refuses to run as root."""
    return {"user": "postgres"} if os.geteuid() == 0 else {}


@pytest.fixture
def server() -> Iterator[Server]:
    # Not below pytest's own folder, which nobody but root may enter.
    place = Path(tempfile.mkdtemp(prefix="workbench-postgres-"))
    place.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = Server(place / "data", free.getsockname()[1])
    found.data.mkdir(mode=0o700)
    (place / "password").write_text("sesame\n")
    if os.geteuid() == 0:
        shutil.chown(found.data, "postgres")
    initdb = [str(binary("initdb")), "-D", str(found.data), "-U", "study", "-A", "scram-sha-256"]
    subprocess.run([*initdb, f"--pwfile={place / 'password'}"], check=True, capture_output=True, **as_nobody_special())
    found.start()
    yield found
    found.stop()
    shutil.rmtree(place)


def test_ci_has_a_server() -> None:
    assert missing() is None


def test_nothing_is_lost_when_a_worker_is_killed_and_the_server_goes_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), str(ROOT)]))
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "seconds").write_text("2")
    command = start(folder, "workers=3", "seeds=0,1,2,3,4", f"storage={server.url}")

    begun = wait_for(lambda: next((pids for pids in writers(folder).values() if len(pids) > 1), None), 120)
    os.kill(parent_of(parent_of(begun[0])), signal.SIGKILL)
    wait_for(lambda: sum(completed(folder).values()) > 2, 120)
    server.stop()
    time.sleep(SECONDS_AWAY)
    assert command.poll() is None
    server.start()
    output = command.communicate(timeout=280)[0]

    assert command.returncode == 0, output
    assert "another takes its place" in output
    assert completed(folder) == Counter((arm, seed) for arm in ("a", "b") for seed in range(5))
    assert {trial["error"] for trial in trials(folder) if trial["state"] != "complete"} == {"its worker died"}
    # None twice: every step of every run was written once, whoever wrote it.
    assert len(writers(folder)) == 10 and all(len(steps) == 5 for steps in writers(folder).values())
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"sesame" in path.read_bytes()] and "sesame" not in output


def test_two_hosts_that_begin_at_once_make_one_study(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder in common, as hosts are."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), str(ROOT)]))
    folders = [tmp_path / host / "fake" for host in ("first", "second")]
    for folder in folders:
        folder.mkdir(parents=True)
    commands = [start(folder, f"storage={server.url}") for folder in folders]
    outputs = [command.communicate(timeout=280)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outputs
    for folder in folders:
        assert completed(folder) == Counter((arm, seed) for arm in ("a", "b") for seed in range(3))
    assert sum(len(writers(folder)) for folder in folders) == 6
