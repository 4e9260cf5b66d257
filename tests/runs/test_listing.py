"""`workbench runs`: what stands in the table, its order, its filters, labels, and what it costs."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console
from study_fakes import World, base_recipe

from workbench import cli
from workbench.common.errors import UserError
from workbench.common.files import only_one
from workbench.recipe.reading import to_yaml
from workbench.runs import labels, listing, overview

ROOT = Path(__file__).parents[2]


@cache
def recipe_with(*overrides: str) -> str:
    """YAML of the smoke recipe."""
    return to_yaml(base_recipe(*overrides, "trainer.folder=FOLDER", "trainer.updates=4"))


def a_run(folder: Path, *overrides: str, t2i: float | None = None, done: int = 4, finished: bool = True) -> Path:
    """The small files of a run."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_with(*overrides).replace("folder: FOLDER", f"folder: {folder}"))
    (folder / "run.json").write_text(json.dumps({"command": "distill", "finished": 4 if finished else None}))
    rows = [json.dumps({"update": update, "loss": 1.0}) for update in range(1, done + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    if finished:
        (folder / "student").mkdir()
    if t2i is not None:
        mean = {"mean": t2i, "low": t2i - 0.2, "high": t2i + 0.2, "n": 36}
        student = {"nfe": 4, "t2i_bench": {"mean": mean, "text": {"mean": t2i - 1, "low": None, "high": None, "n": 12}}}
        (folder / "metrics.json").write_text(json.dumps({"seeds": [0, 1], "models": {"student": student}}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    a_run(root / "best", "dmd.fake_updates=4", t2i=4.5)
    a_run(root / "worst", t2i=3.0)
    a_run(root / "not scored", done=2, finished=False)
    a_run(root / "studies" / "seeds" / "trial-0000", "seed=7", t2i=4.0)
    return root


def table(runs: Path, *filters: str, key: str | None = None, reverse: bool = False, width: int = 0) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width or 500, force_terminal=bool(width), color_system=None)
    listing.show(overview.runs_in(runs), filters, key, reverse, console)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def names(runs: Path, *filters: str, key: str | None = None, reverse: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=500)
    return [run.name for run in listing.show(overview.runs_in(runs), filters, key, reverse, console)]


def test_a_pipe_gets_a_line_a_run_with_what_is_unusual_about_it(runs: Path) -> None:
    labels.tag(runs / "best", "keep")
    labels.note(runs / "best", "as in the talk")
    header, *lines = table(runs)
    assert header.split()[:5] == ["run", "state", "age", "updates", "NFE"]
    assert [line.split("  ")[0].strip() for line in lines] == [
        "best", "not scored", "studies/seeds/trial-0000", "worst",
    ]  # fmt: skip
    best, unscored, trial, worst = (line.split() for line in lines)
    assert best[1] == "finished" and best[3:10] == ["4", "4", "4.500", "4.300", "4.700", "36", "2"]
    assert best[15] == "current" and unscored[-4] == "-"
    assert best[-6:] == ["keep", "dmd.fake_updates=4", "as", "in", "the", "talk"]
    assert unscored[2:3] == ["stopped"] and "2/4" in unscored
    assert trial[-2] == "seed=7" and worst[-3:] == ["-", "-", "-"]


@pytest.mark.parametrize("width", [80, 60, 200])
def test_a_terminal_of_80_columns_is_never_left_and_no_name_is_cut(runs: Path, width: int) -> None:
    a_run(runs / "studies" / "teacher-guidance-of-all-things" / "trial-0012", "optim.student_lr=0.000123", t2i=2.5)
    labels.note(runs / "worst", "a note that is longer than its column, and goes on for some time after that")
    lines = table(runs, width=width)
    assert max(map(len, lines)) <= width
    shown = "".join("".join(lines).split())
    assert "…" not in shown and "dmd.fake_updates=4" in shown and "4.30..4.70" in shown
    first = "".join("".join(line[:28] for line in lines).split())
    for part in ("studies/teacher-guidance-of-all-things/trial-0012", "optim.student_lr=0.000123"):
        assert part in first, part


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["t2i>=4"], ["best", "studies/seeds/trial-0000"]),
        (["t2i<4"], ["worst"]),
        (["t2i/text=2"], ["worst"]),
        (["seed=7"], ["studies/seeds/trial-0000"]),
        (["seed!=7", "state=finished"], ["best", "worst"]),
        (["name=studies/*"], ["studies/seeds/trial-0000"]),
        (["dmd.fake_updates=4.0"], ["best"]),
        (["age<1h"], ["best", "not scored", "studies/seeds/trial-0000", "worst"]),
        (["age>2d"], []),
        (["dmd.fake_per_step=false", "nfe=4"], ["best", "studies/seeds/trial-0000", "worst"]),
        (["tags=ke*"], ["worst"]),
        (["tags!=keep"], ["best", "not scored", "studies/seeds/trial-0000"]),
    ],
)
def test_filters_read_every_key(filters: list[str], expected: list[str], runs: Path) -> None:
    labels.tag(runs / "worst", "keep")
    labels.tag(runs / "worst", "a")
    assert names(runs, *filters) == expected


