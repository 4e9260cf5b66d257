"""Pipeline folders on the disk, of any family: their index, the times they are sampled at, replacing one at once."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.common import ranks
from workbench.common.errors import UserError, nearest
from workbench.common.large_files import copy_large, sync_tree
from workbench.common.outside import Outside, inside, read_json

INDEX_FILE = "model_index.json"
Finish = Callable[[Path], None]
"""Adds to a folder that is being written what comes last."""
STORED_SIGMAS = "_sample_sigmas"
"""Key of a student's times in the index of a pipeline that has no `sample_sigmas` of its own; diffusers passes it over.
"""


def _neighbour(folder: Path) -> str:
    """A hint at what else lies there under a name like that."""
    try:
        return nearest(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()])
    except OSError:
        return ""


def read_index(folder: Path) -> dict[str, Any]:
    """The components of a pipeline folder by name, and the class that holds them, `_class_name`.

    Raises:
        UserError: no pipeline folder, or its index cannot be read.
    """
    if not (folder / INDEX_FILE).is_file():
        if (folder / "student" / INDEX_FILE).is_file():
            raise UserError(f"{folder} is a run folder, not a pipeline folder: name {folder / 'student'}")
        why = f"it has no {INDEX_FILE}" if folder.exists() else f"nothing is there{_neighbour(folder)}"
        raise UserError(f"no pipeline folder at {folder}: {why}")
    index: dict[str, Any] = read_json(folder / INDEX_FILE, dict, "copy the pipeline folder again")
    for key in ("sample_sigmas", STORED_SIGMAS):
        try:
            if sigmas := index.get(key):
                sample_sigmas([*map(float, sigmas), 0.0])
        except (TypeError, ValueError) as error:
            raise UserError(f"{folder / INDEX_FILE}: {key}: {error}; export the student again") from error
    return index


def check_weights(part: Path) -> None:
    """Whether a component has weights that its library will find, and every shard that its index names, each a whole
    file; of a transformer, in a floating-point type.

    Raises:
        UserError: there are none, a shard or the index of the shards is missing, there is only a variant (`fp16`), or a
            file is damaged.
    """
    again = "copy the pipeline folder again"
    found = {path.name for path in part.glob("*.safetensors")}
    if not found:
        raise UserError(f"{part} holds no .safetensors weights: {again}")
    indices = sorted(part.glob("*.safetensors.index.json"))
    for index in indices:
        if lacking := sorted({*read_json(index, _ShardIndex, again).weight_map.values()} - found):
            more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
            raise UserError(f"{part} lacks the shard {lacking[0]}{more}, which {index.name} names: {again}")
    if indices or any(name in found for name in _WHOLE):
        for file in weight_files(part):
            _check_header(file, needs_floats=part.name == "transformer")
        return
    variants = sorted({match[2] or match[3] for name in found if (match := _VARIANT.fullmatch(name))})
    if variants:
        raise UserError(
            f"{part} holds its weights as the variant {', '.join(variants)} alone ({sorted(found)[0]}), which "
            f"is not read: save it without, from_pretrained(FOLDER, variant={variants[0]!r}).save_pretrained(NEW)"
        )
    raise UserError(f"{part} holds no {' or '.join(_WHOLE)}, and no index of the shards {sorted(found)[0]}: {again}")


def _check_header(file: Path, needs_floats: bool) -> None:
    """Reads the names and types of a file's tensors, and that it is as long as they say."""
    try:
        with safe_open(file, framework="np") as opened:
            types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        with open(file, "rb") as content:
            if content.read(len(_POINTER)) == _POINTER:
                raise UserError(f"{file} is a pointer of git-lfs: run `git lfs pull` in its folder") from error
        raise UserError(f"cannot read {file}: {error}; copy the pipeline folder again") from error
    if others := [name for name, kind in types.items() if needs_floats and not kind.startswith(("F", "BF"))]:
        raise UserError(
            f"{file}: {others[0]} is stored as {types[others[0]]}, not in floating point: name a folder that is not "
            "quantised"
        )


def weight_files(part: Path) -> list[Path]:
    """The files that hold a component's weights, once `check_weights` has found them: the shards of its index, or one.

    Raises:
        UserError: the index cannot be read.
    """
    for index in part.glob("*.safetensors.index.json"):
        named = read_json(index, _ShardIndex, "copy the pipeline folder again").weight_map.values()
        return [inside(part, name) for name in sorted({*named})]
    return [path for name in _WHOLE if (path := part / name).is_file()][:1]


class _ShardIndex(Outside):
    """Of weights in several files. weight_map: tensor -> file."""

    weight_map: dict[str, str]


