"""Charts of a study's report: arms with intervals, curves with bands, what n seeds can show, fronts and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.analysis.importance import Importance
from workbench.reporting.plots import INK, OTHER, STYLE, svg

COLOURS = (*OTHER[:5], "#2aa7b8", "#c2557f", "#8a9a3b", "#6a5acd", "#a5724a", "#7c8aa5", "#444f5e")
Curves = Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]
"""Quantity -> arm -> student update -> the value of each seed."""


def colour(place: int) -> str:
    """Colour of arm `place`, the same in every chart."""
    return COLOURS[place % len(COLOURS)]


def _name_rows(panel: Any, names: Sequence[str]) -> None:
    """One row a name, the first one uppermost."""
    panel.set_yticks(range(len(names)), list(reversed(names)))
    panel.set_ylim(-0.6, len(names) - 0.4)
    panel.grid(axis="x")


def arms_chart(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """Each arm's runs as dots and its mean with the interval. rows: `name`, `values`, `interval` (mean, low, high)."""
    shown = [row for row in rows if row["interval"] is not None]
    if not shown:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.8 + 0.36 * len(shown)))
        panel = figure.subplots()
        for y, row in enumerate(reversed(shown)):
            interval = row["interval"]
            panel.plot(row["values"], [y] * len(row["values"]), "o", ms=4, color=OTHER[5], alpha=0.7)
            if interval["low"] is not None:
                panel.plot([interval["low"], interval["high"]], [y, y], color=OTHER[0], lw=2)
            panel.plot([interval["mean"]], [y], "D", ms=6, color=OTHER[0])
        # The interval of two seeds may be wider than the scale: dots must stay apart.
        values = [value for row in shown for value in row["values"]]
        room = max(0.75 * (max(values) - min(values)), 0.1)
        low, high = panel.get_xlim()
        panel.set_xlim(max(low, min(values) - room), min(high, max(values) + room))
        _name_rows(panel, [row["name"] for row in shown])
        panel.set_xlabel(f"{label} of the student; dots are runs, the bar is the 95 % interval of the mean")
        figure.tight_layout()
    return svg(figure, "arms")


def differences_chart(rows: Sequence[Mapping[str, Any]], label: str, margin: float) -> str:
    """Each comparison's difference with its interval, over the band of differences that do not matter."""
    shown = [row for row in rows if row["low"] is not None]
    if not shown:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.8 + 0.36 * len(shown)))
        panel = figure.subplots()
        for y, row in enumerate(reversed(shown)):
            at = OTHER[2] if row["low"] > 0 else OTHER[4] if row["high"] < 0 else OTHER[5]
            panel.plot([row["low"], row["high"]], [y, y], color=at, lw=2)
            panel.plot([row["difference"]], [y], "D", ms=6, color=at)
        panel.axvspan(-margin, margin, color=INK, alpha=0.08, lw=0)
        panel.axvline(0, color=INK, lw=0.8)
        _name_rows(panel, [row["arm"] for row in shown])
        panel.set_xlabel(f"{label}; shaded: differences below the margin of {margin:g}")
        figure.tight_layout()
    return svg(figure, "differences")


