"""Guidance schedules: what their tables have in common, where each bends, and what is said of a wrong one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.common.errors import UserError
from workbench.method import guidance, schedules
from workbench.method.schedules import Kind
from workbench.recipe import lambda_tables
from workbench.recipe.config import Guidance, Recipe
from workbench.recipe.reading import from_mapping, to_yaml

KINDS: tuple[Kind, ...] = ("constant", "switch", "ramp", "cosine")
SPECIALISTS = ["portrait", "text"]


def options(**classes: dict[str, object]) -> Guidance:
    return from_mapping({"guidance": {"schedules": classes}}).guidance


def rows(num_steps: int = 4, **schedule: object) -> list[list[float]]:
    return lambda_tables.tables(options(t2i=schedule), num_steps=num_steps, specialists=SPECIALISTS)["t2i"]


@given(
    st.sampled_from(KINDS),
    st.integers(2, 8),
    st.lists(st.floats(0, 0.5), min_size=2, max_size=2),
    st.lists(st.floats(0, 0.5), min_size=2, max_size=2),
)
def test_every_schedule_passes_the_checks_of_a_table_and_moves_one_way(
    kind: Kind, num_steps: int, early: list[float], late: list[float]
) -> None:
    mixes = [[1 - sum(mix), *mix] for mix in (early, late)]
    table = schedules.blend(mixes[0], mixes[1], schedules.late_share(kind, num_steps, 1))
    found = guidance.lambda_table({"default": table}, ["t2i/a"], num_steps=num_steps, teachers=["base", "p", "t"])[0]
    direction = torch.tensor(mixes[1]) - torch.tensor(mixes[0])
    assert ((found.diff(dim=0) * direction) >= -1e-6).all()
    torch.testing.assert_close(found[-1], torch.tensor(mixes[1]))
    if kind != "constant":
        torch.testing.assert_close(found[0], torch.tensor(mixes[0]))


def test_ramp_is_straight_and_cosine_is_flat_at_its_ends_and_meets_it_halfway() -> None:
    ramp, cosine = (torch.tensor(schedules.late_share(kind, 9)) for kind in ("ramp", "cosine"))  # type: ignore[arg-type]
    torch.testing.assert_close(ramp.diff(), torch.full((8,), 1 / 8))
    torch.testing.assert_close(cosine + cosine.flip(0), torch.ones(9))
    assert cosine[4] == pytest.approx(0.5) and cosine.diff()[0] < 0.5 / 8 < 1.5 / 8 < math.pi / 16 < 0.2
    assert schedules.late_share("ramp", 1) == schedules.late_share("cosine", 1) == [1.0]


def test_a_switch_gives_the_early_steps_to_the_base_teacher() -> None:
    base, late = [1.0, 0.0, 0.0], [0.25, 0.0, 0.75]
    assert rows(kind="switch", at=1, weights={"text": 0.75}) == [base, late, late, late]
    assert rows(kind="switch", at=3, weights={"text": 0.75}) == [base, base, base, late]


@given(st.floats(0.01, 0.99), st.integers(1, 8))
def test_a_switch_at_a_share_of_the_steps_has_one_dose_for_any_number_of_them(share: float, num_steps: int) -> None:
    of_specialist = [row[2] for row in rows(num_steps, kind="switch", at=share, weights={"text": 1.0})]
    assert sum(of_specialist) / num_steps == pytest.approx(1 - share, abs=1e-6)
    assert of_specialist == sorted(of_specialist)


def test_a_share_of_the_steps_is_the_step_that_it_falls_on() -> None:
    for step in (1, 2, 3):
        by_share, by_number = (rows(4, kind="switch", at=at, weights={"text": 0.75}) for at in (step / 4, step))
        assert by_share == by_number
    assert [row[2] for row in rows(2, kind="switch", at=0.75, weights={"text": 1.0})] == [0.0, 0.5]


def test_an_alternation_has_the_dose_of_a_switch_halfway_in_another_order() -> None:
    base, late = [1.0, 0.0, 0.0], [0.25, 0.0, 0.75]
    assert rows(kind="alternate", weights={"text": 0.75}) == [base, late, base, late]
    assert schedules.late_share("alternate", 1) == [1.0]


def test_rounding_leaves_the_base_teacher_no_weight() -> None:
    names = ["a", "b", "c"]
    schedule = options(t2i={"weights": dict(zip(names, (0.6, 0.3, 0.1), strict=True))})
    table = lambda_tables.tables(schedule, num_steps=2, specialists=names)["t2i"]
    assert table == [[0.0, 0.6, 0.3, 0.1]] * 2


def test_schedules_and_tables_stand_side_by_side_and_the_nearest_counts() -> None:
    recipe = from_mapping(
        {
            "guidance": {
                "tables": {"t2i/text": [[0, 0, 1], [0, 0, 1]]},
                "schedules": {"default": {}, "t2i": {"weights": {"portrait": 1}}},
            }
        }
    )
    tables = lambda_tables.tables(recipe.guidance, num_steps=2, specialists=SPECIALISTS)
    categories = ["t2i/text", "t2i/portrait", "edit/text"]
    table = guidance.lambda_table(tables, categories, num_steps=2, teachers=["base", *SPECIALISTS])
    assert table.argmax(-1).tolist() == [[2, 2], [1, 1], [0, 0]]


def test_a_recipe_with_schedules_survives_its_own_yaml() -> None:
    import yaml

    recipe = from_mapping({}, ["guidance.schedules.t2i={kind: cosine, weights: {text: 0.5}}"])
    assert recipe.guidance.schedules["t2i"].weights == {"text": 0.5}
    assert from_mapping(yaml.safe_load(to_yaml(recipe))) == recipe != Recipe()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"kind": "switch"}, r"guidance\.schedules\.t2i switches: say at which student step"),
        ({"kind": "switch", "at": 4}, r"schedules\.t2i\.at must lie in \[1, 3\] for 4 student steps, got 4"),
        ({"kind": "switch", "at": 1.5}, r"schedules\.t2i\.at is a student step from 1 on, or a share .*, not 1\.5"),
        ({"kind": "switch", "at": 0}, r"schedules\.t2i\.at is a student step from 1 on, or a share .*, not 0"),
        ({"kind": "switch", "at": float("inf")}, r"schedules\.t2i\.at is a student step .*, not inf"),
        ({"kind": "alternate", "at": 1}, r"schedules\.t2i\.at is read by kind switch alone"),
        ({"kind": "ramp", "at": 1}, r"schedules\.t2i\.at is read by kind switch alone"),
        ({"early": {"text": 1.0}}, r"schedules\.t2i is constant: leave out early and at"),
        ({"weights": {"text": 1.5}}, r"schedules\.t2i\.weights\.text must lie in \[0, 1\], got 1\.5"),
        ({"weights": {"text": float("nan")}}, r"schedules\.t2i\.weights\.text must lie in"),
        ({"weights": {"text": 0.7, "portrait": 0.7}}, r"schedules\.t2i\.weights sums to 1\.4: at most 1"),
        ({"weights": {"portait": 0.7}}, r"weights names 'portait' \(did you mean 'portrait'\?\).*portrait, text"),
        ({"kid": "ramp"}, r"unknown key guidance\.schedules\.t2i\.kid \(did you mean 'kind'\?\)"),
        ({"kind": "sudden"}, r"guidance\.schedules\.t2i\.kind"),
    ],
)
def test_a_wrong_schedule_is_named_with_its_mend(schedule: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows(**schedule)


def test_a_class_has_one_form() -> None:
    with pytest.raises(UserError, match="a table and a schedule for t2i: leave out one"):
        from_mapping({"guidance": {"schedules": {"t2i": {}}, "tables": {"t2i": [[1.0]]}}})


def test_a_class_that_no_data_have_is_named() -> None:
    with pytest.raises(UserError, match="class 't2i/portait', but the data have only t2i/portrait"):
        guidance.lambda_table({"t2i/portait": [[1.0]]}, ["t2i/portrait"], num_steps=1, teachers=["base"])
