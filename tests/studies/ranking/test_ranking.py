"""Three tiny students and their teacher, ranked by one command: what it draws, what it says, where it goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml

from studies.ranking import page, rank, side_by_side
from studies.ranking.compare import compare, judgements
from studies.ranking.pictures import Pictures
from workbench.cli import main
from workbench.common.errors import UserError
from workbench.evaluation import metrics_file
from workbench.evaluation.models import FolderUnderTest

CASES = {"t2i_cases": 1, "editing_cases": 2, "batch_size": 4, "num_bootstrap": 100}
FEW = ["text", "object"]
ONE_BY_ONE = ["evaluation.judges=[local]", "evaluation.categories=[text,object]"]
STUDENTS: dict[str, dict[str, Any]] = {
    "teacher": {"folder": "tiny", "steps": 3, "guidance": 1.0},
    "sigmas": {"folder": "tiny", "sigmas": [1.0, 0.6]},
    "specialist": {"folder": "tiny", "lora": "tiny/portrait.safetensors:0.8", "steps": 2, "shift": 3, "guidance": 1},
    "two": {"folder": "tiny", "lora": ["tiny/portrait.safetensors:0.5", "tiny/text.safetensors"], "sigmas": [1, 0.5]},
}


def write(folder: Path, **changes: Any) -> Path:
    values = {
        "folder": str(folder / "ranking"),
        "recipe": {"evaluation": {**CASES, "categories": FEW, "judges": ["local"]}},
        "students": STUDENTS,
        **changes,
    }
    path = folder / "students.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished ranking."""
    root = tmp_path_factory.mktemp("ranking")
    assert main(["rank", str(write(root))]) == 0
    return root / "ranking"


def shown(folder: Path) -> str:
    """The page without the place where it was written, and without what follows from the seconds of drawing."""
    text = (folder / "report.html").read_text().replace(str(folder.parent), "").replace(", on the front", "")
    return re.sub(r"<td>\d+\.\d{3}</td><td class=.name.>[\d.]+ GB</td>", "", re.sub(r"(?s)<svg.*?</svg>", "", text))


def test_the_first_screen_says_which_and_by_how_much(ranked: Path) -> None:
    text = (ranked / "report.html").read_text()
    first = text[text.index("<h1>") : text.index("Score against time")]
    assert "scores highest" in first or "no student scores above teacher" in first
    for name in STUDENTS:
        assert name in first
    for word in ("NFE", "s / image", "memory", "licence", "cc-by-sa-4.0", "less teacher"):
        assert word in first
    assert "colour drift, ΔE" in text and "What no score holds" in text
    assert text.count("data:image/webp") == 3, "a sheet of every category"


