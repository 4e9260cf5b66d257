"""Whether the local judge can tell what cases ask for, said before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from workbench.common.errors import UserError, nearest
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.judges.local_network import LETTERS, JudgeConfig

_WORD = "word"


def check_heads(cases: Sequence[Case], judge: LocalJudge) -> None:
    """Heads that a case names and the judge does not see are left out of its axes: not without a word.

    Raises: UserError for a value that the judge never gives: no picture could be right.
    """
    config = judge.network.config
    unknown = {head for case in cases for head in (*case.named, *case.kept)} - {*config.heads, _WORD}
    if unknown:
        count = sum(1 for case in cases if unknown & {*case.named, *case.kept})
        Console().print(f"{count} cases name what {judge.name} does not see, left out: {', '.join(sorted(unknown))}")
    for case in cases:
        for head in {*case.named, *case.kept} - unknown:
            for value in case.accepted.get(head, [case.scene[head]]):
                _check_value(case.id, head, value, config)


def _check_value(case: str, head: str, value: Any, config: JudgeConfig) -> None:
    if head == _WORD:
        if not {*value} <= {*LETTERS} or len(value) > config.max_letters:
            raise UserError(f"case {case}: the judge reads words of up to {config.max_letters} capitals, not {value!r}")
        return
    for name in [value] if isinstance(value, str) else value:
        if name not in config.heads[head]:
            known = config.heads[head]
            hint = nearest(name, known)
            raise UserError(f"case {case}: the judge knows no {head} {name!r}{hint}; it knows {', '.join(known)}")
