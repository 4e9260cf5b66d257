"""Whether the local judge can recognise what cases ask for, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from workbench.common.errors import UserError, nearest
from workbench.evaluation.judges.local_network import LETTERS, JudgeConfig

if TYPE_CHECKING:
    from workbench.evaluation.cases.case import Case

_WORD = "word"


def check_attributes(cases: Sequence[Case], config: JudgeConfig, title: str) -> None:
    """Print which attributes that cases name are left out of their axes, since the judge does not recognise them.

    Raises: UserError for a value that the judge never gives: no picture could be right.
    """
    unknown = {name for case in cases for name in (*case.named, *case.kept)} - {*config.heads, _WORD}
    if unknown:
        count = sum(1 for case in cases if unknown & {*case.named, *case.kept})
        Console(markup=False).print(
            f"{count} cases name what {title} does not see, left out: {', '.join(sorted(unknown))}"
        )
    for case in cases:
        for name in {*case.named, *case.kept} - unknown:
            for value in case.accepted.get(name, [case.scene[name]]):
                _check_value(case.id, name, value, config)


def _check_value(case: str, attribute: str, value: Any, config: JudgeConfig) -> None:
    if attribute == _WORD:
        if not {*value} <= {*LETTERS, " "} or len(value) > config.max_letters:
            raise UserError(
                f"case {case}: the judge reads up to {config.max_letters} capitals and spaces, not {value!r}"
            )
        return
    for name in [value] if isinstance(value, str) else value:
        if name not in config.heads[attribute]:
            known = config.heads[attribute]
            hint = nearest(name, known)
            raise UserError(f"case {case}: the judge knows no {attribute} {name!r}{hint}; it knows {', '.join(known)}")
