"""The commands `runs` and `clean`: their arguments, and what they do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Their parsers."""
    text = "list all runs and trials in a folder; compare, tag and annotate them"
    command = commands.add_parser("runs", help=text, description=text, epilog=_KEYS, parents=[common])
    command.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("runs"))
    command.add_argument("--sort", metavar="KEY", help="scores from the highest, all else from the lowest")
    command.add_argument("--reverse", action="store_true", help="the other way round")
    text = "only runs with this; also !=, <, >, <= and >=, * in text; may be given again"
    command.add_argument("--filter", metavar="KEY=VALUE", action="append", default=[], help=text)
    text = "instead: print what two runs differ in"
    command.add_argument("--diff", nargs=2, metavar=("RUN", "RUN"), type=Path, help=text)
    text = "instead: add a tag to a run"
    command.add_argument("--tag", nargs=2, metavar=("RUN", "WORD"), action="append", default=[], help=text)
    text = "instead: take a tag away"
    command.add_argument("--untag", nargs=2, metavar=("RUN", "WORD"), action="append", default=[], help=text)
    text = "instead: put a note on a run; an empty one takes it away"
    command.add_argument("--note", nargs=2, metavar=("RUN", "TEXT"), action="append", default=[], help=text)

    text = "delete the checkpoints that nothing needs, after telling their size and asking"
    command = commands.add_parser("clean", help=text, description=text, parents=[common])
    what = "a folder of runs, or one run (default: runs)"
    command.add_argument("folder", metavar="FOLDER_OR_RUN", nargs="?", type=Path, default=Path("runs"), help=what)
    command.add_argument("--yes", action="store_true", help="do not ask")


_KEYS = (
    "keys: every recipe key; name, state, age (2d, 30min), done, tags, note; of the student's scores score, t2i, "
    "editing, t2i/CATEGORY, editing/CATEGORY, nfe, diversity, frechet, seconds_per_image"
)


class Version(argparse.Action):
    """Print version and commit."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print version and, of a checkout, its commit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from workbench.runs.environment import DISTRIBUTION, commit, installed

        of = commit()
        print(f"workbench {installed(DISTRIBUTION)}{f' (commit {of})' if of else ''}")
        parser.exit()


def run(arguments: argparse.Namespace) -> None:
    """The chosen command. Raises: UserError."""
    if arguments.command == "clean":
        from workbench.runs.cleaning import clean

        clean(arguments.folder, arguments.yes)
        return
    from workbench.runs import labels

    changed: dict[Path, labels.Labels] = {}
    for change, pairs in (
        (labels.tag, arguments.tag), (labels.untag, arguments.untag), (labels.note, arguments.note)
    ):  # fmt: skip
        for place, text in pairs:
            changed[Path(place)] = change(Path(place), text)
    for place, found in changed.items():
        print(f"{place}: {' '.join(f'#{tag}' for tag in found.tags) or 'no tags'}; {found.note or 'no note'}")
    if not changed:
        _show(arguments)


def _show(arguments: argparse.Namespace) -> None:
    from workbench.common.tables import stdout_console
    from workbench.runs import listing, overview

    if arguments.diff:
        first, second = arguments.diff
        listing.show_difference(first, second, stdout_console())
    else:
        runs = overview.runs_in(arguments.folder)
        listing.show(runs, arguments.filter, arguments.sort, arguments.reverse, stdout_console())