_POINTER = b"version https://git-lfs"
_WHOLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_VARIANT = re.compile(r"(diffusion_pytorch_)?model(?:\.(\w+)(?:-\d+-of-\d+)?|-\d+-of-\d+\.(\w+))\.safetensors")


def sample_sigmas(times: Tensor | Sequence[float]) -> list[float]:
    """The pipeline's `sample_sigmas`, the terminal 0 left out.

    Raises:
        ValueError: the times do not fall from 1 to 0.
    """
    values = [float(time) for time in times]
    falls = all(a > b for a, b in zip(values, values[1:], strict=False))
    if len(values) < 2 or values[0] != 1 or values[-1] != 0 or not falls:
        raise ValueError(f"a grid falls strictly from 1 to 0, got {values}")
    return values[:-1]


def copy_parts(source: Path, out: Path, left_out: Sequence[str]) -> None:
    """Copy the pipeline's components, its index and its licence; other files there, such as adapters, fit only the old
    weights."""
    index = read_index(source)
    for item in sorted(source.iterdir()):
        if item.name in left_out:
            continue
        if item.is_dir() and item.name in index:
            shutil.copytree(item, out / item.name, copy_function=copy_large)
        elif item.is_file() and (item.name == INDEX_FILE or item.name.startswith(("LICENSE", "NOTICE"))):
            copy_large(item, out / item.name)


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` once the block ends well and the disk has all of it, and
    vanishes otherwise.

    Raises:
        UserError: `out` exists and is neither empty nor a pipeline folder, or the disk is full or cannot be written.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / INDEX_FILE).is_file()):
        raise UserError(f"{out} exists and is no pipeline folder: remove it or name another place")
    part, old = (out.with_name(f".{out.name}.{os.getpid()}.{suffix}") for suffix in ("part", "old"))
    _remove_leftovers(out)
    try:
        part.mkdir(parents=True)
        yield part
        _open_to_others(part)
        sync_tree(part)
        if not _swapped(part, out):
            if out.exists():
                os.replace(out, old)
            os.replace(part, out)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(out, error) from error
    finally:
        if old.exists() and not out.exists():
            os.replace(old, out)
        _remove_leftovers(out)


@contextmanager
def replaced_by_all(out: Path) -> Iterator[Path]:
    """As `replaced_folder`, filled by all ranks together; the first one makes it and puts it in place (collective).

    Raises:
        UserError: on every rank, as `replaced_folder`, and where another rank fails within the block.
    """
    with ExitStack() as stack:
        part, fault = out, ""
        if ranks.rank() == 0:
            try:
                part = stack.enter_context(replaced_folder(out))
            except UserError as error:
                fault = str(error)
        ranks.require_no_fault(fault)
        try:
            yield ranks.gathered(part)[0]
        except Exception as error:
            raised = _cannot_write(out, error) if isinstance(error, OSError | SafetensorError) else error
            ranks.gathered(str(raised) or type(raised).__name__)
            raise (ranks.error_of_all(str(raised)) if isinstance(raised, UserError) else raised) from error
        ranks.require_no_fault("")


@contextmanager
def copied_parts(source: Path, out: Path, left_out: Sequence[str]) -> Iterator[None]:
    """As `copy_parts`, by the first rank while the block runs."""
    if ranks.rank() > 0:
        yield
        return
    with ThreadPoolExecutor(1) as copier:
        copied = copier.submit(copy_parts, source, out, left_out)
        yield
        copied.result()


def _open_to_others(folder: Path) -> None:
    """The libraries write weights readable by their owner alone: give them the rights of any other file."""
    usual = folder / ".rights"
    usual.touch()
    mode = usual.stat().st_mode
    usual.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _swapped(one: Path, other: Path) -> bool:
    """Exchange two names at once, so that neither is ever missing (rename(2)). False where one is, or where
    system or disk cannot."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _remove_leftovers(out: Path) -> None:
    """Remove what this process and killed ones left next to `out`, but a replaced folder only once `out` exists."""
    name = re.compile(rf"\.{re.escape(out.name)}\.(?P<pid>\d{{1,9}})\.(?P<kind>part|old)")
    for path in out.parent.iterdir() if out.parent.is_dir() else ():
        found = name.fullmatch(path.name)
        if found and not _is_another_process(int(found["pid"])) and (found["kind"] == "part" or out.exists()):
            shutil.rmtree(path, ignore_errors=True)


def _is_another_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _cannot_write(out: Path, error: OSError | SafetensorError) -> UserError:
    return UserError(f"cannot write {out}: {_reason(error)}; free space or choose another folder")


def _reason(error: OSError | SafetensorError) -> str:
    match error:
        case shutil.Error():
            return "; ".join(str(reason) for _, _, reason in error.args[0][:1])
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)
