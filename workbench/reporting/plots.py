"""Charts and pictures of the report as text inside an HTML page: SVG in the page's own ink, base64 images."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from workbench.common.errors import UserError
from workbench.common.images import FORMATS, UNDECODABLE
from workbench.common.outside import read_bytes
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.metrics_file import ModelMetrics

INK = "#0a0b0c"
"""Drawn in this colour, shown in the page's `currentColor`, so that charts follow light and dark."""
PALETTE = {"teacher": "#7c8aa5", "teacher_few_step": "#e0923a", "student": "#3f7de0"}
OTHER = ("#3f7de0", "#e0923a", "#3ba272", "#b25fd0", "#d0574f", "#7c8aa5")
MAX_CURVES = 12
NOT_CURVES = ("mixture/", "learning_rate/", "per_step/", "teacher_share/", "task_gradients/")
"""Families of scalars with too many members for a panel each."""
LAST_CURVES = ("throughput/", "skipped_steps")
"""Left out first, where a recipe has many losses."""
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.alpha": 0.18,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def inline_image(path: Path, max_width: int) -> str:
    """A `data:` address of the picture as WebP, shrunk to at most `max_width` pixels; empty if it cannot be read."""
    try:
        return inline_bytes(read_bytes(path, "it is left out"), max_width)
    except (UserError, *UNDECODABLE):
        return ""


def inline_images(paths: Sequence[Path], max_width: int) -> list[str]:
    """`inline_image` of every path, side by side: the encoder frees the interpreter."""
    with ThreadPoolExecutor() as executor:
        return list(executor.map(inline_image, paths, repeat(max_width)))


def inline_bytes(encoded: bytes, max_width: int) -> str:
    """The same of an encoded picture. Raises: one of UNDECODABLE if it is none."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
        image = opened.convert("RGB")
    if image.width > max_width:
        image = image.resize((max_width, round(image.height * max_width / image.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    # A page waits for the encoder: method 4, the default, takes twice as long for 3 % fewer bytes.
    image.save(out, format="WEBP", quality=82, method=2)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def svg(figure: Figure, salt: str, crop: bool = True) -> str:
    """Inline SVG, cropped to what is drawn; `salt` keeps the ids of several charts on a page apart."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        out = io.StringIO()
        box = "tight" if crop else None
        figure.savefig(out, format="svg", transparent=True, bbox_inches=box, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Sizes of its own would keep the chart from shrinking with the page; the view box stays.
    return re.sub(
        r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="([\d.]+)pt"', r'<svg \1\2style="max-width:\3pt"', text, count=1
    )


def _space_panels(figure: Figure, lines: int, columns: int, *, left: float, bottom: float) -> None:
    """Fix the margins of every panel, in inches. `tight_layout`, which measures every label, takes longer than the
    drawing itself where there are many panels."""
    width, height = figure.get_size_inches()
    right, top = 0.12, 0.3
    panel_width, panel_height = width / columns - left - right, height / lines - bottom - top
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=(left + right) / panel_width,
        hspace=(bottom + top) / panel_height,
    )


def score_chart(
    models: Mapping[str, ModelMetrics], titles: Mapping[str, str], benches: Mapping[str, str], salt: str = ""
) -> str:
    """Scores of every model in every category, with their intervals, one panel a benchmark; empty without scores.
    salt: keeps several such charts on a page apart."""
    shown = [bench for bench in benches if any(bench in model.benches for model in models.values())]
    if not shown:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.4))
        widths = [len(next(m.benches[bench] for m in models.values() if bench in m.benches)) for bench in shown]
        panels = figure.subplots(1, len(shown), sharey=True, width_ratios=widths, squeeze=False)[0]
        for panel, bench in zip(panels, shown, strict=True):
            _score_panel(panel, {n: m.benches[bench] for n, m in models.items() if bench in m.benches}, titles)
            panel.set_title(benches[bench])
        panels[0].set_ylabel("score, 1 to 5")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), bbox_to_anchor=(0.5, 0.02))
        figure.tight_layout()
    return svg(figure, f"scores{salt}")


def _score_panel(panel: Axes, scores: Mapping[str, Mapping[str, Interval]], titles: Mapping[str, str]) -> None:
    categories = [name for name in next(iter(scores.values())) if name != "mean"] + ["mean"]
    for i, (name, of_model) in enumerate(scores.items()):
        x = np.arange(len(categories)) + (i - (len(scores) - 1) / 2) * 0.2
        found = [of_model[category] for category in categories]
        means = np.array([of.mean for of in found])
        low = np.array([of.mean if of.low is None else of.low for of in found])
        high = np.array([of.mean if of.high is None else of.high for of in found])
        spread = np.maximum(0, [means - low, high - means])
        color = PALETTE.get(name, OTHER[i % len(OTHER)])
        panel.errorbar(x, means, yerr=spread, fmt="o", ms=4.5, lw=1.6, color=color, label=titles.get(name, name))
    panel.axvspan(len(categories) - 1.5, len(categories) - 0.5, color=INK, alpha=0.06, lw=0)
    panel.set_xticks(range(len(categories)), categories)
    panel.set_xlim(-0.5, len(categories) - 0.5)
    panel.grid(axis="y")


