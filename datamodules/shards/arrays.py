"""Float16 arrays as the .npy members of encoded shards hold them."""

from __future__ import annotations

import io
from functools import lru_cache
from tokenize import TokenError

import numpy as np

from workbench.common.errors import UserError

_INFINITE = 0x7C00
"""Bits of float16 whose exponent is all ones: infinity and NaN. numpy has no fast isfinite of float16."""


def npy_bytes(values: np.ndarray, where: str) -> bytes:
    """`values` as a float16 .npy file. UserError naming `where` if a value is not finite in float16."""
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values, dtype=np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(np.asarray(values, dtype=np.float64)).max())
        raise UserError(f"{where}: values up to {largest:g} do not fit float16 (65504 at most); use other weights")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, half, allow_pickle=False)
    return buffer.getvalue()


@lru_cache(maxsize=4096)
def _parsed_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of an .npy header. Parsing one takes longer than reading an array, and few differ."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("of an unknown version")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or is_fortran:
        raise ValueError("not of numbers in C order")
    return dtype, shape


def view_of(content: bytes, where: str) -> np.ndarray:
    """The float16 array (rows, columns) in an .npy file, read-only. Objects, which would be unpickled, are refused.

    Raises:
        UserError: naming `where`, for anything else.
    """
    try:
        start = 10 + int.from_bytes(content[8:10], "little")
        dtype, shape = _parsed_header(content[:start])
        if dtype != np.float16 or len(shape) != 2:
            raise ValueError(f"{dtype} of shape {shape}, not rows of float16")
        if len(content) - start != shape[0] * shape[1] * dtype.itemsize:
            raise ValueError(f"{len(content) - start} bytes for shape {shape}")
        return np.ndarray(shape, dtype, content, start)
    except (ValueError, TypeError, SyntaxError, TokenError) as error:
        raise UserError(f"{where}: not a plain array ({error}); encode again") from error


def finite_view_of(content: bytes, where: str) -> np.ndarray:
    """The same; UserError for values that are not finite too."""
    found = view_of(content, where)
    if not is_finite(found):
        raise UserError(f"{where}: holds values that are not finite; encode again")
    return found


def is_finite(values: np.ndarray) -> bool:
    """Whether float16 values hold neither infinity nor NaN."""
    return not values.size or int((values.view(np.int16) & 0x7FFF).max()) < _INFINITE
