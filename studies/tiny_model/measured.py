"""Every measurement behind the model card of the tiny model, each a function of the shipped folder alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from datamodules.openmoji import HEADS
from studies.tiny_model.figures import Figure, Zoo, interval_figure, mean_figure, nested_figure, wilson
from studies.tiny_model.judge_check import check
from studies.tiny_model.judge_data import render, vocabulary
from studies.tiny_model.reconstruction import psnr
from workbench.common.errors import UserError
from workbench.evaluation.answers import Answers, judge_into
from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.evaluate import frechet_to
from workbench.evaluation.judges.local import LocalJudge, mean_attribute_score
from workbench.evaluation.measures.statistics import bench_intervals, paired_differences

HELD_OUT = 4000
"""Renders on which the judge is checked, at the full size of the benchmarks."""
BATCH = 128
Cells = Mapping[tuple[str, str], np.ndarray]
"""Benchmark and category -> scores (cases, seeds)."""


def autoencoder(zoo: Zoo) -> list[Figure]:
    """Reconstruction of the benchmarks' targets."""
    loaded = zoo.subject.loaded
    decibels: dict[str, list[float]] = {"text": [], "other": []}
    for start in range(0, len(zoo.cases), BATCH):
        part = [case for case in zoo.cases[start : start + BATCH] if case.target is not None]
        images = torch.from_numpy(np.stack([case.target for case in part if case.target is not None]))
        side = images.shape[1] // loaded.pixels_per_token
        decoded = loaded.decode_latents(loaded.encode_images(images, exactly=True), side, side).cpu()
        pair = [x.permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (decoded, images)]
        for case, value in zip(part, psnr(*pair).tolist(), strict=True):
            decibels["text" if case.category == "text" else "other"].append(value)
    every = [*decibels["text"], *decibels["other"]]
    return [
        mean_figure("autoencoder, PSNR over all targets, dB", every, 31),
        mean_figure("autoencoder, PSNR on text, dB", decibels["text"], 29),
    ]


def judge(zoo: Zoo) -> list[Figure]:
    """Attributes and severity on held-out renders; compliance under a wrong caption against what chance gives."""
    return [*_checked(zoo, zoo.judge, "judge"), *_wrong_captions(zoo)]


def second_judge(zoo: Zoo) -> list[Figure]:
    """The same of the second judge."""
    return _checked(zoo, LocalJudge(Path(zoo.options.second_judge)), "second judge")


def _checked(zoo: Zoo, judge: LocalJudge, title: str) -> list[Figure]:
    if judge.network.config.heads != vocabulary(HEADS):
        raise UserError(f"the {title} knows another vocabulary than the world: train it anew")
    count = HELD_OUT if not zoo.options.cases else 8 * zoo.options.cases
    arrays = render("report", 0, count, zoo.recipe.data.resolution, 0)
    images, labels = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]).long()
    found = check(judge.network, images, labels, judge.device)
    rows = [
        Figure(f"{title}, {head}", share, 0.97, *wilson(share, int(found["cases"][head])), form=".1%")
        for head, share in found["accuracy"].items()
        if found["cases"][head]
    ]
    graded = int(found["graded"]["cases"])
    rows += [
        Figure(f"{title}, quality against severity of {name}, Spearman", value, 0.95, n=graded, form=".3f")
        for name, value in found["severity_spearman"].items()
    ]
    return rows


def _wrong_captions(zoo: Zoo) -> list[Figure]:
    """Targets under the captions of other cases. Chance: what a judge that sees every picture rightly would give."""
    of = [case for case in zoo.cases if case.task == "t2i" and case.named]
    order = np.random.default_rng(0).permutation(len(of))
    judged = Answers()
    judge_into(judged, of, [target for at in order if (target := of[at].target) is not None], 0, [zoo.judge])
    shown = [of[at].scene for at in order]
    chance = [
        mean_attribute_score(case.named, scene, case.scene, accepted=case.accepted)[0] or 0.0
        for case, scene in zip(of, shown, strict=True)
    ]
    seen = [row.by_local.compliance or 0.0 for row in judged.rows]
    return [
        mean_figure("judge, compliance under wrong captions", seen, None, ".3f"),
        mean_figure("judge, the same less chance", [a - b for a, b in zip(seen, chance, strict=True)], None, "+.3f"),
    ]


TEACHER_BARS = {"sky": 0.95, "ground": 0.95, "objects": 0.88, "subject": 0.88}
COLOUR_HEADS = ("background", "sign", "ink")