def training_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every logged scalar against student updates, without mixtures; small panels of at most MAX_CURVES names."""
    names: list[str] = []
    for row in rows:
        names += [n for n, v in row.items() if n not in names and n != "update" and isinstance(v, int | float)]
    names = [name for name in names if not name.startswith(NOT_CURVES)]
    names = sorted(names, key=lambda name: (name.startswith(LAST_CURVES), name))[:MAX_CURVES]
    if not names:
        return ""
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.75 * lines))
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel in panels[len(names) :]:
            panel.axis("off")
        for panel, name in zip(panels, names, strict=False):
            points = [(row["update"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
            x, y = zip(*points, strict=True)
            panel.plot(x, y, color=OTHER[0], lw=1.3, marker="o" if len(x) < 3 else None, ms=3)
            panel.set_title(name)
            panel.grid()
        for panel in panels[max(0, len(names) - columns) : len(names)]:
            panel.set_xlabel("student updates")
        _space_panels(figure, lines, columns, left=0.6, bottom=0.35)
    return svg(figure, "curves", crop=False)


def lambda_tables(tables: Mapping[str, Sequence[Sequence[float]]], teachers: Sequence[str]) -> str:
    """The lambda table of every condition class as a heat map: rows are student steps, columns teachers."""
    return svg(_lambda_figure(tables, teachers), "lambda")


def lambda_picture(tables: Mapping[str, Sequence[Sequence[float]]], teachers: Sequence[str]) -> np.ndarray:
    """The same as pixels, (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _lambda_figure(tables, teachers)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _lambda_figure(tables: Mapping[str, Sequence[Sequence[float]]], teachers: Sequence[str]) -> Figure:
    with matplotlib.rc_context(STYLE):
        columns = min(4, len(tables))
        lines = -(-len(tables) // columns)
        figure = Figure(figsize=(2.3 * columns, 2.0 * lines))
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel in panels[len(tables) :]:
            panel.axis("off")
        for panel, (name, table) in zip(panels, tables.items(), strict=False):
            values = np.asarray(table, dtype=float)
            panel.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            for (k, m), value in np.ndenumerate(values):
                # On the map's own blues, not on the page: no theme colour here.
                panel.text(m, k, f"{value:.2g}", ha="center", va="center", color="white" if value > 0.5 else "#111111")
            panel.set_xticks(range(values.shape[1]), [str(name) for name in teachers][: values.shape[1]])
            panel.set_yticks(range(values.shape[0]), [f"step {k}" for k in range(values.shape[0])])
            panel.set_title(name)
        figure.tight_layout()
    return figure


def by_step_maps(rows: Sequence[Mapping[str, Any]]) -> str:
    """Diagnostics by category (down) and student step (across), a map a quantity: means of the later half of `rows`."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows[len(rows) // 2 :]:
        for name, value in row.items():
            match = re.fullmatch(r"per_step/([^/]+)/(.+)/step(\d+)", name)
            if match and isinstance(value, int | float):
                of_category = found.setdefault(match[1], {}).setdefault(match[2], {})
                of_category.setdefault(int(match[3]), []).append(float(value))
    if not found:
        return ""
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(found))
        lines = -(-len(found) // columns)
        most = max(map(len, found.values()))
        figure = Figure(figsize=(3.1 * columns, (0.8 + 0.28 * most) * lines))
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel in panels[len(found) :]:
            panel.axis("off")
        for panel, (quantity, by_category) in zip(panels, sorted(found.items()), strict=False):
            _by_step_panel(panel, by_category)
            panel.set_title(quantity)
        longest = max(len(name) for by_category in found.values() for name in by_category)
        _space_panels(figure, lines, columns, left=0.15 + 0.075 * longest, bottom=0.25)
    return svg(figure, "by-step", crop=False)


def _by_step_panel(panel: Axes, by_category: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    names = sorted(by_category)
    num_steps = 1 + max(step for steps in by_category.values() for step in steps)
    values = np.full((len(names), num_steps), np.nan)
    for i, name in enumerate(names):
        for step, numbers in by_category[name].items():
            values[i, step] = np.mean(numbers)
    low, high = np.nanmin(values), np.nanmax(values)
    panel.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    for (i, step), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = value > (low + high) / 2 and high > low
            panel.text(step, i, f"{value:.2g}", ha="center", va="center", color="white" if dark else "#111111")
    panel.set_xticks(range(num_steps), [f"step {step}" for step in range(num_steps)])
    panel.set_yticks(range(len(names)), names)
