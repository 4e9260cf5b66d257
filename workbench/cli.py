"""The command line: one sub-command a verb, each importing only what it runs."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from workbench.common.errors import UserError, nearest

RECIPE_COMMANDS = {
    "pack": "draw the world, or read one's own images, into raw WebDataset shards",
    "encode": "turn raw shards into encoded ones with the teacher's autoencoder and text encoder",
    "pretrain": "train a teacher by flow matching",
    "distill": "distil the teacher into a few-step student; the same command continues an interrupted run",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a bar's characters must not end a run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = _parse(argv)
    from workbench.common.ending import exit_code

    return exit_code(lambda: _run(arguments), arguments.debug)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides may stand after an option too, where argparse itself takes none."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv, argparse.Namespace(debug=False, overrides=None))
    wrong = [word for word in rest if arguments.overrides is None or word.startswith("-") or "=" not in word]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        arguments.overrides += rest
    return arguments


class _Parser(argparse.ArgumentParser):
    """Says which command a mistyped one may have been."""

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message):
            names = re.findall(r"[\w-]+", found[2])
            message = f"no command {found[1]!r}{nearest(found[1], names)}; there are {', '.join(names)}"
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    from studies.ranking import commands as of_rankings
    from workbench.runs import commands as of_runs

    common = _Parser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="tracebacks and the libraries' own messages"
    )
    parser = _Parser(prog="workbench", description="Find the recipe of few-step distillation.", parents=[common])
    parser.add_argument("--version", action=of_runs.Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, text in RECIPE_COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, parents=[common])
        command.add_argument("recipe", metavar="RECIPE", help="YAML file of differences from the defaults")
        _add_overrides(command)
        if name in ("encode", "distill"):
            command.add_argument("--dry-run", action="store_true", help="print the plan, time and disk; write nothing")

    text = "draw one image with a pipeline folder"
    command = commands.add_parser("sample", help=text, description=text, parents=[common])
    command.add_argument("folder", metavar="FOLDER", help="pipeline folder or run; `tiny` is the teacher that ships")
    command.add_argument("prompt", metavar="PROMPT", help="caption, or instruction with --image")
    command.add_argument("--image", type=Path, action="append", default=[], help="picture to edit; repeat for several")
    command.add_argument("--out", type=Path, required=True, help="file to write, .png or .jpg or .webp")
    command.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    command.add_argument("--size", metavar="WxH", help="of the picture in pixels (default: the run's or the folder's)")

    text = "score a run (teacher, best few-step teacher, student) or a pipeline folder on both benchmarks"
    command = commands.add_parser("evaluate", help=text, description=text, parents=[common])
    command.add_argument("target", metavar="FOLDER_OR_RUN")
    _add_overrides(command)
    command.add_argument("--dry-run", action="store_true", help="print the images, judge calls and tokens it takes")
    text = "LoRA file over a pipeline folder; may be given several times"
    command.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help=text)

    of_rankings.add_to(commands, common)

    text = "write the benchmarks that ship, or published ones whose files you have, as JSONL for `evaluation.cases`"
    command = commands.add_parser("cases", help=text, description=text, parents=[common])
    what = "OUT.jsonl [key=value ...], or FORM FILE ... OUT.jsonl [language=en] with a form of docs/cases.md"
    command.add_argument("words", metavar="WORD", nargs="+", help=what)

    text = "compare two evaluated runs case by case, with paired intervals"
    command = commands.add_parser("compare", help=text, description=text, parents=[common])
    command.add_argument("runs", metavar="RUN", type=Path, nargs=2)
    command.add_argument("--evaluation", metavar="NAME", default="", help="default: the first that both have")

    text = "write a run's student as a diffusers pipeline folder, or as a LoRA file"
    command = commands.add_parser("export", help=text, description=text, parents=[common])
    command.add_argument("run", metavar="RUN", type=Path)
    command.add_argument("folder", metavar="OUT", type=Path, help="a folder; with --lora a .safetensors file")
    command.add_argument("--lora", action="store_true", help="a LoRA file over the teacher, of a run of LoRA roles")
    text = "names of the LoRA's weights: diffusers (load_lora_weights, the default) or comfyui"
    command.add_argument("--format", choices=("diffusers", "comfyui"), help=text)
    _add_overrides(command, "license=NAME base_model=OWNER/NAME for the card, model.folder=TEACHER, trainer.keep=best")

    text = "run a study: arms times seeds, each trial an ordinary run; the same command continues it"
    more = "also: seeds=0,1,2 arms=A,B trials=N search=true workers=N devices=0,1 budget=MINUTES folder=F recipe=FILE"
    more += " storage=URL|journal:FILE noise_floor=SD smoke=true"
    command = commands.add_parser("study", help=text, description=text, epilog=more, parents=[common])
    what = "a study of studies/catalogue.py (an unknown name lists them), a .py file of your own, or the folder of a "
    what += "search, whose winner is run again"
    command.add_argument("name", metavar="NAME", help=what)
    _add_overrides(command)

    of_runs.add_to(commands, common)

    text = "write report.html of a run or study folder"
    command = commands.add_parser("report", help=text, description=text, parents=[common])
    command.add_argument("folder", metavar="FOLDER", type=Path)
    text = "a search's: noise-floor study that says how far single runs differ by chance"
    command.add_argument("--noise-floor", type=Path, metavar="FOLDER", help=text)
    return parser


def _add_overrides(
    command: argparse.ArgumentParser, text: str = "change the recipe, e.g. trainer.updates=50 seed=1"
) -> None:
    # Without a default, argparse lists them among the arguments that are required.
    command.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)


def _run(arguments: argparse.Namespace) -> None:
    """The chosen command. Imports stand here so that `--help` and bad arguments answer at once."""
    match arguments.command:
        case "pack" | "encode" | "pretrain" | "distill":
            _run_recipe(arguments)
        case "sample":
            from workbench.runs.sample_file import sample_to_file

            sample_to_file(
                arguments.folder, arguments.prompt, arguments.image, arguments.out, arguments.seed, arguments.size
            )
            print(f"wrote {arguments.out}")
        case "evaluate":
            from workbench.runs.inference import evaluate_run

            evaluate_run(Path(arguments.target), arguments.overrides, arguments.dry_run, loras=arguments.lora)
        case "rank":
            from studies.ranking.commands import run as rank

            rank(arguments)
        case "cases":
            from workbench.runs.case_files import write_case_file

            print(write_case_file(arguments.words))
        case "compare":
            first, second = (_folder(run, "run") for run in arguments.runs)
            from workbench.evaluation.compare import compare_runs

            compare_runs(first, second, arguments.evaluation)
        case "export":
            run = _folder(arguments.run, "run")
            from workbench.runs.exporting import export_and_say

            export_and_say(run, arguments.folder, arguments.lora, arguments.format, arguments.overrides)
        case "study":
            from studies.machine.runner import run_study

            run_study(arguments.name, arguments.overrides)
        case "runs" | "clean":
            from workbench.runs.commands import run as list_or_clean

            list_or_clean(arguments)
        case "report":
            folder = _folder(arguments.folder, "run or study")
            print(f"wrote {_report_on(folder, arguments.noise_floor)}")


def _run_recipe(arguments: argparse.Namespace) -> None:
    from workbench.recipe.reading import load

    recipe = load(arguments.recipe, arguments.overrides)
    match arguments.command:
        case "pack":
            from datamodules.shards.pack import pack

            pack(recipe)
        case "encode":
            if arguments.dry_run:
                from workbench.common.tables import stdout_console
                from workbench.runs.encode_plan import show

                show(recipe, stdout_console())
            else:
                from workbench.runs.encoding import encode

                encode(recipe)
        case "pretrain":
            from workbench.runs.runner import pretrain

            print(f"wrote {pretrain(recipe)}")
        case "distill":
            from workbench.runs.runner import distill

            folder = distill(recipe, dry_run=arguments.dry_run)
            # Lightning starts this command once more for every further rank.
            if not arguments.dry_run and os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"wrote {folder}")


def _report_on(folder: Path, noise_floor: Path | None) -> Path:
    if (folder / "study.json").is_file():
        from studies.analysis.page import report_study

        return report_study(folder, noise_floor)
    if noise_floor is not None:
        raise UserError(f"--noise-floor is for the report of a study, but {folder} holds no study.json")
    from workbench.reporting.page import report

    return report(folder)


def _folder(path: Path, kind: str) -> Path:
    if not path.is_dir():
        raise UserError(f"no {kind} folder at {path}")
    return path


if __name__ == "__main__":
    sys.exit(main())
