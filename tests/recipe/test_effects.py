"""The declaration of which keys alter the numbers of a run: complete, without contradiction, and what it decides."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest

from workbench.recipe import effects
from workbench.recipe.config import Recipe
from workbench.recipe.effects import ALWAYS, IN_DISTILLATION, IN_PRETRAINING, NEVER, alters, covers, differences
from workbench.recipe.reading import from_mapping

KEYS = [
    f"{section.name}.{item.name}" if is_dataclass(value) else section.name
    for section in fields(Recipe)
    for value in [getattr(Recipe(), section.name)]
    for item in (fields(value) if is_dataclass(value) else [section])
]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_declared_once(key: str) -> None:
    tables = (ALWAYS, IN_DISTILLATION, IN_PRETRAINING, NEVER)
    found = [name for table in tables for name in table if covers(name, key)]
    assert len(found) == 1, f"{key} stands in {found or 'no'} table of workbench/recipe/effects.py"


def test_every_declaration_is_of_a_key() -> None:
    for name in (*ALWAYS, *IN_DISTILLATION, *IN_PRETRAINING, *NEVER):
        assert any(covers(name, key) for key in KEYS), f"{name} is no key of a recipe"


def test_what_alters_is_named_with_both_values_and_nothing_else_is() -> None:
    before = Recipe()
    now = from_mapping(
        {
            "seed": 3,
            "dmd": {"fake_updates": 4},
            "mixture": {"tasks": {"t2i": 1.0}, "micro_batch_size": 1},
            "model": {"gradient_checkpointing": True, "folder": "/elsewhere/tiny"},
            "trainer": {"compile": "none", "cuda_graphs": "off", "updates": 900, "precision": "tf32"},
            "data": {"encode_workers": 3, "samples": {"t2i": {"text": 9}}, "source": "x.csv", "keep_raw": True},
            "evaluation": {"cases": "mine.jsonl"},
            "pretrain": {"lr": 3.0, "compile": True},
        }
    )
    assert differences(before, now, "distill", ({"model.folder": "a"}, {"model.folder": "a"})) == [
        "dmd.fake_updates was 2, is 4",
        "mixture.tasks.edit was 0.5, is None",
        "mixture.tasks.t2i was 0.5, is 1.0",
        "seed was 0, is 3",
        "trainer.precision was 32-true, is tf32",
    ]
    assert "pretrain.lr was 0.001, is 3.0" in differences(before, now, "pretrain")
    assert not any(line.startswith(("dmd", "pretrain.compile")) for line in differences(before, now, "pretrain"))


def test_content_counts_and_not_its_path() -> None:
    before, moved = Recipe(), from_mapping({"data": {"encoded": "/disk2/encoded"}})
    assert differences(before, moved, "distill") == ["data.encoded was data/encoded, is /disk2/encoded"]
    assert differences(before, moved, "distill", ({"data.encoded": "a"}, {"data.encoded": "a"})) == []
    assert differences(before, before, "distill", ({"data.encoded": "a"}, {"data.encoded": "b"})) == [
        "data.encoded was data/encoded (content a), is data/encoded (content b)"
    ]


def test_the_order_of_specialists_is_part_of_the_recipe() -> None:
    """The columns of lambda tables go by it."""
    one, other = ({"teachers": {"specialists": of}} for of in ({"a": "x", "b": "y"}, {"b": "y", "a": "x"}))
    found = differences(from_mapping(one), from_mapping(other), "distill")
    assert found == ["teachers.specialists.(order) was a, b, is b, a"]


def test_a_list_is_compared_too() -> None:
    times = replace(Recipe().dmd, student_times=[1.0, 0.9, 0.6, 0.2])
    (line,) = differences(Recipe(), replace(Recipe(), dmd=times), "distill")
    assert line == "dmd.student_times was [], is [1.0, 0.9, 0.6, 0.2]"
    assert alters("dmd.student_times", "distill") and not effects.alters("dmd.student_times", "pretrain")
