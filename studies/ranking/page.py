"""The page of a ranking: its first screen says which student is best, by how much, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from studies.analysis.plots import colour
from studies.ranking.compare import Difference, Judgement, judgements
from studies.ranking.pictures import Cost
from studies.ranking.students import Ranking
from workbench.common.errors import UserError
from workbench.evaluation.judges.judge import LOCAL
from workbench.evaluation.measures.catalogue import rows_of
from workbench.evaluation.metrics_file import Benches, JudgeScores, Metrics, ModelMetrics
from workbench.evaluation.places import first_files
from workbench.evaluation.sheet_index import read_sheets
from workbench.recipe.config import Recipe
from workbench.reporting.page import write_page
from workbench.reporting.plots import STYLE, inline_images, score_chart, svg
from workbench.reporting.scores import part_names

SHEET_WIDTH = 1400


def write(ranking: Ranking, recipe: Recipe, costs: Mapping[str, Cost], command: str) -> Path:
    """Write `report.html` into the ranking's folder, from its metrics and the scores of its cases."""
    folder = Path(ranking.folder)
    metrics = _metrics(folder)
    found = judgements(folder, list(ranking.students), ranking.compared_with, ranking.margin)
    scores = {
        judged.judge: {name: _scores(metrics.models[name], judged.judge).benches for name in ranking.students}
        for judged in found
    }
    front = pareto(found[0].scores, {name: cost.seconds for name, cost in costs.items()}) if found else []
    sheets = read_sheets(folder / "samples" / "evaluation")
    images = inline_images([folder / "samples" / "evaluation" / sheet.file for sheet in sheets], SHEET_WIDTH)
    values = {
        "title": f"{len(ranking.students)} students, {folder.resolve().name}",
        "metrics": metrics,
        "reference": ranking.compared_with,
        "margin": ranking.margin,
        "answer": answer(ranking, folder),
        "judgements": [{"of": of, "name": _judge_name(of.judge, metrics), "rows": _rows(of, ranking)} for of in found],
        "rows": [_row(name, ranking, metrics, costs[name], found, front) for name in _order(ranking, found)],
        "categories": [_categories(of, scores[of.judge], metrics) for of in found],
        "measured": [name for name in _order(ranking, found) if metrics.models[name].secondary],
        "measures": rows_of([of for name in _order(ranking, found) if (of := metrics.models[name].secondary)]),
        "agreements": {name: record for name, record in metrics.vlm.items() if record.agreement},
        "front_chart": _front_chart(found[0], costs, front) if found else "",
        "score_chart": _chart(scores[found[0].judge]) if found else "",
        "sheets": [{**sheet.model_dump(), "image": image} for sheet, image in zip(sheets, images, strict=True)],
        "group": recipe.evaluation.batch_size,
        "resolution": recipe.data.resolution,
        "command": command,
    }
    return write_page(folder, "ranking.html.j2", values, "studies.ranking")


def answer(ranking: Ranking, folder: Path) -> str:
    """Which student is best, and whether it is better than the reference, in a sentence a judge."""
    found = judgements(folder, list(ranking.students), ranking.compared_with, ranking.margin)
    if not found:
        return "No judge scored every student on one case: see which measures there are, and ask a judge."
    metrics = _metrics(folder)
    sentences = [_sentence(judged, ranking.compared_with, metrics) for judged in found]
    return " ".join(sentences)


def _sentence(judged: Judgement, reference: str, metrics: Metrics) -> str:
    first, *_ = judged.order
    where = f"By the {_judge_name(judged.judge, metrics)}"
    differences = {of.name: of for of in judged.differences}
    if first == reference:
        next_best = differences[judged.order[1]]
        return (
            f"{where} no student scores above {reference} ({judged.scores[first]:.2f} of 5); {next_best.name} comes "
            f"next: {_difference(next_best)}, {next_best.verdict}."
        )
    of = differences[first]
    return (
        f"{where} {first} scores highest, {judged.scores[first]:.2f} of 5: {_difference(of)} against "
        f"{reference}, {of.verdict}."
    )


def _difference(of: Difference) -> str:
    interval = "no interval" if of.low is None or of.high is None else f"{of.low:+.2f} to {of.high:+.2f}"
    return f"{of.value:+.2f} ({interval})"


def _metrics(folder: Path) -> Metrics:
    found = first_files(folder).read()
    if found is None:
        raise UserError(f"{folder} holds no metrics.json that can be read: run the same command again")
    return found


