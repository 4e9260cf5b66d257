"""Parquet files as tables of samples: texts at once, embedded pictures group by group as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.common.errors import UserError


@dataclass(frozen=True)
class Embedded:
    """A picture inside a Parquet file, by its column, its row in the file, and its place where the cell is a list."""

    file: Path
    column: str
    row: int
    item: int | None = None


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number and values of every row; a picture that is embedded (bytes, or Hugging Face's struct of bytes and
    path) stands as an `Embedded`, alone or in a list.

    Raises:
        UserError: no Parquet file, or pyarrow is not installed.
    """
    parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            columns = {field.name: _holds_bytes(field.type) for field in file.schema_arrow}
            start = 0
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                found = {name: _cells(file, path, group, start, name) for name, held in columns.items() if held}
                plain = [name for name, held in columns.items() if not held]
                texts = file.read_row_group(group, columns=plain).to_pylist() if plain else [{}] * size
                for i, values in enumerate(texts):
                    yield start + i, {**values, **{name: cells[i] for name, cells in found.items()}}
                start += size
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of them
        raise _unreadable(path, error) from error


def _cells(file: Any, path: Path, group: int, start: int, name: str) -> list[Any]:
    """What the cells of an embedded picture stand for: the picture, its path where a struct has no bytes, or None. The
    bytes are read only where the file's statistics leave open which cells have some."""
    rows = file.metadata.row_group(group)
    chunks = {rows.column(i).path_in_schema: rows.column(i).statistics for i in range(rows.num_columns)}
    statistics = chunks.get(name) or chunks.get(f"{name}.bytes")
    if statistics is not None and statistics.has_null_count and statistics.null_count == 0:
        return [Embedded(path, name, start + i) for i in range(rows.num_rows)]
    cells = file.read_row_group(group, columns=[name])[name].to_pylist()
    return [_stand_in(cell, Embedded(path, name, start + i)) for i, cell in enumerate(cells)]


def _stand_in(cell: Any, picture: Embedded) -> Any:
    """What stands for a cell whose bytes are those of `picture`."""
    if isinstance(cell, list):
        return [_stand_in(each, replace(picture, item=i)) for i, each in enumerate(cell)]
    content, other = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    return picture if content is not None else other


def read_embedded(picture: Embedded) -> bytes:
    """The bytes of an embedded picture; empty where the cell is."""
    start, group = _place(picture.file, picture.row)
    cell = _column(picture.file, picture.column, group)[picture.row - start]
    cell = cell if picture.item is None else cell[picture.item]
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise UserError(f"{picture.file}, row {picture.row}: no bytes in the column {picture.column}; drop the row")
    return content


def _place(path: Path, row: int) -> tuple[int, int]:
    """First row and number of the group of rows that holds `row`."""
    start = 0
    for group, size in enumerate(_group_sizes(path)):
        if row < start + size:
            return start, group
        start += size
    raise UserError(f"{path} has no row {row} any more: pack again")


@lru_cache(maxsize=8)
def _group_sizes(path: Path) -> tuple[int, ...]:
    with _pyarrow().ParquetFile(path) as file:
        return tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))


@lru_cache(maxsize=2)
def _column(path: Path, column: str, group: int) -> list[Any]:
    """One column of a group of rows: samples are read in order, source and target in turn."""
    try:
        with _pyarrow().ParquetFile(path) as file:
            found: list[Any] = file.read_row_group(group, columns=[column])[column].to_pylist()
            return found
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _holds_bytes(kind: Any) -> bool:
    """Whether a column is of bytes, of structs that have a field `bytes`, or of lists of them."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}; write it again")


def _pyarrow() -> ModuleType:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError("Parquet files need pyarrow: pip install 'few-step-workbench[parquet]'") from error
    return parquet
