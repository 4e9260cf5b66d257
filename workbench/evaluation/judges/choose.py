"""The judges that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.judge import Judge
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.judges.second import SecondJudge
from workbench.evaluation.judges.vlm_judge import panel
from workbench.recipe.config import Evaluation

OF_THE_WORLD = ("local", "second")
"""Judges that have seen nothing but the world that ships."""
LEFT_OUT = (
    "the judges local and second know the world that ships alone, and these cases are not of it: they are left out "
    "(evaluation.judges=[local] has one all the same)"
)


def local_judge(judges: Sequence[Judge]) -> LocalJudge | None:
    """The local judge among them, whose scores are those of the benchmarks and whose features all distances use."""
    return next((judge for judge in judges if isinstance(judge, LocalJudge)), None)


def judges_of(evaluation: Evaluation, cases: Sequence[Case] | None = None) -> list[Judge]:
    """Judges of the cases in the recipe's order (`named_judges`). Raises: UserError for a judge that the environment
    does not describe."""
    return [_judge(name, evaluation) for name in named_judges(evaluation, cases)]


def named_judges(evaluation: Evaluation, cases: Sequence[Case] | None) -> list[str]:
    """Names of the judges of the cases. The two networks that ship know their own world alone: by default, which names
    both, they are left out where no case says anything that they could look for."""
    names = list(evaluation.judges)
    if cases is None or not evaluation.cases or not {*OF_THE_WORLD} <= {*names}:
        return names
    if any(case.scene or case.source_scene for case in cases):
        return names
    return [name for name in names if name not in OF_THE_WORLD]


def judges_left_out(evaluation: Evaluation, cases: Sequence[Case]) -> str:
    """A line that says which judges are left out of these cases by default; empty if none is."""
    return LEFT_OUT if named_judges(evaluation, cases) != list(evaluation.judges) else ""


def _judge(name: str, evaluation: Evaluation) -> Judge:
    match name:
        case "local":
            return LocalJudge()
        case "second":
            return SecondJudge()
        case "vlm":
            return panel(evaluation.vlm)
        case _:
            raise ValueError(f"no judge is made for {name!r}, which recipes may name")
