"""What vision-language judges would cost, known before anything is drawn or asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.evaluation.answers import JUDGED, work_of
from workbench.evaluation.cases.case import Case
from workbench.evaluation.diversity import DIVERSITY_PROMPTS, DIVERSITY_SAMPLES
from workbench.evaluation.judges.choose import named_judges
from workbench.evaluation.judges.judge import LOCAL
from workbench.evaluation.judges.vlm_judge import QUESTION, REPLY_TOKENS, Question, choice_question, score_question
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
    counts: Counter[tuple[str, str]] = Counter((case.task, case.category) for case in cases)
    num_targets = sum(case.task == "t2i" and case.target is not None for case in cases)
    chosen = replace(chosen, judges=named_judges(chosen, cases))
    images = num_models * images_of(counts, num_targets > 1, chosen)
    if "vlm" not in chosen.judges:
        return Cost(images, 0, 0, 0)
    empty = np.zeros((data.resolution, data.resolution, 3), np.uint8)
    scored = [score_question(case, empty if case.source is None else case.source) for case in cases]
    paired = [case for group in chosen_cases(cases, chosen.vlm.pairs).values() for case in group]
    compared = [choice_question(case, empty, empty) for case in paired]
    times_scored = num_models * len(chosen.seeds) * len(chosen.vlm.judges) * chosen.vlm.repeats
    times_compared = num_models * (num_models - 1) * len(chosen.vlm.judges)
    calls = len(scored) * times_scored + len(compared) * times_compared
    prompt = _tokens(scored) * times_scored + _tokens(compared) * times_compared
    return Cost(images, calls, prompt, calls * REPLY_TOKENS)


def images_of(counts: Mapping[tuple[str, str], int], has_targets: bool, chosen: Evaluation) -> int:
    """Images that one model draws. counts: (task, category) -> cases. has_targets: whether several T2I cases have one,
    as diversity needs."""
    t2i = [count for (task, _), count in counts.items() if task == "t2i"]
    several = sum(min(count, DIVERSITY_PROMPTS) for count in t2i) if has_targets and LOCAL in chosen.judges else 0
    return sum(counts.values()) * len(chosen.seeds) + several * DIVERSITY_SAMPLES


def work(nfes: Sequence[int], cases: Sequence[Case], data: Data, chosen: Evaluation) -> int:
    """Units of a job of evaluating models of these NFE on `cases`: answers, targets and sources judged, questions."""
    planned = cost(cases, len(nfes), data, chosen)
    given = sum((case.target is not None) + (case.source is not None) for case in cases)
    each = planned.images // len(nfes) if nfes else 0
    return each * sum(map(work_of, nfes)) + given * JUDGED + planned.calls * QUESTION


def _tokens(questions: Sequence[Question]) -> int:
    return sum(question.prompt_tokens() for question in questions)
