"""The judges that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.evaluation.judges.judge import Judge
from workbench.evaluation.judges.local import LocalJudge
from workbench.evaluation.judges.second import SecondJudge
from workbench.evaluation.judges.vlm_judge import panel
from workbench.recipe.config import Evaluation


def local_judge(judges: Sequence[Judge]) -> LocalJudge | None:
    """The local judge among them, whose scores are those of the benchmarks and whose features all distances use."""
    return next((judge for judge in judges if isinstance(judge, LocalJudge)), None)


def judges_of(evaluation: Evaluation) -> list[Judge]:
    """Judges in the recipe's order. Raises: UserError for a judge that the environment does not describe."""
    return [_judge(name, evaluation) for name in evaluation.judges]


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
