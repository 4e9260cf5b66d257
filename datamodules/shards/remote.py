"""Reading over http(s): opening with retries, and whole files cached on disk with size and sha256 checked."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from workbench.common.errors import UserError
from workbench.common.files import CHUNK_BYTES, progress, require_space, whole_file

NUM_ATTEMPTS = 4
BACKOFF_S = 0.5
TIMEOUT_S = 30.0

T = TypeVar("T")


class _Incomplete(Exception):
    """A transfer that ended early or with the wrong content."""


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
    return isinstance(error, OSError | HTTPException | _Incomplete)


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
    except (OSError, ValueError, HTTPException, _Incomplete) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, urllib.error.HTTPError):
            reason = f"the server answers {error.code} {error.reason}"
        if _may_pass(error):
            reason = f"{reason}; try again, finished files are kept"
            raise UserError(f"cannot read {url} after {NUM_ATTEMPTS} attempts: {reason}") from error
        raise UserError(f"cannot read {url}: {reason}; check the address") from error


def open_url(url: str) -> HTTPResponse:
    """The response to GET `url`, its body still unread. Retries; UserError if that does not help."""
    return _retry(url, lambda: urllib.request.urlopen(url, timeout=TIMEOUT_S))


def fetch_bytes(url: str) -> bytes:
    """The whole body behind `url`. Retries; UserError if that does not help."""

    def read() -> bytes:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return response.read()

    return _retry(url, read)


def describe(url: str) -> dict[str, Any]:
    """What identifies the content behind `url` without reading it: size, entity tag and date of change."""

    def asked(method: str) -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=TIMEOUT_S) as response:
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
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, whole_file(path) as file:
            while chunk := response.read(CHUNK_BYTES):
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
    targets = [folder / f"{sha256[:16]}-{name}" for name, _, sha256 in files]
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