def _judge_name(judge: str, metrics: Metrics) -> str:
    if judge == LOCAL:
        return metrics.judge
    record = metrics.vlm.get(judge)
    return f"judge {judge}" + (f" ({record.model})" if record and record.model else "")


def _order(ranking: Ranking, found: Sequence[Judgement]) -> Sequence[str]:
    return found[0].order if found else list(ranking.students)


def _scores(model: ModelMetrics, judge: str) -> ModelMetrics | JudgeScores:
    """What holds the benchmarks by one judge."""
    return model if judge == LOCAL else model.vlm[judge]


def pareto(scores: Mapping[str, float], seconds: Mapping[str, float]) -> list[str]:
    """Those that no other one beats in score without taking longer, the fastest first."""
    found: list[str] = []
    for name in sorted(scores, key=lambda name: (seconds[name], -scores[name])):
        if not found or scores[name] > scores[found[-1]]:
            found.append(name)
    return found


def _row(
    name: str, ranking: Ranking, metrics: Metrics, cost: Cost, found: Sequence[Judgement], front: Sequence[str]
) -> dict[str, Any]:
    student, model = ranking.students[name], metrics.models[name]
    first = found[0] if found else None
    benches = _scores(model, first.judge).benches if first else {}
    how = student.sampling()
    times = "by picture size" if how.sized_times else ", ".join(f"{time:.3g}" for time in how.grid()[:-1].tolist()[:12])
    return {
        "name": name,
        "made_of": " + ".join([student.folder, *student.lora]),
        "nfe": model.nfe,
        "steps": how.steps,
        "guidance": how.cfg_scale,
        "times": times + (", ..." if how.steps > 12 and not how.sized_times else ""),
        "seconds": cost.seconds,
        "memory": f"{cost.memory / 1e9:.2f} GB" if cost.memory else "-",
        "score": first.scores[name] if first else None,
        "benches": benches,
        "difference": next((of for of in first.differences if of.name == name), None) if first else None,
        "front": name in front,
        "licence": student.stated_licence(),
    }


def _rows(judged: Judgement, ranking: Ranking) -> list[dict[str, Any]]:
    differences = {of.name: of for of in judged.differences}
    return [{"name": name, "score": judged.scores[name], "difference": differences.get(name)} for name in judged.order]


def _categories(judged: Judgement, benches: Mapping[str, Benches], metrics: Metrics) -> dict[str, Any]:
    """A table a bench: every student's interval in every category and in the parts of categories, and where it is
    shown to differ in a category."""
    shown = {of.name: of.categories for of in judged.differences}
    tables = []
    for bench in dict.fromkeys(bench for of in benches.values() for bench in of):
        named = {name: benches[name][bench] for name in judged.order if bench in benches[name]}
        columns = list(dict.fromkeys(column for of in named.values() for column in of))
        in_parts = {name: _scores(metrics.models[name], judged.judge).parts.get(bench, {}) for name in named}
        parts = part_names(in_parts.values())
        tables.append({"bench": bench, "columns": columns, "students": named, "parts": parts, "in_parts": in_parts})
    return {
        "judge": _judge_name(judged.judge, metrics),
        "tables": tables,
        "shown": shown,
        "differences": {of.name: of.parts for of in judged.differences},
    }


def _chart(benches: Mapping[str, Benches]) -> str:
    models = {name: ModelMetrics(benches=of) for name, of in benches.items()}
    return score_chart(models, {}, {"t2i_bench": "T2I-Bench", "editing_bench": "Editing-Bench"})


def _front_chart(judged: Judgement, costs: Mapping[str, Cost], front: Sequence[str]) -> str:
    """Score against seconds an image; a line joins those that no other one beats in both."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 3.6))
        panel = figure.subplots()
        panel.plot(
            [costs[name].seconds for name in front], [judged.scores[name] for name in front], color="#7c8aa5", lw=1
        )
        for place, name in enumerate(judged.scores):
            x, y = costs[name].seconds, judged.scores[name]
            panel.plot([x], [y], "o", ms=7, color=colour(place))
            panel.annotate(name, (x, y), xytext=(6, 6), textcoords="offset points")
        panel.set_xscale("log")
        panel.margins(x=0.2, y=0.2)
        panel.set_xlabel("seconds an image")
        panel.set_ylabel("score, 1 to 5")
        panel.grid()
        figure.tight_layout()
    return svg(figure, "front")
