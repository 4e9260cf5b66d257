"""What the table of docs/measures.md says of numbers whose answer is known, and its command on a few cases."""

from __future__ import annotations

import numpy as np
import pytest

from studies.tiny_model.graded_damage import DAMAGES, SEVERITIES, follows, main, markdown, table
from workbench.common.errors import UserError
from workbench.evaluation.cases.world import world_cases


@pytest.mark.parametrize(
    ("values", "scale", "shown"),
    [
        ([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], -1, "1.00"),
        ([0, 1, 2, 3, 4, 5, 6], 10, "1.00"),
        ([0, 1, 2, 3, 4, 5, 6], -10, "-1.00"),
        ([1, 1, 1, 1, 0.9, 0.6, 0.3], -1, "0.91, blind to 0.5"),
        ([1, 1, 1, 1, 1, 1, 1], -1, "blind"),
        ([1, 0.995, 1, 0.992, 0.999, 1, 0.995], -1, "blind"),
        ([0, 5, 1, 6, 2, 7, 3], 10, "0.50"),
    ],
)
def test_a_measure_follows_or_is_blind_up_to_a_severity(values: list[float], scale: float, shown: str) -> None:
    assert str(follows(values, scale)) == shown


def test_damages_start_at_nothing_and_grow() -> None:
    images = [case.target for case in world_cases("t2i", "search", 4, 64, ["landscape"])]
    for name, damage in DAMAGES.items():
        changes = [np.abs(np.stack(damage(images, s)).astype(int) - np.stack(images)).mean() for s in SEVERITIES]
        assert changes[0] < 0.01 and changes[-1] > 1, name
        assert changes[-1] >= changes[3] > changes[0], name


def test_the_table_of_a_few_cases() -> None:
    pytest.importorskip("rapidocr")
    cases = [
        *world_cases("t2i", "search", 8, categories=["landscape", "text"]),
        *world_cases("edit", "search", 2, categories=["object"]),
    ]
    rows = table(cases, ["exchanged"])
    for name in ("t2i_words", "t2i_log_probability"):
        assert rows[name]["exchanged"].rank >= 0.9, name
    lines = markdown(rows).splitlines()
    assert lines[0] == "| measure | exchanged |" and len(lines) == 2 + len(rows)
    assert all(
        row["exchanged"].values[0] >= row["exchanged"].values[-1] for row in (rows["t2i_words"], rows["t2i_letters"])
    )


@pytest.mark.parametrize("argument", ["cases=3", "t2i_cases=1", "t2i_cases=many"])
def test_options_that_mean_nothing_are_refused(argument: str) -> None:
    with pytest.raises(UserError, match="t2i_cases=N"):
        main([argument])
