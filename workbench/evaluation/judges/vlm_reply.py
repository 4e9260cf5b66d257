"""Replies of vision-language judges, parsed strictly: any deviation from the form asked for is malformed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.evaluation.judges.judge import Choice
from workbench.evaluation.judges.vlm_prompts import HIGHEST, LOWEST, SEVERE_BELOW, SEVERE_CAP, Rubric

END_OF_THOUGHTS = "</think>"
MAX_REASON = 600
"""Characters of a reason that are kept."""


class Malformed(ValueError):
    """A reply that is no valid judgement; the message names the fault without quoting the reply."""


@dataclass(frozen=True)
class Verdict:
    """A valid reply. score: `overall`, capped where a critical sub-score failed severely; all in [1, 5]. repeats: the
    score of every time that it was asked, if that was more than once."""

    score: float
    overall: float
    sub_scores: dict[str, float]
    failure_modes: tuple[str, ...]
    reason: str
    repeats: tuple[float, ...] = ()

    def details(self) -> dict[str, Any]:
        """All of it but the score."""
        return {
            "overall": self.overall,
            "sub_scores": self.sub_scores,
            "failure_modes": list(self.failure_modes),
            "reason": self.reason,
            **({"repeats": list(self.repeats)} if self.repeats else {}),
        }


def parse_verdict(text: str, rubric: Rubric) -> Verdict:
    """The judgement in a reply. Raises Malformed."""
    reply = _object(text, {"sub_scores", "failure_modes", "reason", "score"})
    given = reply["sub_scores"]
    if not isinstance(given, dict) or given.keys() != rubric.axes.keys():
        raise Malformed(f"sub_scores must hold exactly {', '.join(rubric.axes)}")
    sub_scores = {name: _score(given[name], name) for name in rubric.axes}
    failures = reply["failure_modes"]
    if not isinstance(failures, list) or not all(failure in rubric.failures for failure in failures):
        raise Malformed("failure_modes must be a list of the names that were offered")
    overall = _score(reply["score"], "score")
    severe = any(sub_scores[name] < SEVERE_BELOW for name in rubric.critical)
    score = min(overall, SEVERE_CAP) if severe else overall
    return Verdict(score, overall, sub_scores, tuple(failures), _reason(reply["reason"]))


def mean_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict of several on the same answer: mean scores, all failure modes, the first reason."""
    first, count = verdicts[0], len(verdicts)
    return Verdict(
        score=sum(of.score for of in verdicts) / count,
        overall=sum(of.overall for of in verdicts) / count,
        sub_scores={name: sum(of.sub_scores[name] for of in verdicts) / count for name in first.sub_scores},
        failure_modes=tuple(dict.fromkeys(mode for of in verdicts for mode in of.failure_modes)),
        reason=first.reason,
        repeats=tuple(of.score for of in verdicts),
    )


def parse_choice(text: str) -> Choice:
    """The preference in a reply. Raises Malformed."""
    reply = _object(text, {"winner", "reason"})
    if reply["winner"] not in ("A", "B"):
        raise Malformed("winner must be A or B")
    return Choice(reply["winner"], _reason(reply["reason"]))


def _object(text: str, keys: set[str]) -> dict[str, Any]:
    """The one JSON object that `text` is, with exactly these keys. A code fence around it is allowed, and
    thoughts before it, which servers without a parser of reasoning leave there."""
    text = text.rpartition(END_OF_THOUGHTS)[2].strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removeprefix("```").removeprefix("json").removesuffix("```")
    try:
        reply = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise Malformed("not one JSON object") from error
    if not isinstance(reply, dict) or reply.keys() != keys:
        raise Malformed(f"must be one JSON object with exactly the keys {', '.join(sorted(keys))}")
    return reply


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _score(value: Any, name: str) -> float:
    # bool is an int to Python, and no score to us.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name} must be a number")
    # Neither nan nor infinity lies between.
    if not LOWEST <= value <= HIGHEST:
        raise Malformed(f"{name} must lie between {LOWEST:g} and {HIGHEST:g}")
    return float(value)


def _reason(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Malformed("reason must be a sentence")
    return " ".join(value.split())[:MAX_REASON]
