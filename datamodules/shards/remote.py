"""Reading over http(s): opening with retries, and whole files cached on disk with size and sha256 checked."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

from filelock import FileLock
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from workbench.common.errors import UserError
from workbench.common.files import CHUNK_BYTES, progress, require_space, whole_file
from workbench.common.outside import LARGEST_JSON_BYTES, inside

NUM_ATTEMPTS = 4
BACKOFF_S = 0.5
TIMEOUT_S = 30.0
SLOWEST_OVER_S = 30.0
SLOWEST_BYTES_PER_S = 1024

T = TypeVar("T")


class _Incomplete(OSError):
    """A transfer that ended early or with the wrong content."""


class _Unbearable(ValueError):
    """A transfer that would be as bad again: too slow, or longer than it may be."""


class Steady:
    """The body of a response, from a server that neither sends more than `most` bytes nor drips."""

    def __init__(self, response: HTTPResponse, most: int | None = None) -> None:
        self.response, self.most, self.received = response, most, 0
        self._since = (time.monotonic(), 0)

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """What has come, `size` bytes at most; empty at the end.

        Raises: OSError for a body that ends early. ValueError for one that is too slow or too long.
        """
        chunk = self.response.read1(size)
        self.received += len(chunk)
        if self.most is not None and self.received > self.most:
            raise _Unbearable(f"the server sends more than {self.most:,} bytes")
        started, before = self._since
        if (elapsed := time.monotonic() - started) > SLOWEST_OVER_S:
            if self.received - before < elapsed * SLOWEST_BYTES_PER_S:
                raise _Unbearable(f"the server sends fewer than {SLOWEST_BYTES_PER_S:,} bytes a second")
            self._since = (time.monotonic(), self.received)
        if not chunk and self.response.length:
            raise _Incomplete(f"the connection ended {self.response.length:,} bytes early")
        return chunk

    def close(self) -> None:
        """Leave the rest unread."""
        self.response.close()


def is_remote(address: str) -> bool:
    """Whether `address` is an http(s) one."""
    return address.startswith(("http://", "https://"))


def cache_folder(url: str) -> Path:
    """Where the files behind `url` are cached: under WORKBENCH_CACHE or ~/.cache/workbench-shards."""
    root = os.environ.get("WORKBENCH_CACHE") or Path.home() / ".cache" / "workbench-shards"
    return Path(root) / hashlib.sha256(url.encode()).hexdigest()[:16]


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: after a dropped connection, status 429 or 5xx."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code == 429
    return isinstance(error, OSError | HTTPException)


def _retry(url: str, action: Callable[[], T]) -> T:
    """`action()`, repeated after pauses while its error may pass; a UserError naming `url` in the end."""
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(NUM_ATTEMPTS),
        wait=wait_exponential(multiplier=BACKOFF_S),
        reraise=True,
    )
    try:
        return retrying(action)
    except (OSError, ValueError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, urllib.error.HTTPError):
            reason = f"the server answers {error.code} {error.reason}"
        if _may_pass(error):
            reason = f"{reason}; try again, finished files are kept"
            raise UserError(f"cannot read {url} after {NUM_ATTEMPTS} attempts: {reason}") from error
        raise UserError(f"cannot read {url}: {reason}; check the address") from error


def _answer(request: str | urllib.request.Request) -> HTTPResponse:
    """The response, its body unread. A time limit of a socket is one for every read: a head that drips needs its own,
    and a thread that is left behind ends with its server or this process."""
    found: Queue[HTTPResponse | BaseException] = Queue()

    def ask() -> None:
        try:
            found.put(urllib.request.urlopen(request, timeout=TIMEOUT_S))
        except BaseException as error:
            found.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = found.get(timeout=2 * TIMEOUT_S)
    except Empty:
        raise _Unbearable(f"the server has not answered within {2 * TIMEOUT_S:g} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def open_url(url: str) -> Steady:
    """The body behind `url`, still unread. Retries; UserError if that does not help."""
    return Steady(_retry(url, lambda: _answer(url)))


def fetch_bytes(url: str) -> bytes:
    """The whole body behind `url`, an index or the like. Retries; UserError if that does not help."""

    def read() -> bytes:
        with _answer(url) as response:
            body = Steady(response, LARGEST_JSON_BYTES)
            return b"".join(iter(partial(body.read, CHUNK_BYTES), b""))

    return _retry(url, read)


def describe(url: str) -> dict[str, Any]:
    """What identifies the content behind `url` without reading it: size, entity tag and date of change."""

    def asked(method: str) -> dict[str, Any]:
        with _answer(urllib.request.Request(url, method=method)) as response:
            names = ("Content-Length", "ETag", "Last-Modified")
            return {"url": url, **{name: response.headers.get(name) for name in names}}

    def head() -> dict[str, Any]:
        try:
            return asked("HEAD")
        except urllib.error.HTTPError as error:
            if error.code not in (405, 501):
                raise
            return asked("GET")  # the body stays unread

    return _retry(url, head)


def _download(url: str, path: Path, num_bytes: int, sha256: str, advance: Callable[[int], None]) -> None:
    """One attempt; `path` appears only when size and sha256 are right."""
    digest, received = hashlib.sha256(), 0
    try:
        with _answer(url) as response, whole_file(path) as file:
            body = Steady(response, num_bytes)
            while chunk := body.read(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                advance(len(chunk))
            if received != num_bytes:
                raise _Incomplete(f"got {received} of {num_bytes} bytes")
            if digest.hexdigest() != sha256:
                raise _Incomplete("the content does not match the sha256 of the index")
    except BaseException:
        advance(-received)
        raise


def cache_files(base_url: str, files: list[tuple[str, int, str]], folder: Path) -> list[Path]:
    """Whole copies of `files` (name, bytes, sha256) of `base_url` in `folder`; finished ones are not fetched again.

    A lock lets one process download while the others wait. A file bears its sha256 in its name, so a changed one on
    the server never mixes with an older copy.

    Raises:
        UserError: no space, or a file that cannot be had whole after several attempts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = [inside(folder, f"{sha256[:16]}-{name}") for name, _, sha256 in files]
    with FileLock(folder / "lock"):
        missing = [
            (path, *file)
            for path, file in zip(targets, files, strict=True)
            if not path.exists() or path.stat().st_size != file[1]
        ]
        total = sum(num_bytes for _, _, num_bytes, _ in missing)
        require_space(folder, total, f"caching {base_url}")
        if missing:
            with progress(download=True) as bar:
                task = bar.add_task(f"caching {base_url}", total=total)
                for path, name, num_bytes, sha256 in missing:
                    url = f"{base_url.rstrip('/')}/{name}"
                    _retry(url, lambda: _download(url, path, num_bytes, sha256, lambda n: bar.advance(task, n)))  # noqa: B023
    return targets
