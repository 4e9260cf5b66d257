"""What vision-language judges would cost, known before anything is drawn or asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.evaluation.cases.case import Case
from workbench.evaluation.diversity import DIVERSITY_SAMPLES, answered_often
from workbench.evaluation.judges.judge import LOCAL
from workbench.evaluation.judges.vlm_judge import REPLY_TOKENS, Question, choice_question, score_question
from workbench.evaluation.sheets import chosen_cases
from workbench.recipe.config import Data, Evaluation


@dataclass(frozen=True)
class Cost:
    """Images to be drawn; calls to all judges together and roughly the tokens of them, without what a cache would save
    or retries add."""

    images: int
    calls: int
    prompt_tokens: int
    reply_tokens: int


def cost(cases: Sequence[Case], num_models: int, data: Data, chosen: Evaluation) -> Cost:
    """Cost of evaluating `num_models` models on `cases` with the recipe's judges."""
    num_targets = sum(case.task == "t2i" and case.target is not None for case in cases)
    several = answered_often(cases) if num_targets > 1 and LOCAL in chosen.judges else []
    images = num_models * (len(cases) * len(chosen.seeds) + len(several) * DIVERSITY_SAMPLES)
    if "vlm" not in chosen.judges:
        return Cost(images, 0, 0, 0)
    empty = np.zeros((data.resolution, data.resolution, 3), np.uint8)
    scored = [score_question(case, empty if case.source is None else case.source) for case in cases]
    paired = [case for group in chosen_cases(cases, chosen.vlm.pairs).values() for case in group]
    compared = [choice_question(case, empty, empty) for case in paired]
    times_scored = num_models * len(chosen.seeds) * len(chosen.vlm.judges)
    times_compared = num_models * (num_models - 1) * len(chosen.vlm.judges)
    calls = len(scored) * times_scored + len(compared) * times_compared
    prompt = _tokens(scored) * times_scored + _tokens(compared) * times_compared
    return Cost(images, calls, prompt, calls * REPLY_TOKENS)


def _tokens(questions: Sequence[Question]) -> int:
    return sum(question.prompt_tokens() for question in questions)
