"""`metrics.json`: what an evaluation found, as it is written and read. Needs neither torch nor a model.

The fields are the keys of the file, but for one: the benchmarks in `benches` stand in the object that holds them
(`t2i_bench`, `editing_bench`). What an older file lacks is empty; `secondary` was called `beside` there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.common.outside import read_json
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.metrics_json import INLINE, LEFT_OUT, RENAMED, from_plain, to_plain

MEAN = "mean"
"""What a benchmark's mean over its categories is called among them."""
Benches = dict[str, dict[str, Interval]]
"""Benchmark -> category or `mean` -> interval; benchmarks without cases are left out."""
Parts = dict[str, dict[str, dict[str, Interval]]]
"""Benchmark -> category -> difficulty -> interval, of what has any. Apart from `Benches`, so that whatever goes through
the categories of a benchmark, for a mean, a rank or a family of comparisons, meets whole categories alone."""


def benches() -> Any:
    """The field of a dataclass that holds benchmarks."""
    return field(default_factory=dict, metadata=INLINE)


def parts() -> Any:
    """The field of a dataclass that holds the parts of categories."""
    return field(default_factory=dict, metadata=LEFT_OUT)


@dataclass(frozen=True)
class Value:
    """A number that `n` images or prompts gave together; low, high: its interval, where one is known."""

    value: float = math.nan
    low: float | None = field(default=None, metadata=LEFT_OUT)
    high: float | None = field(default=None, metadata=LEFT_OUT)
    n: int = 0


@dataclass(frozen=True)
class Bounded:
    """A number of `n` answers together, NaN where n is too small to give one. low, high: its interval. real: what
    as many other real pictures would get on average; collapsed: what always the commonest choice would get."""

    value: float = math.nan
    low: float | None = field(default=None, metadata=LEFT_OUT)
    high: float | None = field(default=None, metadata=LEFT_OUT)
    real: float | None = field(default=None, metadata=LEFT_OUT)
    collapsed: float | None = field(default=None, metadata=LEFT_OUT)
    n: int = 0


@dataclass(frozen=True)
class Diversity:
    """Mean spread of the answers to one prompt with its interval over n prompts, `samples` answers to each, and its
    ratio to the teacher's spread."""

    mean: float = math.nan
    low: float | None = None
    high: float | None = None
    n: int = 0
    samples: int = 0
    to_teacher: Value | None = None

    @property
    def interval(self) -> Interval:
        return Interval(self.mean, self.low, self.high, self.n)


@dataclass(frozen=True)
class Secondary:
    """Secondary metrics, no part of a score (docs/measures.md). target_distance: per category of edits. measures: by
    the names of `MEASURES`. choices: total variation of what prompts leave open; variety: 1 - their mean.
    category_frechet: T2I category -> Frechet distance."""

    word_accuracy: dict[str, Interval] = field(default_factory=dict)
    residual_noise: Interval | None = None
    target_distance: dict[str, Interval] | None = None
    enhance_by_defect: dict[str, Interval | None] = field(default_factory=dict)
    kid: Value | None = None
    precision: Value | None = None
    recall: Value | None = None
    measures: dict[str, Interval] = field(default_factory=dict)
    choices: dict[str, Bounded] = field(default_factory=dict)
    variety: Bounded | None = None
    category_frechet: dict[str, Bounded] = field(default_factory=dict)


@dataclass(frozen=True)
class Missing:
    """Answers without a score: how many, and for which reasons."""

    count: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeScores:
    """What one further judge gives a model. n: answers that it scored."""

    benches: Benches = benches()
    parts: Parts = parts()
    n: int = 0
    missing: Missing = field(default_factory=Missing)


@dataclass(frozen=True)
class ModelMetrics:
    """One model. n: images; vlm: scores by every further judge."""

    nfe: int = 0
    n: int = 0
    seconds_per_image: float = math.nan
    sampling: dict[str, Any] = field(default_factory=dict)
    benches: Benches = benches()
    parts: Parts = parts()
    frechet: Value | None = None
    secondary: Secondary | None = field(default=None, metadata=RENAMED)
    vlm: dict[str, JudgeScores] = field(default_factory=dict)
    diversity: Diversity | None = None


