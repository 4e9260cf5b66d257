"""metrics.json on the terminal: the scores, what stands beside them, the other judges, the verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from workbench.evaluation.cases.case import BENCHES

Values = Mapping[str, Any]


def print_metrics(metrics: Values, console: Console) -> None:
    """All tables and verdicts."""
    title = f"T2I-Bench and Editing-Bench, 1 to 5: {asked(metrics)}, seeds {metrics['seeds']}, {metrics['judge']}"
    console.print(_scores(metrics, title))
    console.print(_beside(metrics))
    for line in metrics["comparisons"]:
        console.print(_comparison(line))
    console.print(_seconds(metrics["seconds"]))
    if "vlm" in metrics:
        console.print(_vlm(metrics))
        for name, judge in metrics["vlm"].items():
            for line in judge["comparisons"]:
                console.print(f"judge {name}: {_comparison(line)}")
        for name, found in metrics.get("preference", {}).items():
            console.print(_preference(name, found))


def asked(metrics: Values) -> str:
    """Which cases were scored: of a file, or of a split of the world."""
    return f"cases of {metrics['cases']}" if metrics.get("cases") else f"split {metrics['split']}"


def _seconds(seconds: Values) -> str:
    """Where the time went, the longest phase first."""
    phases = sorted(((of["wall"], name) for name, of in seconds.items() if name != "total"), reverse=True)
    told = ", ".join(f"{name} {wall:.1f}" for wall, name in phases)
    return f"{seconds['total']['wall']:.1f} s ({seconds['total']['cpu']:.1f} s of CPU): {told}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    return table


def _scores(metrics: Values, title: str) -> Table:
    columns = ("model", "NFE", "images", "T2I", "Editing", "diversity", "Frechet")
    table = _table(title, *columns)
    for name, model in metrics["models"].items():
        means = [_cell(model.get(bench, {}).get("mean")) for bench in BENCHES.values()]
        diversity = f"{model['diversity']['mean']:.2f}" if model["diversity"] else "-"
        frechet = f"{model['frechet']['value']:.0f}\nn={model['frechet']['n']}" if model["frechet"] else "-"
        cost = f"{model['n']}\n{model['seconds_per_image']:.3f} s"
        table.add_row(name.replace("_", " "), str(model["nfe"]), cost, *means, diversity, frechet)
    for name, given in (("exact targets", metrics["ceiling"]), ("source unchanged", metrics["floor"])):
        means = [_cell(given.get(bench, {}).get("mean")) for bench in BENCHES.values()]
        if any(mean != "-" for mean in means):
            table.add_row(name, "-", "-", *means, "-", "-")
    return table


def _beside(metrics: Values) -> Table:
    table = _table(
        "Beside the judge (words: T2I / edits; intervals in metrics.json)", "model", "KID", "preci-\nsion", "recall",
        "spread\n/ tea-\ncher", "/ real", "words\nright", "flat\nnoise", "target\ndist.",
    )  # fmt: skip
    rows = {name: (model["beside"], model["diversity"] or {}) for name, model in metrics["models"].items()}
    rows["exact targets"] = (metrics["ceiling"]["beside"], metrics["ceiling"]["diversity"] or {})
    for name, (beside, diversity) in rows.items():
        words = [_mean(beside["word_accuracy"].get(bench)) for bench in BENCHES.values()]
        table.add_row(
            name.replace("_", " "),
            _value(beside["kid"], 3),
            _value(beside["precision"]),
            _value(beside["recall"]),
            _value(diversity.get("to_teacher")),
            _value(diversity.get("to_real")),
            " / ".join(words),
            _mean(beside["residual_noise"]),
            _mean((beside["target_distance"] or {}).get("mean"), 3),
        )
    return table


def _vlm(metrics: Values) -> Table:
    table = _table(
        "Vision-language judges", "model", "judge", "NFE", "T2I-Bench", "Editing-Bench", "answered", "missing"
    )
    for name, model in metrics["models"].items():
        for judge, found in model["vlm"].items():
            means = [_cell(found.get(bench, {}).get("mean")) for bench in BENCHES.values()]
            missing = found["missing"]
            told = "; ".join(f"{count} x {reason}" for reason, count in missing["reasons"].items())
            table.add_row(
                name.replace("_", " "),
                f"{judge} {metrics['vlm'][judge]['model']}",
                str(model["nfe"]),
                *means,
                str(found["n"]),
                f"{missing['count']} ({told})" if missing["count"] else "0",
            )
    return table


def _preference(judge: str, found: Values) -> str:
    strengths = [
        f"{name.replace('_', ' ')} {' '.join(_cell(of).split())}" for name, of in found["log_strength"].items()
    ]
    agree = "-" if found["orders_agree"] is None else f"{found['orders_agree']:.0%}"
    return (
        f"judge {judge} prefers, as log strengths: {', '.join(strengths) or 'nothing'} "
        f"({found['pairs']} pairs, {found['missing']} missing, both orders agree on {agree})"
    )


def _comparison(row: Values) -> str:
    interval = f"{row['low']:+.3f} to {row['high']:+.3f}" if row["low"] is not None else "no interval"
    return (
        f"{row['a']} against {row['b']} on {row['bench']}: {row['difference']:+.3f} ({interval}, n={row['n']}): "
        f"{row['verdict']}"
    )


def _cell(interval: Values | None, digits: int = 2) -> str:
    if interval is None or interval["mean"] is None:
        return "-"
    if interval["low"] is None:
        return f"{interval['mean']:.{digits}f}"
    return f"{interval['mean']:.{digits}f}\n{interval['low']:.{digits}f}..{interval['high']:.{digits}f}"


def _mean(interval: Values | None, digits: int = 2) -> str:
    return "-" if interval is None or interval["mean"] is None else f"{interval['mean']:.{digits}f}"


def _value(found: Values | None, digits: int = 2) -> str:
    return "-" if found is None else f"{found['value']:.{digits}f}\nn={found['n']}"
