"""metrics.json on the terminal: the scores, secondary metrics, the other judges, the verdicts."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from workbench.common.tables import Table
from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.judges.judge import LOCAL
from workbench.evaluation.measures.catalogue import rows_of
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.metrics_file import (
    MEAN,
    Agreement,
    Benches,
    Comparison,
    Diversity,
    Metrics,
    Preference,
    Secondary,
    Value,
    mean_of,
)


def print_metrics(metrics: Metrics, console: Console) -> None:
    """All tables and verdicts."""
    title = f"T2I-Bench and Editing-Bench, 1 to 5: {metrics.scored_on}, seeds {metrics.seeds}, {metrics.judge}"
    console.print(_scores(metrics, title))
    console.print(_secondary(metrics))
    console.print(_measures(metrics))
    for line in metrics.left_out:
        console.print(f"left out: {line}", soft_wrap=True)
    for row in metrics.comparisons:
        console.print(_comparison(row))
    console.print(_seconds(metrics.seconds))
    if metrics.vlm:
        console.print(_other_judges(metrics))
    for name, judge in metrics.vlm.items():
        for row in judge.comparisons:
            console.print(f"judge {name}: {_comparison(row)}")
        if judge.agreement:
            console.print(_agreement(name, judge.agreement))
        if judge.noise:
            console.print(
                f"judge {name} scores one answer with a deviation of {judge.noise.value:.2f}, n={judge.noise.n}"
            )
    for name, found in metrics.preference.items():
        console.print(_preference(name, found))


def _seconds(seconds: Mapping[str, Mapping[str, float]]) -> str:
    """Where the time went, the longest phase first."""
    phases = sorted(((of["wall"], name) for name, of in seconds.items() if name != "total"), reverse=True)
    parts = ", ".join(f"{name} {wall:.1f}" for wall, name in phases)
    return f"{seconds['total']['wall']:.1f} s ({seconds['total']['cpu']:.1f} s of CPU): {parts}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "measure") else "right")
    return table


def _scores(metrics: Metrics, title: str) -> Table:
    columns = ("model", "NFE", "images", "T2I", "Editing", "diversity", "Frechet")
    table = _table(title, *columns)
    for name, model in metrics.models.items():
        diversity = f"{model.diversity.mean:.2f}" if model.diversity else "-"
        frechet = f"{model.frechet.value:.0f}\nn={model.frechet.n}" if model.frechet else "-"
        cost = f"{model.n}\n{model.seconds_per_image:.3f} s"
        table.add_row(name.replace("_", " "), str(model.nfe), cost, *_means(model.benches), diversity, frechet)
    given = {"exact targets": metrics.ceiling.benches, "source unchanged": metrics.floor.benches}
    for name, benches in given.items():
        if any(mean != "-" for mean in _means(benches)):
            table.add_row(name, "-", "-", *_means(benches), "-", "-")
    return table


def _means(benches: Benches) -> list[str]:
    return [_with_interval(mean_of(benches, bench)) for bench in BENCHES.values()]


def _secondary(metrics: Metrics) -> Table:
    table = _table(
        "Secondary metrics (words: T2I / edits; intervals in metrics.json)", "model", "KID", "preci-\nsion", "recall",
        "spread\n/ tea-\ncher", "words\nright", "flat\nnoise", "target\ndist.",
    )  # fmt: skip
    spreads = {name.replace("_", " "): model.diversity for name, model in metrics.models.items()}
    for name, secondary in _rows(metrics).items():
        table.add_row(name, *_secondary_cells(secondary, spreads.get(name) or Diversity()))
    return table


def _rows(metrics: Metrics) -> dict[str, Secondary]:
    """Every model with secondary metrics, and the exact targets."""
    found = {name.replace("_", " "): model.secondary for name, model in metrics.models.items()}
    found["exact targets"] = metrics.ceiling.secondary
    return {name: secondary for name, secondary in found.items() if secondary is not None}


def _measures(metrics: Metrics) -> Table:
    """A row a measure, a column a model."""
    models = _rows(metrics)
    table = _table("What scores miss (docs/measures.md)", "measure", "n", *(name.replace(" ", "\n") for name in models))
    for title, n, values in rows_of([*models.values()]):
        table.add_row(title, str(n), *("\n".join(filter(None, value)).replace(", ", "\n") for value in values))
    return table


def _secondary_cells(secondary: Secondary, diversity: Diversity) -> list[str]:
    return [
        _value(secondary.kid, 3),
        _value(secondary.precision),
        _value(secondary.recall),
        _value(diversity.to_teacher),
        " / ".join(_mean(secondary.word_accuracy.get(bench)) for bench in BENCHES.values()),
        _mean(secondary.residual_noise),
        _mean((secondary.target_distance or {}).get(MEAN), 3),
    ]


def _other_judges(metrics: Metrics) -> Table:
    table = _table("Other judges", "model", "judge", "NFE", "T2I-Bench", "Editing-Bench", "answered", "missing")
    for name, model in metrics.models.items():
        for judge, found in model.vlm.items():
            reasons = "; ".join(f"{count} x {reason}" for reason, count in found.missing.reasons.items())
            table.add_row(
                name.replace("_", " "),
                f"{judge} {metrics.vlm[judge].model}",
                str(model.nfe),
                *_means(found.benches),
                str(found.n),
                f"{found.missing.count} ({reasons})" if found.missing.count else "0",
            )
    return table


def _agreement(judge: str, found: Agreement) -> str:
    orders = f"judge {judge} orders {found.alike} of {found.pairs} pairs of models by category as {_other(found.other)}"
    if found.differences is None:
        return orders
    value, n = found.differences.value, found.differences.n
    return f"{orders}; rank correlation of differences case by case {value:.2f}, n={n}"


def _other(judge: str) -> str:
    return "the local one" if judge == LOCAL else f"judge {judge}"


def _preference(judge: str, found: Preference) -> str:
    strengths = [
        f"{name.replace('_', ' ')} {' '.join(_with_interval(of).split())}" for name, of in found.log_strength.items()
    ]
    agree = "-" if found.orders_agree is None else f"{found.orders_agree:.0%}"
    return (
        f"judge {judge} prefers, as log strengths: {', '.join(strengths) or 'nothing'} "
        f"({found.pairs} pairs, {found.missing} missing, both orders agree on {agree})"
    )


def _comparison(row: Comparison) -> str:
    interval = f"{row.low:+.3f} to {row.high:+.3f}" if row.low is not None else "no interval"
    return f"{row.a} against {row.b} on {row.bench}: {row.difference:+.3f} ({interval}, n={row.n}): {row.verdict}"


def _with_interval(interval: Interval | None, digits: int = 2) -> str:
    if interval is None:
        return "-"
    if interval.low is None:
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f}\n{interval.low:.{digits}f}..{interval.high:.{digits}f}"


def _mean(interval: Interval | None, digits: int = 2) -> str:
    return "-" if interval is None else f"{interval.mean:.{digits}f}"


def _value(found: Value | None, digits: int = 2) -> str:
    return "-" if found is None else f"{found.value:.{digits}f}\nn={found.n}"