def teacher(zoo: Zoo) -> list[Figure]:
    """What the guided teacher draws: attributes exactly right in T2I, edits followed and kept. Texts are read by
    `hard_text`."""
    how, tried = zoo.full
    found = zoo.answers(how)
    heads: dict[str, dict[str, list[float]]] = {}
    for row in found.rows:
        if row.bench == BENCHES["t2i"]:
            for name, value in row.by_local.attributes.items():
                if name.startswith("named/"):
                    heads.setdefault(name[6:], {}).setdefault(row.case, []).append(float(value == 1))
    rows = []
    for name in sorted(heads.keys() & HEADS.keys() - {"word"}):
        bar = TEACHER_BARS.get(name, 0.95 if name in COLOUR_HEADS else None)
        rows.append(nested_figure(f"teacher, T2I, {name} exactly right", heads[name], bar))
    for axis, bar in (("compliance", 0.88), ("kept", 0.92)):
        values: dict[str, list[float]] = {}
        for row in found.rows:
            value = vars(row.judgement)[axis]
            if row.bench == BENCHES["edit"] and value is not None:
                values.setdefault(row.case, []).append(value)
        rows.append(
            nested_figure(f"teacher, edits, {'followed' if axis == 'compliance' else 'kept'} (mean axis)", values, bar)
        )
    scales = ", ".join(f"{row['cfg_scale']:g}: {row['score']:.2f}" for row in sorted(tried, key=_scale))
    note = f"chosen on {len(zoo.choosing)} cases of the search split; mean score by CFG {scales}"
    return [Figure("teacher, best CFG", how.cfg_scale, None, form="g", note=note), *rows]


def _scale(row: dict[str, object]) -> float:
    return float(str(row["cfg_scale"]))


def headroom(zoo: Zoo) -> list[Figure]:
    """How much worse the best 4 evaluations are than the full teacher, in score and in distribution."""
    full, few = zoo.answers(zoo.full[0]), zoo.answers(zoo.few[0])
    rows = []
    for bench in BENCHES.values():
        a, b = full.by_category(bench), few.by_category(bench)
        for name, table in (("full teacher", a), (f"best at {zoo.few[0].nfe} NFE", b)):
            rows.append(interval_figure(f"{bench}, {name}, 1 to 5", bench_intervals(table)["mean"], None))
        rows.append(interval_figure(f"{bench}, headroom", paired_differences(a, b)["mean"], 0.5))
    distances = [frechet_to(answers, zoo.targets) for answers in (full, few)]
    if distances[0] and distances[1]:
        far, near, n = distances[1].value, distances[0].value, distances[0].n
        note = f"{far:.1f} against {near:.1f}, n = {n} both, mean over seeds"
        rows.append(Figure("Frechet distance, ratio at equal n", far / near, 2.5, n=n, note=note))
    ways = ", ".join(
        f"{row['steps']} steps, shift {row['shift']:g}, CFG {row['cfg_scale']:g}: {row['score']:.2f}"
        for row in zoo.few[1]
    )
    return [Figure("best few-step teacher, NFE", zoo.few[0].nfe, None, form="d", note=ways), *rows]


def specialists(zoo: Zoo) -> list[Figure]:
    """Each adapter against the base, same cases and noise: on its own categories, where one worth the name is better
    by .3 and surely by .2, and on all others."""
    rows: list[Figure] = []
    of_base = _cells(zoo.answers(zoo.full[0])) if zoo.specialists else {}
    for name in zoo.specialists:
        cells = _cells(zoo.answers(zoo.full[0], name))
        own = {cell for cell in cells if is_own(name, *cell)}
        rows += _less_base(f"specialist {name}", {cell: cells[cell] for cell in own}, of_base, own=True)
        rows += _less_base(f"specialist {name}", {cell: cells[cell] for cell in cells.keys() - own}, of_base, own=False)
    return rows


def is_own(specialist: str, bench: str, category: str) -> bool:
    """Whether a specialist was trained on that category: one of edits on all edits, any other on pictures of its name
    alone, so that editing a text is no part of what one that writes has learnt."""
    if specialist.startswith("edit"):
        return bench == BENCHES["edit"]
    return bench == BENCHES["t2i"] and category == specialist


def _less_base(title: str, found: Cells, base: Cells, *, own: bool) -> list[Figure]:
    """Over the cells of `found`."""
    if not found:
        return []
    a, b = ({f"{cell[0]}/{cell[1]}": of[cell] for cell in sorted(found)} for of in (found, base))
    difference = paired_differences(a, b)["mean"]
    if not own:
        return [interval_figure(f"{title} less base, elsewhere", difference, None, "+.3f")]
    low = math.nan if difference.low is None else difference.low
    return [
        interval_figure(f"{title} less base, its own", difference, 0.3, "+.3f"),
        Figure(f"{title}, lower end of that interval", low, 0.2, form="+.3f"),
    ]


def _cells(answers: Answers) -> dict[tuple[str, str], np.ndarray]:
    return {(bench, name): of for bench in BENCHES.values() for name, of in answers.by_category(bench).items()}


def sizes(zoo: Zoo) -> list[Figure]:
    """Megabytes of folder and judges and of the largest file."""
    places = (zoo.path, Path(zoo.options.judge), Path(zoo.options.second_judge))
    files = [path.stat().st_size / 1e6 for place in places for path in place.rglob("*") if path.is_file()]
    return [
        Figure("size of folder and judges, MB", sum(files), most=42, n=len(files), form=".1f"),
        Figure("size of the largest file, MB", max(files), most=16, form=".1f"),
    ]
