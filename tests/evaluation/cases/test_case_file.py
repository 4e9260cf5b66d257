"""A user's own cases: the file, its errors, slices of it, and what is scored of a case that defines little."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.batch import TASKS
from workbench.cli import main
from workbench.common.errors import UserError
from workbench.evaluation.answer_cache import digest
from workbench.evaluation.cases.case import Case
from workbench.evaluation.cases.case_file import read_jsonl, sliced, write_jsonl
from workbench.evaluation.cases.choose import benchmark_cases
from workbench.evaluation.cases.count import count_cases
from workbench.evaluation.cases.world import world_cases
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.judges.vlm_judge import score_question
from workbench.recipe.config import Data, Evaluation
from workbench.recipe.reading import from_mapping
from workbench.sampling.sampler import fit


def same(a: Case, b: Case) -> bool:
    return all(
        np.array_equal(value, vars(b)[name])
        if isinstance(value, np.ndarray)
        else json.dumps(value) == json.dumps(vars(b)[name])
        for name, value in vars(a).items()
    )


def test_shipped_cases_survive_their_file(tmp_path: Path) -> None:
    cases = [*world_cases("t2i", "search", 2, 64), *world_cases("edit", "search", 2, 64)]
    write_jsonl(cases, tmp_path / "mine.jsonl")
    again = read_jsonl(tmp_path / "mine.jsonl")
    assert all(same(a, b) for a, b in zip(cases, again, strict=True))
    assert [case.noise_seed(3) for case in cases] == [case.noise_seed(3) for case in again]


def test_the_command_writes_what_the_keys_choose_and_evaluation_reads_it_back(tmp_path: Path) -> None:
    out = tmp_path / "benchmark.jsonl"
    keys = ["evaluation.t2i_cases=1", "evaluation.editing_cases=2", "data.resolution=64", "evaluation.split=search"]
    assert main(["cases", str(out), *keys]) == 0
    recipe = from_mapping({"evaluation": {"cases": str(out)}, "data": {"resolution": 64}})
    read = benchmark_cases(recipe.data, replace(recipe.evaluation, t2i_cases=600, editing_cases=250))
    keyed = from_mapping({}, keys)
    drawn = benchmark_cases(keyed.data, keyed.evaluation)
    assert len(read) == 3 + 12 and all(same(a, b) for a, b in zip(drawn, read, strict=True))


GOOD = {"id": "a", "task": "t2i", "category": "x", "prompt": "p"}
EDIT = {**GOOD, "task": "edit", "source": "s.png"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "not valid JSON"),
        ("[1]", "JSON object"),
        ({"id": "a", "task": "t2i", "category": "x"}, "'prompt'"),
        ({**GOOD, "prompt": "  "}, "'prompt'"),
        ({**GOOD, "instruction": "q"}, "prompt and an instruction"),
        ({**GOOD, "task": "edit"}, "needs a source"),
        ({**GOOD, "source": "s.png"}, "write task edit"),
        ({**GOOD, "task": "video"}, "t2i or edit"),
        ({**GOOD, "soure": 1}, "'soure'"),
        ({**EDIT, "source": "no.png"}, "no.png"),
        ({**EDIT, "source": "bad.png"}, "bad.png"),
        ({**EDIT, "source": 7}, "source image 7"),
        ({**EDIT, "source": ["s.png", 7]}, "source image 7"),
        ({**EDIT, "source": []}, r"source image \[\] must be a path"),
        ({**EDIT, "target": ["s.png"]}, "target image .* must be a path"),
        ({**GOOD, "seed": -1}, "seed must be"),
        ({**GOOD, "seed": True}, "seed must be"),
        ({**GOOD, "scene": ["sky"]}, "scene must be"),
        ({**GOOD, "named": "sky"}, "named must be"),
        ({**GOOD, "named": ["sky"]}, "'sky', of which scene gives no value"),
        ({**GOOD, "id": "b"}, "stands in line 1 already"),
        ({**GOOD, "category": "mean"}, "category 'mean' names files"),
        ({**GOOD, "category": "../up"}, "category '../up' names files"),
        ({**GOOD, "category": "x" * 65}, "names files and rows: at most 64"),
        ({**GOOD, "difficulty": "mean"}, "difficulty 'mean' names files"),
        ({**GOOD, "difficulty": 2}, "difficulty 2 names files"),
        ({**GOOD, "scene": {"word": 5}}, "scene gives word as 5; it must be one name"),
        ({**GOOD, "scene": {"objects": "tree"}}, 'objects as "tree"; it must be a list of names'),
        ({**EDIT, "source": "s.png", "source_scene": {"objects": 5}}, "source_scene gives objects as 5"),
        ({**GOOD, "scene": {"objects": ["a"]}, "accepted": {"objects": ["a"]}}, "accepted gives objects as"),
    ],
)
def test_unusable_cases_are_named_by_file_and_line(line: object, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "s.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    path = tmp_path / "mine.jsonl"
    first = json.dumps({**GOOD, "id": "b"})
    path.write_text(f"{first}\n\n{line if isinstance(line, str) else json.dumps(line)}\n")
    with pytest.raises(UserError, match=message) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(f"{path}:3: ") and "\n" not in str(caught.value)


def test_a_file_may_have_a_mark_windows_ends_and_any_character_in_a_text(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": name, "prompt": "one\u2028two"} for name in "ab"]
    content = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "mine.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert [case.prompt for case in read_jsonl(tmp_path / "mine.jsonl")] == ["one\u2028two"] * 2


def test_sources_are_read_as_training_reads_them(tmp_path: Path) -> None:
    """Upright, and what is transparent on white."""
    photo = Image.new("RGB", (96, 64))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=orientation)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    lines = [{**EDIT, "id": name, "source": name} for name in ("photo.jpg", "clear.png")]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    turned, clear = (case.source for case in read_jsonl(tmp_path / "mine.jsonl"))
    assert turned is not None and turned.shape == (96, 64, 3)
    assert clear is not None and (clear == 255).all()


def test_an_edit_may_have_several_sources(tmp_path: Path) -> None:
    """All are asked about in order, and no answer is compared with one of them place by place."""
    for name, size in (("a.png", (64, 32)), ("b.png", (32, 32))):
        Image.effect_mandelbrot(size, (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / name)
    for sources in (["a.png", "b.png"], ["a.png", "b.png", "a.png"], "a.png"):
        (tmp_path / "mine.jsonl").write_text(json.dumps({**EDIT, "source": sources, "target": "b.png"}))
        (case,) = read_jsonl(tmp_path / "mine.jsonl")
        count = len(sources) if isinstance(sources, list) else 1
        shapes = [(32, 64, 3), (32, 32, 3), (32, 64, 3)][:count]
        assert [source.shape for source in case.sources] == shapes
        write_jsonl([case], tmp_path / "again" / "mine.jsonl")
        (again,) = read_jsonl(tmp_path / "again" / "mine.jsonl")
        assert again.asked() == case.asked() and digest(again) == digest(case) and len(again.sources) == count
        assert case.target is not None
        question = score_question(case, case.target)
        assert [image.shape for image in question.images] == [*shapes, (32, 32, 3)]
        assert (f"has {count} source pictures" in question.text) == (count > 1)
        assert (case.only_source is None) == (count > 1)


def test_a_very_thin_source_still_has_two_sides(tmp_path: Path) -> None:
    assert fit(Image.new("RGB", (4000, 20)), 64, 32).size[1] == 32


@pytest.mark.parametrize(
    ("scene", "accepted", "message"),
    [
        ({"sky": "foggy"}, {}, "case a: the judge knows no sky 'foggy'.*it knows day"),
        ({"sky": "day"}, {"sky": ["day", "nigt"]}, "no sky 'nigt' .did you mean 'night'"),
        ({"objects": ["tree", "unicorn"]}, {}, "no objects 'unicorn'"),
        ({"word": "hello"}, {}, "up to 13 capitals and spaces, not 'hello'"),
        ({"word": "EVERYDAY MAGIC"}, {}, "up to 13 capitals and spaces, not 'EVERYDAY MAGIC'"),
    ],
)
def test_what_the_judge_can_never_see_is_said_before_anything_is_drawn(
    scene: dict[str, object], accepted: dict[str, list[object]], message: str
) -> None:
    case = Case("a", "t2i", "x", "p", scene=scene, named=tuple(scene), accepted=accepted)
    with pytest.raises(UserError, match=message):
        LocalJudge().check([case])


def test_the_judge_knows_whatever_the_world_asks_for() -> None:
    for split in ("search", "report"):
        LocalJudge().check([case for task in TASKS for case in world_cases(task, split, 20, 32)])


def test_files_without_cases_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, message in (("empty.jsonl", "holds no cases"), ("none.jsonl", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read_jsonl(tmp_path / name)


def make(counts: dict[tuple[str, str], int]) -> list[Case]:
    cells = [cell for cell, count in counts.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(cells))
    return [Case(f"c{i}", cells[i][0], cells[i][1], "p") for i in order]  # type: ignore[arg-type]


def test_slices_are_stratified_nested_and_follow_the_seed() -> None:
    cases = make({("t2i", "a"): 9, ("t2i", "b"): 4, ("edit", "a"): 7})
    for seed in (0, 5):
        small, large = (sliced(cases, {"t2i": n, "edit": n}, (), seed) for n in (3, 6))
        assert Counter((c.task, c.category) for c in large) == {("t2i", "a"): 6, ("t2i", "b"): 4, ("edit", "a"): 6}
        assert {c.id for c in small} < {c.id for c in large}
        assert [c.task for c in large] == ["t2i"] * 10 + ["edit"] * 6
    one, other = (sliced(cases, {"t2i": 3, "edit": 0}, ("a",), seed) for seed in (1, 2))
    assert {c.category for c in one} == {"a"} and len(one) == 3
    assert {c.id for c in one} != {c.id for c in other}
    with pytest.raises(UserError, match="evaluation.categories names 'z'"):
        sliced(cases, {"t2i": 1, "edit": 1}, ("z",), 0)


def test_slices_of_the_world_are_nested_and_follow_the_seed() -> None:
    small, large = (world_cases("t2i", "search", n, 32, ("text",), slice_seed=4) for n in (2, 4))
    assert {c.id for c in small} < {c.id for c in large} and {c.category for c in large} == {"text"}
    first = world_cases("t2i", "search", 4, 32, ("text",))
    assert {c.id for c in first} != {c.id for c in large}
    with pytest.raises(UserError, match="did you mean 'portrait'"):
        benchmark_cases(Data(), Evaluation(categories=["portrat"]))


def test_cases_are_counted_without_being_drawn(tmp_path: Path) -> None:
    own = Data(source="my_images")
    with pytest.raises(UserError, match=r"data.source=my_images has no benchmark: name your own cases"):
        benchmark_cases(own, Evaluation())
    with pytest.raises(UserError, match=r"data.source=my_images has no benchmark"):
        count_cases(own, Evaluation())
    few = Evaluation(t2i_cases=2, editing_cases=1)
    for chosen in (few, replace(few, categories=["text"]), replace(few, categories=["style"])):
        assert count_cases(Data(), chosen) == len(benchmark_cases(Data(resolution=32), chosen)) > 0
    cases = [Case(f"{name}{i}", "t2i", name, "p") for name, count in (("a", 1), ("b", 5)) for i in range(count)]
    write_jsonl(cases, tmp_path / "mine.jsonl")
    of_file = replace(few, cases=str(tmp_path / "mine.jsonl"))
    assert count_cases(own, of_file) == len(benchmark_cases(own, of_file)) == 3
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        count_cases(own, replace(few, cases=str(tmp_path / "none.jsonl")))


def test_worker_processes_draw_what_one_process_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = world_cases("edit", "search", 2, 32)
    monkeypatch.setattr("datamodules.openmoji.benchmark.PARALLEL_CASES", 4)
    monkeypatch.setattr("datamodules.openmoji.benchmark.usable_cores", lambda: 2)
    assert all(same(a, b) for a, b in zip(alone, world_cases("edit", "search", 2, 32), strict=True))


def test_own_images_come_to_the_size_of_the_answers(tmp_path: Path) -> None:
    Image.new("RGB", (300, 150)).save(tmp_path / "s.png")
    (tmp_path / "mine.jsonl").write_text(json.dumps({**EDIT, "target": "s.png"}))
    recipe = from_mapping({"evaluation": {"cases": str(tmp_path / "mine.jsonl")}, "data": {"resolution": 64}})
    (case,) = benchmark_cases(recipe.data, recipe.evaluation)
    assert case.source is not None and case.target is not None
    assert case.source.shape == case.target.shape and case.source.shape[1] > case.source.shape[0]
    assert case.source.shape[0] % 32 == case.source.shape[1] % 32 == 0


def test_equal_seeds_of_cases_mean_equal_noise() -> None:
    a, b, c = (Case(name, "t2i", "x", "p", seed=seed) for name, seed in (("a", 7), ("b", 7), ("c", 8)))
    assert a.noise_seed(0) == b.noise_seed(0) != c.noise_seed(0) and a.noise_seed(0) != a.noise_seed(1)


def test_any_pipeline_folder_answers_own_cases(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder for 64 pixels, no run anywhere; cases that define nothing, a head that no judge knows, or everything."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    cases = [
        Case("bare", "t2i", "rooms", "a kitchen"),
        Case("seeded", "t2i", "rooms", "a cellar", seed=7),
        Case("foreign", "t2i", "rooms", "a red room", scene={"mood": "red"}, named=("mood",)),
        Case("edit", "edit", "pets", "Remove the dog.", pixels[0]),
        Case("exact", "edit", "pets", "Add a dog.", pixels[0], pixels[1]),
    ]
    write_jsonl(cases, tmp_path / "mine.jsonl")
    keys = ["evaluation.cases=mine.jsonl", "data.resolution=64", "evaluation.num_bootstrap=20"]
    keys += ["evaluation.teacher_steps=1", "evaluation.teacher_cfg_scale=2"]
    assert main(["evaluate", str(tiny_pipeline_folder), *keys]) == 0
    assert "1 cases name what local CNN (judge) does not see, left out: mood" in " ".join(
        capsys.readouterr().out.split()
    )
    (out,) = (tmp_path / "runs" / "evaluation").iterdir()
    assert out.name.endswith(f"-{tiny_pipeline_folder.name}")
    rows = {row["case"]: row for row in map(json.loads, (out / "evaluation/cases.jsonl").read_text().splitlines())}
    for name in ("bare", "seeded", "foreign", "edit"):
        assert rows[name]["compliance"] is None and rows[name]["kept"] is None and rows[name]["quality"] is not None
    assert rows["exact"]["compliance"] is not None
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["models"]["model"]["t2i_bench"]) == {"rooms", "mean"} and metrics["cases"] == "mine.jsonl"
    assert metrics["models"]["model"]["nfe"] == 2, "a folder without a grid is sampled as the recipe says"
    assert metrics["models"]["model"]["frechet"] is None and metrics["seconds"]["sampling"]["wall"] > 0
    (tmp_path / "mine.jsonl").write_text("{}\n")
    assert main(["evaluate", str(tiny_pipeline_folder), *keys]) == 2
    assert capsys.readouterr().err == "error: mine.jsonl:1: needs a non-empty text 'id'\n"
