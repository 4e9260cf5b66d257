"""Imports point one way: pure core <- data, modules <- runner <- command line; nothing but that line knows studies."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("workbench", "datamodules", "studies")
PURE = ("flow", "guidance", "dmd", "rollout", "rng", "batch", "errors")
BOTH_SIDES = ("workbench.runner", "workbench.cli")
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


def offences(files: dict[str, Path], *forbidden: str) -> list[str]:
    """Imports of `forbidden` packages in `files`, as 'module imports name'."""
    return [
        f"{module} imports {name}"
        for module, path in files.items()
        for name in imports(path)
        if inside(name, *forbidden)
    ]


def part(*packages: str) -> dict[str, Path]:
    return {module: path for module, path in OURS.items() if inside(module, *packages)}


@pytest.mark.parametrize("name", PURE)
def test_the_pure_core_imports_torch_alone(name: str) -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    pure = {f"workbench.{other}" for other in PURE}
    for imported in imports(ROOT / "workbench" / f"{name}.py"):
        known = imported.split(".")[0] in allowed or inside(imported, *pure)
        # `from workbench import flow` reads as workbench.flow
        assert known, f"workbench.{name} imports {imported}"


def test_data_never_import_what_learns_from_them() -> None:
    theirs = [module for module in OURS if inside(module, "workbench")]
    may = ("workbench.errors", "workbench.batch", "workbench.config", "workbench.pipeline", "workbench.rng")
    forbidden = [module for module in theirs if module != "workbench" and not inside(module, *may)]
    assert offences(part("datamodules"), "studies", *forbidden) == []


def test_modules_never_import_the_data_or_the_runner() -> None:
    assert offences(part("workbench.modules"), "datamodules", "studies", "workbench.cli", "workbench.runner") == []


def test_only_the_runner_sees_both_sides() -> None:
    def sees(path: Path, package: str) -> bool:
        return any(inside(name, package) for name in imports(path))

    both = [
        module
        for module, path in part("workbench", "datamodules").items()
        if sees(path, "datamodules") and sees(path, "workbench.modules")
    ]
    # plan and milestones are the runner's own two helpers: what a run would do, and what it draws on the way
    assert set(both) <= {"workbench.runner", "workbench.plan", "workbench.milestones"}


def test_nothing_imports_the_runner_but_the_commands() -> None:
    below = {module: path for module, path in part("workbench", "datamodules").items() if module not in BOTH_SIDES}
    assert offences(below, "workbench.runner", "workbench.cli") == ["workbench.__main__ imports workbench.cli.main"]


def test_nothing_imports_studies_but_the_command_line_and_that_lazily() -> None:
    assert offences(part("workbench", "datamodules"), "studies") == ["workbench.cli imports studies.runner.run_study"]
    top = [node for node in ast.parse(OURS["workbench.cli"].read_text()).body if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in top if inside(str(node.module), *PACKAGES)} == {"workbench.errors"}


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
    assert users <= {"workbench.safe_reader"}, "safe_reader alone may subclass pickle's reader, to refuse"