def test_scores_order_and_intervals_are_those_of_evaluate_one_by_one(
    ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    together = metrics_file.read(ranked / "metrics.json")
    keys = [f"evaluation.{key}={value}" for key, value in CASES.items()] + [
        "evaluation.judges=[local]",
        "evaluation.categories=[text,object]",
    ]
    ways = {
        "teacher": ["evaluation.teacher_steps=3", "evaluation.teacher_cfg_scale=1"],
        "specialist": [
            *("--lora", "tiny/portrait.safetensors:0.8", "evaluation.teacher_steps=2", "evaluation.teacher_shift=3"),
            "evaluation.teacher_cfg_scale=1",
        ],
    }
    assert together is not None and [of.nfe for of in together.models.values()] == [3, 2, 2, 2]
    for name, way in ways.items():
        assert main(["evaluate", "tiny", *way, *keys]) == 0
        place = "tiny" if name == "teacher" else "tiny+portrait-0.8"
        alone = metrics_file.read(tmp_path / "runs" / "evaluation" / place / "metrics.json")
        assert alone is not None
        for bench, of in alone.models["model"].benches.items():
            for category, interval in of.items():
                found = together.models[name].benches[bench][category]
                assert found.as_dict() == pytest.approx(interval.as_dict(), abs=1e-3)


def test_what_is_drawn_is_neither_drawn_nor_loaded_again(ranked: Path) -> None:
    before = shown(ranked)
    with patch.object(FolderUnderTest, "loaded", property(lambda _: pytest.fail("a model was loaded"))):
        rank.rank(ranked.parent / "students.yaml")
    assert shown(ranked) == before


@contextmanager
def killed_after(count: int) -> Iterator[list[int]]:
    """Ends the process, as far as this one can be ended, as the given picture is about to be written."""
    written: list[int] = []
    real = Pictures._draw

    def draw(self: Pictures, group: Any) -> None:
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(len(group))
        real(self, group)

    with patch.object(Pictures, "_draw", draw):
        yield written


def test_a_killed_ranking_goes_on_to_the_same_page(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    base = str(tiny_pipeline_folder)
    students = {
        "teacher": {"folder": base, "steps": 3},
        "a": {"folder": base, "steps": 2},
        "b": {"folder": base, "steps": 1},
    }
    recipe = {
        "data": {"resolution": 64},
        "evaluation": {**CASES, "categories": FEW[1:], "judges": ["local"], "batch_size": 1},
    }
    changes = {"students": students, "recipe": recipe}
    for name in ("at_once", "killed"):
        (tmp_path / name).mkdir()
    assert main(["rank", str(write(tmp_path / "at_once", **changes))]) == 0
    path, groups = write(tmp_path / "killed", **changes), 0
    for after in (0, 2, 3, 100):
        with killed_after(after) as written:
            assert main(["rank", str(path)]) == (130 if after < 100 else 0)
        groups += len(written)
    found = rank.plan(path)
    assert groups == len(found.pictures) * len(found.groups) and found.missing() == 0
    assert shown(tmp_path / "killed" / "ranking") == shown(tmp_path / "at_once" / "ranking")


def test_a_broken_picture_is_drawn_again(ranked: Path) -> None:
    found = rank.plan(ranked.parent / "students.yaml")
    case, seed = found.groups[0][0]
    pictures = found.pictures["sigmas"]
    image = pictures.read(case, seed).image
    pictures.path(case, seed).write_bytes(b"\x89PNG")
    (again,), _ = pictures.draw([case], [seed])
    assert np.abs(again.astype(int) - image.astype(int)).max() <= 1


def test_two_processes_share_the_work(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    students = {name: {"folder": str(tiny_pipeline_folder), "steps": steps} for name, steps in (("a", 1), ("b", 2))}
    recipe = {"data": {"resolution": 64}, "evaluation": {**CASES, "judges": [], "categories": FEW}}
    path = write(tmp_path, students=students, recipe=recipe)
    drawn: list[str] = []
    real = Pictures._draw

    def draw(self: Pictures, group: Any) -> None:
        drawn.append(f"{self.folder.name}/{group[0][0].id}")
        real(self, group)

    with patch.object(Pictures, "_draw", draw):
        threads = [Thread(target=rank.draw, args=(rank.plan(path), number)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    work = rank.plan(path)
    assert len(drawn) == len({*drawn}) == len(work.pictures) * len(work.groups) and not work.missing()
    assert rank.rank(path).is_file() and "No judge scored" in (tmp_path / "ranking" / "report.html").read_text()


def test_a_process_that_fails_is_named(tmp_path: Path) -> None:
    with (
        patch.object(side_by_side, "LOOK_S", 0.01),
        patch.object(side_by_side.sys, "executable", "/bin/false"),
        pytest.raises(UserError, match="device 0, 1 failed"),
    ):
        side_by_side.helpers(tmp_path / "none.yaml", [], ["0", "1"], lambda: 0)


def _scores(shift: float, noise: int) -> dict[tuple[str, str, str, int], float]:
    draws = np.random.default_rng(noise).normal(size=(2, 20)) * 0.05
    base = np.random.default_rng(9).uniform(2, 4, size=(2, 20))
    return {
        ("t2i_bench", f"c{row}", f"case{row}-{at}", 0): float(base[row, at] + draws[row, at] + shift)
        for row in range(2)
        for at in range(20)
    }


def test_differences_are_those_of_paired_cases() -> None:
    """Cases vary by half a point, what students differ by from case to case far less: pairing shows .2, not .001."""
    scores = {"a": _scores(0, 1), "b": _scores(0.2, 2), "c": _scores(0.001, 3)}
    found = compare("local", scores, ["a", "b", "c"], "a", 0.05)
    assert found is not None and found.order[0] == "b" and found.num_cases == 40
    better, same = found.differences
    pairs = np.array([scores["b"][key] - scores["a"][key] for key in scores["a"]])
    assert better.value == pytest.approx(pairs.mean())
    # Dunnett's two differences reach further than one alone, and no further than Bonferroni's.
    error = pairs.reshape(2, 20).std(axis=1, ddof=1) / np.sqrt(20)
    reach = (better.high or 0) - better.value
    assert 2.02 < reach / (np.linalg.norm(error) / 2) < 2.5
    assert better.verdict == "b better" and set(better.categories.values()) == {"better"}
    assert same.verdict == "alike within the margin" and not same.categories


def test_differences_are_given_in_parts_and_verdicts_know_none(tmp_path: Path) -> None:
    """b loses half a point on hard text alone."""
    scores, place = {name: _scores(0, at) for at, name in enumerate("ab", 1)}, tmp_path / "evaluation"
    hard = {key[2] for key in scores["a"] if int(key[2].split("-")[1]) % 2}
    scores["b"] = {key: score - 0.5 * (key[2] in hard) for key, score in scores["b"].items()}
    place.mkdir()
    rows = [
        {"model": name, "bench": bench, "category": category, "case": case, "seed": seed, "score": score}
        for name, of in scores.items()
        for (bench, category, case, seed), score in of.items()
    ]
    for row in rows:
        row["difficulty"] = "hard" if row["case"] in hard else "easy"
    (place / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = judgements(tmp_path, ["a", "b"], "a", 0.05)
    expected = compare("local", scores, ["a", "b"], "a", 0.05)
    assert expected is not None and replace(found.differences[0], parts={}) == expected.differences[0]
    for parts in found.differences[0].parts.values():
        assert parts["hard"].mean == pytest.approx(-0.5, abs=0.1) and (parts["hard"].high or 0) < -0.3
        assert parts["easy"].mean == pytest.approx(0, abs=0.1)


def test_a_ranking_of_cases_with_difficulties_shows_their_parts(tmp_path: Path) -> None:
    case = {"task": "t2i", "category": "text", "prompt": "a sign: OPEN", "scene": {"word": "OPEN"}, "named": ["word"]}
    lines = [json.dumps({**case, "id": f"{name}-{i}", "difficulty": name}) for name in ("easy", "hard") for i in (1, 2)]
    (tmp_path / "cases.jsonl").write_text("\n".join(lines))
    evaluation = {**CASES, "t2i_cases": 4, "judges": ["local"], "cases": str(tmp_path / "cases.jsonl")}
    few = {name: STUDENTS[name] for name in ("teacher", "sigmas")}
    path = write(tmp_path, recipe={"evaluation": evaluation}, students=few)
    assert main(["rank", str(path)]) == 0
    text = (tmp_path / "ranking" / "report.html").read_text()
    assert "By difficulty: parts of the categories above" in text and ">text: hard<" in text


def test_no_interval_is_given_of_too_few_cases() -> None:
    few = {name: {key: score for key, score in _scores(at, at).items() if int(key[2].split("-")[1]) < 4}
           for at, name in enumerate("ab")}  # fmt: skip
    found = compare("local", few, ["a", "b"], "a", 0.05)
    assert found is not None and found.differences[0].low is None and "fewer than 5" in found.differences[0].verdict


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    scores, seconds = {"a": 3.0, "b": 2.0, "c": 3.5, "d": 3.4}, {"a": 1.0, "b": 1.5, "c": 4.0, "d": 5.0}
    assert page.pareto(scores, seconds) == ["a", "c"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"students": {"a": {"folder": "tiny"}}}, "at least 2"),
        ({"students": {"a": {"folder": "tiny"}, "b": {"folder": "nowhere"}}}, "students.b: no pipeline folder"),
        ({"students": {"a": {"folder": "tiny"}, "b": {"folder": "tiny", "sigma": [1]}}}, "sigma.*sigmas"),
        ({"students": {"a": {"folder": "tiny"}, "b": {"folder": "tiny", "sigmas": [0.9, 0.5]}}}, "students.b: .*fall"),
        ({"students": {"a": {"folder": "tiny"}, "../b": {"folder": "tiny"}}}, "names files"),
        ({"students": {"a": {"folder": "tiny"}, "b": {"folder": "tiny", "lora": "no.safetensors"}}}, "no LoRA file"),
        ({"students": {"a": {"folder": "tiny"}, "b": {"folder": "tiny", "lora": "x:y"}}}, "no strength"),
        ({"students": {"a": {"folder": "tiny"}, "b": {"folder": "tiny", "steps": 2, "sigmas": [1]}}}, "leave out"),
        ({"students": ["a"]}, "a mapping of names"),
        ({"reference": "c"}, "reference 'c' is no student"),
        ({"refrence": "a"}, "refrence.*reference"),
        ({"recipe": {"evaluation": {"teacher_steps": 4}}}, "not for rankings"),
        ({"recipe": {"evaluatoin": {}}}, "evaluatoin"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(
    changes: dict[str, Any], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", str(write(tmp_path, **changes))]) == 2
    error = capsys.readouterr().err
    assert re.search(match, error) and error.count("\n") == 1
    assert not (tmp_path / "ranking").exists()
