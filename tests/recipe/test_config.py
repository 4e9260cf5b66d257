"""Recipes: what is wrong is named, what is right survives a round trip, and nothing else comes out."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from workbench.common.errors import UserError
from workbench.recipe.config import Dmd, Recipe
from workbench.recipe.reading import from_mapping, load, recipe_hash, to_yaml

RECIPES = sorted((Path(__file__).parents[2] / "studies" / "recipes").glob("*.yaml"))
SECTIONS = [item.name for item in fields(Recipe)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainr.updates=3", r"unknown key trainr \(did you mean 'trainer'\?\)"),
        ("optim.student_rl=1", r"unknown key optim.student_rl \(did you mean 'student_lr'\?\)"),
        ("trainer.updates", "not of the form section.key=value"),
        ("trainer.updates=0", "trainer.updates must be above 0, got 0"),
        ("trainer.updates=many", "trainer.updates"),
        ("trainer.updates=2.5", "trainer.updates"),
        ("trainer.strategy=deepspeed", "trainer.strategy"),
        ("trainer=fast", "trainer. must be a mapping|trainer must be a mapping"),
        ("mixture.tasks={t2i: 0.7, edit: 0.4}", r"mixture.tasks must sum to 1, got 1.1"),
        ("mixture.tasks={t2i: 1.5, edit: -0.5}", "mixture.tasks.edit must not be negative, got -0.5"),
        ("mixture.tasks={}", "at least one task"),
        ("mixture.tasks={t2l: 1.0}", "not 't2l' .did you mean 't2i'"),
        ("mixture.tasks={t2i: .nan}", "mixture.tasks.t2i"),
        ("mixture.categories={edit: {style: 0.5}}", "mixture.categories.edit must sum to 1"),
        ("mixture.categories={edti: {style: 1.0}}", "not 'edti' .did you mean 'edit'"),
        ("mixture.prompt_share=1.5", r"mixture.prompt_share must lie in \[0, 1\], got 1.5"),
        ("mixture.prompt_share=0", "mixture.prompt_share must be above 0"),
        ("mixture.prompts=-1", "mixture.prompts must not be negative, got -1"),
        ("mixture={prompts: 5, prompt_share: 0.5}", "both limit the prompts: leave out one"),
        ("optim.student_lr=-1e-4", "optim.student_lr must be above 0"),
        ("optim.student_lr=.inf", "optim.student_lr must be above 0"),
        ("optim.student_lr=.nan", "optim.student_lr must be above 0"),
        ("optim.beta2=1.0", r"optim.beta2 must lie in \[0, 1\)"),
        ("teachers.cfg_scale=0.5", "at least 1"),
        ("teachers.specialists={a-b: x}", "letters, digits"),
        ("data.resolution=100", "multiple of 32"),
        ("data.samples.t2i.portrait=-1", "data.samples.t2i.portrait must not be negative"),
        ("dmd.renoise_min=0.99", "renoise_min < renoise_max"),
        ("dmd.student_times=[1, 0.5]", "2 entries for student_steps=4"),
        ("dmd.student_times=[1, 0.5, 0.6, 0.1]", "fall strictly"),
        ("dmd.student_times=[0.9, 0.5, 0.4, 0.1]", "start at 1"),
        ("dmd.student_times=[1, 0.5, 0.4, 0]", "above 0"),
        ("evaluation.seeds=[]", "at least one seed"),
        ("evaluation.split=train", "evaluation.split"),
        ("model.folder=${nothing.there}", "nothing"),
    ],
)
def test_an_impossible_value_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        from_mapping({}, [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optim: {student_lr: [", "not valid YAML"),
        ("- a\n- b\n", "mapping of sections"),
        ("7", "not valid YAML: Invalid loaded object type: int"),
        ("word", "unknown key word"),
        ("optim:\n", "optim must be a mapping"),
        ("seed: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("seed: 1\nseed: 2", "not valid YAML"),
        ("\0", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert "recipe.yaml" in str(raised.value)


def test_a_missing_file_and_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe at .*absent\.yaml"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match=r"image\.yaml is not valid YAML"):
        load(tmp_path / "image.yaml")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load(tmp_path / "empty.yaml") == Recipe()


def test_a_mapping_given_whole_replaces_and_a_dotted_key_changes_itself_alone() -> None:
    whole = from_mapping({"data": {"samples": {"t2i": {"portrait": 3}}}})
    assert whole.data.samples == {"t2i": {"portrait": 3}}
    assert from_mapping({}, ["data.samples={t2i: {portrait: 3}}"]) == whole
    counts = {"t2i": {"portrait": 4, "text": 5}, "edit": {"text": 6}}
    dotted = from_mapping({"data": {"samples": counts}}, ["data.samples.t2i.portrait=3"])
    assert dotted.data.samples == {"t2i": {"portrait": 3, "text": 5}, "edit": {"text": 6}}
    default = from_mapping({}, ["mixture.tasks.edit=0.25", "mixture.tasks.t2i=0.75"])
    assert default.mixture.tasks == {"t2i": 0.75, "edit": 0.25}
    both = from_mapping({}, ["mixture.tasks={t2i: 1.0}", "mixture.tasks.t2i=0.5", "mixture.tasks.edit=0.5"])
    assert both.mixture.tasks == {"t2i": 0.5, "edit": 0.5}


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones() -> None:
    recipe = from_mapping({"trainer": {"updates": 5}, "seed": 1}, ["trainer.updates=6", "trainer.updates=7"])
    assert (recipe.trainer.updates, recipe.seed) == (7, 1)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    (tmp_path / "resolved.yaml").write_text(to_yaml(recipe))
    assert load(tmp_path / "resolved.yaml") == recipe
    assert from_mapping(asdict(recipe)) == recipe


def test_there_are_recipes() -> None:
    assert {"demo", "smoke"} <= {path.stem for path in RECIPES}


def test_the_hash_names_the_recipe_and_not_its_folder_or_the_way_it_was_written() -> None:
    recipe = Recipe()
    moved = replace(recipe, trainer=replace(recipe.trainer, folder="elsewhere"))
    assert recipe_hash(moved) == recipe_hash(recipe)
    written = from_mapping({"seed": 0, "optim": {"student_lr": 1e-4}})
    assert recipe_hash(written) == recipe_hash(recipe)
    hashes = {recipe_hash(from_mapping({}, [f"seed={seed}"])) for seed in range(20)}
    assert len(hashes) == 20
    assert recipe_hash(from_mapping({}, ["mixture.tasks={t2i: 1.0}"])) != recipe_hash(recipe)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["t2i", "edit", "${seed}", "${", "???", "${oc.env:NOTHING}", "1e-3", "-1", "nan"]),
)
KEYS = st.one_of(
    st.sampled_from([*SECTIONS, *[item.name for name in SECTIONS[:-1] for item in fields(getattr(Recipe(), name))]]),
    st.sampled_from(["t2i", "edit", "style"]),
    st.text(max_size=6),
    st.integers(),
    st.none(),
    st.booleans(),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def section(name: str) -> st.SearchStrategy[Any]:
    """Values for a section that get past the check of keys more often than not."""
    known = [item.name for item in fields(getattr(Recipe(), name))]
    return st.dictionaries(st.sampled_from(known), VALUES, max_size=3)


NEARLY = st.fixed_dictionaries({}, optional={name: section(name) for name in SECTIONS[:-1]} | {"seed": LEAVES})
QUICK = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


@QUICK
@given(VALUES | NEARLY)
def test_any_value_is_a_recipe_or_a_user_error(values: Any) -> None:
    try:
        recipe = from_mapping(values)
    except UserError as error:
        assert str(error)
    else:
        assert isinstance(recipe, Recipe)
        assert isinstance(to_yaml(recipe), str)


@QUICK
@given(st.one_of(VALUES.map(yaml.safe_dump), NEARLY.map(yaml.safe_dump), st.text(max_size=40)))
@example("&a [*a]")
@example("seed: &a [*a]")
@example("guidance: {tables: &a {x: *a}}")
@example("a: b: c")
@example("? [1, 2]\n: 3")
@example("3.5")
@example("'0'")
@example("2020-01-01")
@example("seed: 0x")
@example("%YAML 9.9\n---\n{}")
@example("--- {}\n--- {}")
def test_any_file_is_a_recipe_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content.encode("utf-8", errors="surrogatepass"))
    try:
        assert isinstance(load(path), Recipe)
    except UserError as error:
        assert str(error)


@QUICK
@given(st.lists(st.one_of(st.text(max_size=20), st.builds("{}.{}={}".format, st.sampled_from(SECTIONS), KEYS, LEAVES))))
@example(["seed=["])
@example(["=1"])
@example(["a..b=1"])
@example(["optim[0]=1"])
@example(["mixture.tasks[t2i]=1"])
@example(["optim.student_lr.x=1"])
@example(["seed.x=1"])
@example(["optim=1", "optim.student_lr=1"])
def test_any_override_gives_a_recipe_or_a_user_error(overrides: list[str]) -> None:
    try:
        assert isinstance(from_mapping({}, overrides), Recipe)
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_a_choice_of_on_and_off_is_written_as_its_words(word: str, tmp_path: Path) -> None:
    assert from_mapping({}, [f"trainer.cuda_graphs={word}"]).trainer.cuda_graphs == word
    path = tmp_path / "recipe.yaml"
    path.write_text(f"trainer: {{cuda_graphs: {word}, deterministic: on}}\n")
    recipe = load(path)
    assert recipe.trainer.cuda_graphs == word and recipe.trainer.deterministic is True
    path.write_text(to_yaml(recipe))
    assert load(path) == recipe
    assert from_mapping({"dmd": {"renoise_tied": False}}).dmd.renoise_tied == "no"


def test_every_option_of_the_method_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs/method.md").read_text()
    keys = [f"dmd.{item.name}" for item in fields(Dmd)] + ["teachers.cfg_scale", "teachers.cfg_rescale"]
    assert [key for key in [*keys, "trainer.task_gradients_every"] if f"`{key}" not in page] == []


def test_the_demo_differs_from_the_studies_base_by_its_guidance_alone() -> None:
    demo, base = (load(f"studies/recipes/{name}.yaml") for name in ("stepwise", "demo"))
    assert demo.guidance != base.guidance
    teachers = replace(demo.teachers, specialists=base.teachers.specialists)
    assert replace(demo, guidance=base.guidance, teachers=teachers) == base