def test_scores_are_sorted_from_the_highest_all_else_from_the_lowest_and_what_lacks_it_is_last(runs: Path) -> None:
    assert names(runs, key="t2i") == ["best", "studies/seeds/trial-0000", "worst", "not scored"]
    assert names(runs, key="t2i", reverse=True) == ["worst", "studies/seeds/trial-0000", "best", "not scored"]
    assert names(runs, key="seed")[-1] == "studies/seeds/trial-0000"
    assert names(runs, key="name", reverse=True)[0] == "worst"


def test_what_no_run_has_and_what_is_no_filter_are_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run has a key 't2l' \(did you mean 't2i'\?\)"):
        names(runs, key="t2l")
    with pytest.raises(UserError, match=r"no run has a key 'dmd.fake_update' \(did you mean 'dmd.fake_updates'\?\)"):
        names(runs, "dmd.fake_update=3")
    with pytest.raises(UserError, match="is not of the form key=value"):
        names(runs, "seed")
    with pytest.raises(UserError, match="'high' is no number"):
        names(runs, "t2i>high")
    with pytest.raises(UserError, match="there is no folder"):
        overview.runs_in(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert names(tmp_path / "empty", "seed=1", key="seed") == []


def test_scores_of_a_former_student_and_further_evaluations_are_shown(runs: Path) -> None:
    run = runs / "best"
    content = json.loads((run / "metrics.json").read_text())
    (run / "evaluation" / "mine").mkdir(parents=True)
    (run / "evaluation" / "mine" / "metrics.json").write_text(json.dumps(content))
    (run / "metrics.json").write_text(json.dumps({**content, "student": {"update": 3, "weights": "a" * 64}}))
    for update, weights, said in ((4, "b" * 64, "update_3"), (3, "b" * 64, "weights_aaaaaaaaaaaa"), (3, "a" * 64, "")):
        (run / "student" / "training.json").write_text(json.dumps({"update": update, "weights": weights}))
        line = table(runs, "name=best")[1].split()
        assert line[15] == (said or "current")
        assert names(runs, "outdated=true") == (["best"] if said else [])
        shown = "".join("".join(line[:28] for line in table(runs, width=80)).split())
        assert (f"scoresareof{said.replace('_', '')}" in shown) == bool(said)
    assert names(runs, key="mine:t2i")[0] == "best" and names(runs, "mine:t2i>4") == ["best"]


def test_states_say_what_a_run_is_doing(runs: Path) -> None:
    def state(name: str) -> str:
        return next(run.state for run in overview.runs_in(runs) if run.name == name)

    with only_one(runs / "not scored", "trainer.folder"):
        assert state("not scored") == "running"
    # A process that was killed leaves its lock's file.
    assert state("not scored") == "stopped"
    with FileLock(runs / "not scored" / ".lock"):
        (runs / "not scored" / ".lock").write_text(f"{os.getpid()} {socket.gethostname()}\n")
        assert state("not scored") == "running"
    (runs / "worst" / "run.json").write_text('{"command": "distill", "finished": null}')
    assert state("worst") == "stopped", "it was begun again"
    trials = [{"run": "trial-0000", "state": "fail"}]
    (runs / "studies" / "seeds" / "study.json").write_text(json.dumps({"arms": [{"trials": trials}]}))
    assert state("studies/seeds/trial-0000") == "failed"
    (runs / "best" / "run.json").unlink()
    assert state("best") == "finished", "as runs of before are read"


DAMAGED = (
    b"", b"\xff\xfe\x00", b"[" * 3000, b"null", b'{"models": {"student": {"t2i_bench": [1], "nfe": "x"}}}',
    b'{"update": 99999999999999999999}\n', b"a: &a [*a]", b"1: {2: 3}", b'{"tags": 3}', b"99999999999999999999 x",
    b"a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]",
)  # fmt: skip


@pytest.mark.parametrize("file", ["recipe.yaml", "run.json", "metrics.json", "metrics.jsonl", "labels.json", ".lock"])
def test_a_damaged_file_costs_its_own_content_alone(file: str, runs: Path) -> None:
    for content in DAMAGED:
        (runs / "best" / file).write_bytes(content)
        began = time.process_time()
        found = {run.name: run for run in overview.runs_in(runs)}
        assert time.process_time() - began < 2
        assert len(found) == 4 and found["worst"].scores["t2i"].mean == 3.0
        assert table(runs, width=80)
        if file == "recipe.yaml":
            assert found["best"].state == "unreadable" and found["best"].scores["t2i"].mean == 4.5


def test_labels_are_kept_whole(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs / "best")
    assert cli.main(["runs", "--tag", run, "b", "--tag", run, "a", "--note", run, "  first\n one "]) == 0
    assert capsys.readouterr().out == f"{run}: #a #b; first one\n"
    assert cli.main(["runs", "--untag", run, "b", "--note", run, ""]) == 0
    assert labels.read(runs / "best") == labels.Labels(tags=["a"], note="")
    for words, said in (
        (["--tag", run, "two words"], "a tag is one word"),
        (["--tag", str(runs), "a"], "is no run folder"),
        (["--untag", run, "b"], "has no tag 'b'; it has a"),
        (["--note", run, "x" * 2000], "a note is plain text of at most 1000 characters"),
    ):
        assert cli.main(["runs", *words]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in (runs / "best").glob("*label*")) == ["labels.json"]


def test_the_difference_of_two_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, torch in (("best", "2.10"), ("worst", "2.11")):
        content = {"python": "3.11", "packages": {"torch": torch, "optuna": "5"}}
        (runs / name / "environment.json").write_text(json.dumps(content))
    assert cli.main(["runs", "--diff", str(runs / "best"), str(runs / "worst")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dmd.fake_updates", "4", "1", "yes"] in lines and ["torch", "2.10", "2.11", "-"] in lines
    assert len(lines) == 3
    assert cli.main(["runs", "--diff", str(runs / "worst"), str(runs / "worst")]) == 0
    assert "differ in nothing but their folders" in capsys.readouterr().out
    assert cli.main(["runs", "--diff", str(runs / "worst"), str(runs)]) == 2


def test_two_hundred_runs_within_a_second_and_without_a_framework(tmp_path: Path) -> None:
    """The processor's seconds, the fewest of three: a core that is shared with another process takes more of them."""
    World()(base_recipe(), tmp_path / "trial-0000")
    files = {path.name: path.read_bytes() for path in (tmp_path / "trial-0000").glob("*.*")}
    chosen = random.Random(0)
    for number in range(200):
        folder = tmp_path / "runs" / "studies" / f"{number % 5}" / f"trial-{number:04d}"
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content.replace(b"seed: 0", b"seed: %d" % chosen.randrange(9)))
    code = (
        "import sys; from workbench import cli; code = cli.main(['runs', sys.argv[1]]);"
        "print('exit', code, [name for name in ('torch', 'lightning', 'optuna') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = done.stdout.splitlines()
        assert len(lines) == 202 and lines[-1] == "exit 0 []"
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(taken) <= 1, taken
