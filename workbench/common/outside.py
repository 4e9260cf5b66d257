"""What comes from outside: files and JSON read through one validated reader, names turned into paths inside a folder.

A reader names the type that it expects (a pydantic model, a dataclass, a plain type); depth, size, types and ranges are
checked once, here, and an error names the file, the line and the field.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Hashable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from workbench.common.errors import UserError, shortened

Kind = TypeVar("Kind")
LARGEST_JSON_BYTES = 1 << 30
LARGEST_WHOLE = 1 << 53
LONGEST_TEXT = 20_000
"""Characters of a caption, prompt or instruction: a text encoder's memory and time grow with the square."""
_LONGEST_NAME_BYTES = 150
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Outside(BaseModel):
    """A JSON object of a known form. Fields that it does not have are left out, values of another type refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


def plain_name(name: str) -> str:
    """`name`, if it can stand for a file in a folder. Raises: ValueError."""
    plain = name and not name.startswith(".") and not re.search(r"[/\\]", name) and not CONTROL.search(name)
    if not plain or len(name.encode()) > _LONGEST_NAME_BYTES:
        raise ValueError(f"{shortened(repr(name), 80)} is no plain file name")
    return name


Count = Annotated[int, Field(ge=0, le=LARGEST_WHOLE)]
PlainName = Annotated[str, AfterValidator(plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def inside(folder: Path, name: str) -> Path:
    """Path in `folder` of the file that a name from outside stands for.

    Raises:
        UserError: the name is empty, hidden, too long, or leads out of the folder.
    """
    try:
        return folder / plain_name(name)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error


def as_name(text: str) -> str:
    """A plain file name for any text: the text itself where it is one, else what is left of it and a hash."""
    try:
        return plain_name(text)
    except ValueError:
        kept = re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII).strip("._")[:80]
        return f"{kept or 'x'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def read_bytes(path: Path, mend: str, where: str = "", largest: int = LARGEST_JSON_BYTES) -> bytes:
    """The content of a regular file of at most `largest` bytes; devices and pipes would never end.

    where: what the error calls the file, its path when empty.

    Raises:
        UserError: ending with `mend`.
    """
    where = where or str(path)
    try:
        # Without waiting for a writer, as the opening of a named pipe would.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{where} is no regular file; {mend}")
            if found.st_size > largest:
                raise UserError(f"{where} has {found.st_size:,} bytes, {largest:,} at most are read; {mend}")
            return file.read()
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error}); {mend}") from error


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticUserError:  # a model has its configuration already
        return TypeAdapter(kind)


def parse(content: bytes | str, kind: type[Kind], where: str, mend: str) -> Kind:
    """The JSON in `content` as a `kind`.

    Raises:
        UserError: naming `where` and the field, and ending with `mend`, for what is no JSON or of another form.
    """
    plain = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    try:
        found: Kind = _adapter(cast(Hashable, kind)).validate_json(plain.removeprefix(b"\xef\xbb\xbf"), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {reason(error)}; {mend}") from error
    return found


def read_json(path: Path, kind: type[Kind], mend: str) -> Kind:
    """The JSON file `path` as a `kind`. Raises: UserError, ending with `mend`."""
    return parse(read_bytes(path, mend), kind, str(path), mend)


def read_lines(path: Path, kind: type[Kind], mend: str) -> Iterator[tuple[int, Kind]]:
    """Number and content of every line of a JSON-lines file that is not empty. Raises: UserError ending with `mend`."""
    for number, line in enumerate(read_bytes(path, mend).split(b"\n"), 1):
        if line.strip():
            yield number, parse(line, kind, f"{path}:{number}", mend)


def reason(error: ValidationError) -> str:
    """The first fault in words: where in the JSON, and what is wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    what = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "json_invalid":
        what = f"not valid JSON ({what.removeprefix('Invalid JSON: ')})"
    return shortened(f"{place}: {what}" if place else what, 300)
