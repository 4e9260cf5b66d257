"""Imports point one way: every part imports only parts of the levels below its own, and nothing but the command line
and the studies themselves knows the studies. What one family of networks or one world needs stays in its folder."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from datamodules.openmoji import CATEGORIES

ROOT = Path(__file__).parent.parent
PACKAGES = ("workbench", "datamodules", "studies")
LEVELS = (
    ("workbench.common", "workbench.batch"),
    ("workbench.method",),
    ("workbench.recipe",),
    ("datamodules", "workbench.engine", "workbench.backbones"),
    ("workbench.modules",),
    ("workbench.sampling",),
    ("workbench.evaluation",),
    ("workbench.reporting",),
    ("workbench.runs",),
    ("workbench.bench",),
    ("studies",),
    ("workbench.cli",),
    ("workbench.__main__",),
)
"""Parts of one level do not import each other, except that a backbone may use the engine and the world's cases are
drawn by `datamodules`."""
OURS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Dotted names that a file imports, lazily or not; `from a import b` gives a.b."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{path}: relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def part(*packages: str) -> dict[str, Path]:
    return {module: path for module, path in OURS.items() if inside(module, *packages)}


def place(name: str) -> tuple[int, str]:
    """Level and part of one of our modules, or of a name inside it."""
    for level, parts in enumerate(LEVELS):
        for candidate in parts:
            if inside(name, candidate):
                return level, candidate
    raise AssertionError(f"{name} belongs to no level: add its part to LEVELS")


def offences(files: dict[str, Path], *forbidden: str) -> list[str]:
    """Imports of `forbidden` packages in `files`, as 'module imports name'."""
    return [
        f"{module} imports {name}"
        for module, path in files.items()
        for name in imports(path)
        if inside(name, *forbidden)
    ]


def against_the_order() -> list[str]:
    found = []
    for module, path in OURS.items():
        if module == "workbench":
            continue
        level, own = place(module)
        for name in imports(path):
            if inside(name, *PACKAGES) and name not in PACKAGES:
                other_level, other = place(name)
                if other != own and other_level >= level:
                    found.append(f"{module} imports {name}")
    return found


def test_every_part_imports_only_what_lies_below_it() -> None:
    lazily = ["workbench.cli"]
    assert [line for line in against_the_order() if line.split()[0] not in lazily] == []


def test_the_method_imports_torch_alone() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    for module, path in part("workbench.method", "workbench.batch").items():
        for imported in imports(path):
            ours = inside(imported, "workbench.method", "workbench.batch", "workbench.common.errors")
            assert imported.split(".")[0] in allowed or ours, f"{module} imports {imported}"


def test_the_command_line_imports_lazily() -> None:
    top = [node for node in ast.parse(OURS["workbench.cli"].read_text()).body if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in top if inside(str(node.module), *PACKAGES)} == {"workbench.common.errors"}


def test_there_are_no_cycles() -> None:
    remaining = {module: {_home(name) for name in imports(path)} - {module, None} for module, path in OURS.items()}
    while free := [module for module, names in remaining.items() if not names & remaining.keys()]:
        for module in free:
            del remaining[module]
    assert not remaining, f"modules in or behind an import cycle: {sorted(remaining)}"


def _home(name: str) -> str | None:
    """Our module that an imported name comes from."""
    while name and name not in OURS:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize("word", ["pickle", "cPickle", "dill", "joblib", "cloudpickle"])
def test_nothing_unpickles(word: str) -> None:
    users = {offence.split()[0] for offence in offences(OURS, word)}
    assert users <= {"workbench.runs.safe_reader"}, "safe_reader alone may subclass pickle's reader, to refuse"


def test_every_package_states_its_job_in_one_sentence() -> None:
    for init in (path for path in OURS.values() if path.name == "__init__.py"):
        docstring = ast.get_docstring(ast.parse(init.read_text()))
        assert docstring and docstring.split("\n\n")[0].strip().endswith("."), f"{init} has no sentence on its job"


def test_few_files_of_the_library_name_a_family() -> None:
    families = {ROOT / "workbench" / "backbones" / name for name in ("qwen_image_21", "qwen_image")}
    users = {name for name, path in part("workbench").items() if not families & {*path.parents} and names_family(path)}
    assert users == {"workbench.backbones.families"}


def names_family(path: Path) -> bool:
    return "qwen" in path.read_text().lower()


def test_the_library_names_no_category_of_the_world_that_ships() -> None:
    fields = {"text", "scene"}  # these are also words for a part of a message and of a case
    words = {category for of_task in CATEGORIES.values() for category in of_task} - fields
    words |= {f"{task}/{category}" for task, of_task in CATEGORIES.items() for category in of_task}
    for module, path in part("workbench").items():
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & words, f"{module} names {sorted(strings & words)}"


def test_the_library_is_at_most_fourteen_parts() -> None:
    parts = {path.name for path in (ROOT / "workbench").iterdir() if not path.name.startswith("__")}
    assert len(parts) <= 14, sorted(parts)


def test_files_are_short() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in OURS.items()}
    assert {module for module, length in lengths.items() if length > 300} <= {"workbench.recipe.config"}