@dataclass(frozen=True)
class Ceiling:
    """What the exact targets get."""

    benches: Benches = benches()
    parts: Parts = parts()
    secondary: Secondary | None = field(default=None, metadata={**RENAMED, **LEFT_OUT})


@dataclass(frozen=True)
class Floor:
    """What edits get whose source is returned as it is."""

    benches: Benches = benches()


@dataclass(frozen=True)
class Comparison:
    """The paired difference a - b on a benchmark over n cases, and what it shows."""

    a: str = ""
    b: str = ""
    bench: str = ""
    difference: float = math.nan
    low: float | None = None
    high: float | None = None
    n: int = 0
    verdict: str = ""

    @property
    def interval(self) -> Interval:
        return Interval(self.difference, self.low, self.high, self.n)


@dataclass(frozen=True)
class Preference:
    """Pairwise choices of one judge. orders_agree: share of pairs in which both orders gave the same winner."""

    pairs: int = 0
    missing: int = 0
    orders_agree: float | None = None
    log_strength: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """Whether a further judge sees what the judge `other` does: the local one, or the first one where it is missing.

    alike: pairs of models, category by category, that both put in the same order, among `pairs`. differences: rank
    correlation between the judges of what two models' scores differ by, case by case, over the n cases of all pairs.
    """

    alike: int = 0
    pairs: int = 0
    differences: Value | None = None
    other: str = "local"


@dataclass(frozen=True)
class JudgeRecord:
    """Who a further judge was, how often it was asked and answered from its cache, its paired differences, and whether
    it agrees with another one. noise: standard deviation of its scores of one answer asked for repeatedly, and n."""

    model: str = ""
    wording: str = ""
    asked: int = 0
    from_cache: int = 0
    comparisons: list[Comparison] = field(default_factory=list)
    agreement: Agreement | None = field(default=None, metadata=LEFT_OUT)
    noise: Value | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True)
class Student:
    """Which student was scored: the update that it is of, None where that is not known, and the hash of its weights."""

    update: int | None = None
    weights: str = ""


@dataclass(frozen=True)
class Metrics:
    """All of `metrics.json`. cases: the file that they come from, None for the world's. seconds: phase -> wall, cpu.
    left_out: what was not measured, and why. overrides: `key=value` words that the command had. student: of a run."""

    recipe: str = ""
    split: str = ""
    cases: str | None = None
    seeds: list[int] = field(default_factory=list)
    judge: str = "judge"
    interval: str = "95 % intervals"
    models: dict[str, ModelMetrics] = field(default_factory=dict)
    ceiling: Ceiling = field(default_factory=Ceiling)
    floor: Floor = field(default_factory=Floor)
    comparisons: list[Comparison] = field(default_factory=list)
    few_step_selection: list[dict[str, Any]] = field(default_factory=list)
    preference: dict[str, Preference] = field(default_factory=dict, metadata=LEFT_OUT)
    vlm: dict[str, JudgeRecord] = field(default_factory=dict, metadata=LEFT_OUT)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    student: Student | None = field(default=None, metadata=LEFT_OUT)

    @property
    def scored_on(self) -> str:
        """Which cases were scored: of a file, or of a split of the world."""
        return f"cases of {self.cases}" if self.cases else f"split {self.split}"

    def as_dict(self) -> dict[str, Any]:
        """The object that the file holds."""
        found = to_plain(self)
        assert isinstance(found, dict)
        return found

    def write(self, path: Path) -> None:
        """Write the file."""
        write_bytes(path, json.dumps(self.as_dict(), indent=1, allow_nan=False).encode())


def from_dict(values: Mapping[str, Any]) -> Metrics:
    """The metrics in an object of `metrics.json`. Raises: ValueError or TypeError where it is none."""
    found = from_plain(Metrics, values)
    assert isinstance(found, Metrics)
    return found


def read(path: Path) -> Metrics | None:
    """The metrics in a file, None if it is missing or broken."""
    try:
        return from_dict(read_json(path, dict, ""))
    except (UserError, ValueError, TypeError, KeyError, AttributeError):
        return None


def mean_of(found: Mapping[str, Mapping[str, Interval]], bench: str) -> Interval | None:
    """A benchmark's mean over its categories; None without cases, or where a category has no score."""
    interval = found.get(bench, {}).get(MEAN)
    return None if interval is None or math.isnan(interval.mean) else interval