def curves_chart(curves: Curves, arms: Sequence[str]) -> str:
    """A panel a quantity: each arm's mean over seeds against student updates, its band from lowest to highest seed."""
    if not curves:
        return ""
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.3 * lines))
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel in panels[len(curves) :]:
            panel.axis("off")
        for panel, (quantity, by_arm) in zip(panels, curves.items(), strict=False):
            for place, arm in enumerate(arms):
                if by_arm.get(arm):
                    _band(panel, by_arm[arm], colour(place), arm)
            panel.set_title(quantity)
            panel.grid()
        for panel in panels[max(0, len(curves) - columns) : len(curves)]:
            panel.set_xlabel("student updates")
        handles = {label: h for p in panels for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
        figure.tight_layout()
        figure.legend(
            handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(4, len(handles))
        )
    return svg(figure, "study-curves")


def _band(panel: Axes, points: Mapping[int, Sequence[float]], color: str, label: str) -> None:
    updates = sorted(points)
    panel.fill_between(
        updates, [min(points[u]) for u in updates], [max(points[u]) for u in updates], color=color, alpha=0.15, lw=0
    )
    marker = "o" if len(updates) < 8 else None
    panel.plot(updates, [np.mean(points[u]) for u in updates], color=color, lw=1.4, marker=marker, ms=3, label=label)


def detectable_chart(rows: Sequence[Mapping[str, Any]], low: float, high: float) -> str:
    """Minimal detectable difference against seeds an arm. low, high: factors by which the spread may be off."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 2.9))
        panel = figure.subplots()
        seeds, least = [row["seeds"] for row in rows], np.array([row["least"] for row in rows])
        panel.fill_between(seeds, least * low, least * high, color=OTHER[0], alpha=0.15, lw=0)
        panel.plot(seeds, least, color=OTHER[0], lw=1.6, marker="o", ms=4)
        panel.set_ylim(0, float(np.max(least[1:] if len(least) > 1 else least)) * 1.6)
        panel.set_xlabel("seeds an arm")
        panel.set_ylabel("smallest difference found\nin 80 % of studies")
        panel.set_xticks(seeds)
        panel.grid()
        figure.tight_layout()
    return svg(figure, "detectable")


def front_chart(trials: Sequence[Mapping[str, Any]], front: Sequence[int], objectives: Sequence[str]) -> str:
    """Trials by every pair of objectives, those of the front in colour and numbered."""
    pairs = [(a, b) for i, a in enumerate(objectives) for b in objectives[i + 1 :]]
    if not trials or not pairs:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.1))
        for panel, (a, b) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            for trial in trials:
                best = trial["number"] in front
                x, y = trial["values"][a], trial["values"][b]
                panel.plot([x], [y], "o", ms=6 if best else 4, color=OTHER[1] if best else OTHER[5], alpha=0.85)
                if best:
                    panel.annotate(str(trial["number"]), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)
            panel.set_xlabel(a)
            panel.set_ylabel(b)
            panel.grid()
        figure.tight_layout()
    return svg(figure, "front")


def progress_chart(trials: Sequence[Mapping[str, Any]], objective: str) -> str:
    """Every trial's value in the order run, and the best so far."""
    if not trials:
        return ""
    ordered = sorted(trials, key=lambda trial: trial["number"])
    numbers, values = [t["number"] for t in ordered], [t["values"][objective] for t in ordered]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 2.4))
        panel = figure.subplots()
        panel.plot(numbers, values, "o", ms=4, color=OTHER[5])
        panel.step(numbers, np.maximum.accumulate(values), where="post", color=OTHER[1], lw=1.6)
        panel.set_xlabel("trial")
        panel.set_ylabel(objective)
        panel.grid()
        figure.tight_layout()
    return svg(figure, "progress")


def importance_chart(importance: Mapping[str, Mapping[str, Importance]]) -> str:
    """Share of each parameter, a bar an objective; pale where chance does as much."""
    if not importance:
        return ""
    names = sorted(next(iter(importance.values())), key=lambda name: sum(of[name].share for of in importance.values()))
    height = 0.8 / len(importance)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.9 + 0.13 * len(names) * (1 + len(importance))))
        panel = figure.subplots()
        for i, (objective, shares) in enumerate(importance.items()):
            places = np.arange(len(names)) + 0.4 - (i + 0.5) * height
            bars = panel.barh(
                places, [shares[name].share for name in names], height=0.9 * height, color=colour(i), label=objective
            )
            for bar, name in zip(bars, names, strict=True):
                bar.set_alpha(1.0 if shares[name].shown else 0.3)
        panel.set_yticks(range(len(names)), names)
        panel.set_xlabel("importance, summing to 1; pale: no larger than chance makes the largest")
        panel.grid(axis="x")
        panel.legend(loc="lower right")
        figure.tight_layout()
    return svg(figure, "importance")


def slices_chart(trials: Sequence[Mapping[str, Any]], objective: str) -> str:
    """The objective against every drawn parameter."""
    names = sorted({name for trial in trials for name in trial["params"]})
    if not names:
        return ""
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.9 * lines))
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for panel in panels[len(names) :]:
            panel.axis("off")
        for panel, name in zip(panels, names, strict=False):
            points = [
                (trial["params"][name], trial["values"][objective]) for trial in trials if name in trial["params"]
            ]
            words = any(isinstance(x, str | bool) for x, _ in points)
            panel.plot([str(x) if words else x for x, _ in points], [y for _, y in points], "o", ms=4, color=OTHER[0])
            panel.set_title(name)
            panel.grid()
        panels[0].set_ylabel(objective)
        figure.tight_layout()
    return svg(figure, "slices")
