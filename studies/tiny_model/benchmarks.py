"""The table of the docs: real renders, teacher, specialists, few-step teacher and student on every measure.

    python -m studies.tiny_model.benchmarks [student=FOLDER_OR_RUN] [page=FILE] [options of studies.tiny_model.report]

Answers are shared with `studies.tiny_model.report`: what one has drawn, the other
takes up, and the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.tiny_model.figures import Options, Zoo
from workbench.common.arguments import read_options
from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.common.progress import job
from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.models import ModelUnderTest
from workbench.evaluation.panel_cost import work

PAGE = "docs/benchmarks.md"
SECONDARY = ("KID", "precision", "recall", "spread / teacher", "words right, T2I",
             "words right, edits", "flat noise", "target distance")  # fmt: skip


def models_of(zoo: Zoo) -> dict[str, ModelUnderTest]:
    """All that stand in the table, by the names of its rows."""
    full, few = zoo.full[0], zoo.few[0]
    models = {"teacher": zoo.subject.model(full)}
    models |= {f"specialist_{name}": zoo.subject.model(full, name) for name in zoo.specialists}
    models["teacher_few_step"] = zoo.subject.model(few)
    if zoo.student:
        models["student"] = zoo.student
    return models


def benchmarks(options: Options, page: Path) -> dict[str, Any]:
    """Evaluate all and write the page; the metrics as `metrics.json` has them."""
    zoo = Zoo(options)
    models = models_of(zoo)
    against = [(name, "teacher") for name in models if name != "teacher"]
    if "student" in models:
        against.insert(0, ("student", "teacher_few_step"))
    nfes = [model.nfe for model in models.values()]
    with job("evaluating", work(nfes, zoo.cases, zoo.recipe.data, zoo.recipe.evaluation)):
        metrics = evaluate(
            models,
            zoo.recipe,
            Path(options.out) / "benchmarks",
            cases=zoo.cases,
            judges=[zoo.judge],
            selection=zoo.few[1],
            store=zoo.store,
            compared=against,
        ).as_dict()
    write_bytes(page, markdown(metrics).encode())
    return metrics


def markdown(metrics: Mapping[str, Any]) -> str:
    """The page: scores, scores by category, secondary metrics, paired differences."""
    models: dict[str, Mapping[str, Any]] = metrics["models"]
    real = metrics["ceiling"]
    some = next(iter(models.values()))
    counts = " and ".join(f"{some[bench]['mean']['n']} of {bench}" for bench in BENCHES.values() if bench in some)
    lines = [
        "# Benchmarks of the model that ships",
        "",
        f"Cases {counts}, split {metrics['split']}, sampling seeds {metrics['seeds']}, judge: {metrics['judge']}. In "
        f"brackets: {metrics['interval']}. `real` is the held-out renders themselves, `source unchanged` edits that "
        "return their source. NFE counts network evaluations of one image, guidance twice. Made by "
        "`python -m studies.tiny_model.benchmarks`.",
        "",
        *_rows("model", "NFE", "T2I, 1 to 5", "Editing, 1 to 5", "Frechet", "s / image"),
        _row("real", "", *_means(real), "0", ""),
    ]
    for name, model in models.items():
        frechet = f"{model['frechet']['value']:.0f} (n = {model['frechet']['n']})" if model["frechet"] else ""
        lines.append(_row(name, model["nfe"], *_means(model), frechet, f"{model['seconds_per_image']:.4f}"))
    lines += [_row("source unchanged", "", *_means(metrics["floor"]), "", ""), ""]
    categories = [(bench, name) for bench in BENCHES.values() for name in some.get(bench, {}) if name != "mean"]
    lines += ["## By category", "", *_rows("model", *(f"{bench.split('_')[0]}: {name}" for bench, name in categories))]
    for name, model in {"real": real, **models}.items():
        lines.append(_row(name, *(_interval(model.get(bench, {}).get(of)) for bench, of in categories)))
    secondary = {
        name: dict(zip(SECONDARY, _secondary(model), strict=True)) for name, model in {"real": real, **models}.items()
    }
    shown = [metric for metric in SECONDARY if any(of[metric] for of in secondary.values())]
    lines += ["", "## Secondary metrics", "", *_rows("model", *shown)]
    lines += [_row(name, *(of[metric] for metric in shown)) for name, of in secondary.items()]
    repaired = sorted({name for model in models.values() for name in model["secondary"]["enhance_by_defect"]})
    lines += ["", "## Edits that repair, by defect", "", *_rows("model", *repaired)]
    for name, model in {"real": real, **models}.items():
        lines.append(_row(name, *(_interval(model["secondary"]["enhance_by_defect"].get(of)) for of in repaired)))
    lines += ["", "## Paired differences", "", *_rows("of", "against", "benchmark", "difference", "n", "verdict")]
    for row in metrics["comparisons"]:
        difference = _interval({"mean": row["difference"], "low": row["low"], "high": row["high"]}, "+.3f")
        lines.append(_row(row["a"], row["b"], row["bench"], difference, row["n"], row["verdict"]))
    return "\n".join(lines) + "\n"


def _secondary(model: Mapping[str, Any]) -> list[str]:
    secondary, diversity = model["secondary"], model.get("diversity") or {}
    return [
        _value(secondary["kid"], ".3f") if secondary["kid"] else "",
        _value(secondary["precision"]),
        _value(secondary["recall"]),
        _value(diversity.get("to_teacher")),
        *(_interval(secondary["word_accuracy"].get(bench)) for bench in BENCHES.values()),
        _interval(secondary["residual_noise"]),
        _interval((secondary["target_distance"] or {}).get("mean"), ".3f"),
    ]


def _means(benches: Mapping[str, Any]) -> list[str]:
    return [_interval(benches.get(bench, {}).get("mean")) for bench in BENCHES.values()]


def _interval(found: Mapping[str, Any] | None, form: str = ".2f") -> str:
    if found is None or found["mean"] is None:
        return ""
    span = f" [{found['low']:{form}}, {found['high']:{form}}]" if found["low"] is not None else ""
    return f"{found['mean']:{form}}{span}"


def _value(found: Mapping[str, Any] | None, form: str = ".2f") -> str:
    return "" if found is None else f"{found['value']:{form}}"


def _rows(*columns: str) -> list[str]:
    return [_row(*columns), "|---" * len(columns) + "|"]


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('_', ' ') for cell in cells)} |"


def main(words: list[str]) -> None:
    """Command line."""
    pages = [word.removeprefix("page=") for word in words if word.startswith("page=")]
    page = Path(pages[-1] if pages else PAGE)
    benchmarks(read_options(Options, [word for word in words if not word.startswith("page=")]), page)
    print(f"wrote {page}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
