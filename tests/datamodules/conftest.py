"""Fixtures over the fakes of `shard_fakes`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from shard_fakes import Site, make_encoded

from datamodules.shards import remote
from datamodules.shards.encoded import EncodedDataset


@pytest.fixture(scope="session")
def encoded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoded(tmp_path_factory.mktemp("data"), keep_raw=True)


@pytest.fixture
def dataset(encoded_folder: Path) -> EncodedDataset:
    return EncodedDataset(str(encoded_folder))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Path], tuple[str, type[Site]]]]:
    """A function that serves a folder and returns its address and the handler, whose failures a test may plan."""
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(folder: Path) -> tuple[str, type[Site]]:
        handler = type("Handler", (Site,), {"failures": {}, "requests": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
