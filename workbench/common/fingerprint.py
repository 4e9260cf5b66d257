"""What tells a model's files from all others."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from workbench.common.files import settings_hash, sha256_of_file

HASHED_BYTES = 1 << 28
"""Bigger files of weights are identified by size and time of change: reading them takes longer than sampling."""
SUFFIXES = (".json", ".safetensors", ".txt", ".jinja")


def fingerprint(folder: Path) -> str:
    """Hash of the files of a model's folder, or of one file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    stats = [(path, path.stat()) for path in files if path.suffix in SUFFIXES]
    return settings_hash(
        [
            (
                str(path.relative_to(folder)) if path != folder else "",
                _file_hash(path, stat.st_size, stat.st_mtime_ns)
                if stat.st_size <= HASHED_BYTES
                else [stat.st_size, stat.st_mtime_ns],
            )
            for path, stat in stats
        ]
    )


@lru_cache(maxsize=1024)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Size and time tell that a file read before is still the same."""
    return sha256_of_file(path)
