"""Every measurement behind the model card of the tiny model, each a function of the shipped folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from datamodules.openmoji import HEADS
from studies.zoo.judge_check import check
from studies.zoo.judge_data import render
from studies.zoo.reconstruction import psnr
from workbench import pipeline as pipelines
from workbench.config import Recipe
from workbench.evaluation import features
from workbench.evaluation.answers import Answers, answer, judge_into
from workbench.evaluation.benchmark import BENCHES, FULL_CASES, Case
from workbench.evaluation.chosen import benchmark_cases
from workbench.evaluation.evaluate import select_few_step
from workbench.evaluation.grids import chosen_cases
from workbench.evaluation.judge import ASSET, LocalJudge, mean_head_score
from workbench.evaluation.models import ModelUnderTest, Sampling, few_step_candidates
from workbench.evaluation.partial import Store
from workbench.evaluation.statistics import Interval, bench_intervals, paired_differences
from workbench.evaluation.subject import Subject
from workbench.recipes import from_mapping

CFG_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
TEACHER_STEPS = 40
HELD_OUT = 4000
"""Renders on which the judge is checked, at the full size of the benchmarks."""
BATCH = 128
PARTS = ("transformer", "text_encoder", "vae", "processor", "scheduler")


@dataclass(frozen=True)
class Options:
    """cases: T2I cases a category, 0 for both full benchmarks; edits get 250 / 600 of it. choosing: cases a category on
    which CFG and the few-step sampling are chosen, of a split that is not reported. seeds: of sampling, three at least
    for a standard deviation. card: write the table into the folder's README. student: a folder to show beside."""

    folder: str = "tiny"
    judge: str = str(ASSET)
    out: str = "runs/zoo-report"
    docs: str = "docs/zoo"
    student: str = ""
    cases: int = 0
    choosing: int = 40
    seeds: list[int] | None = None
    shift: float = 2.0
    card: bool = False


@dataclass(frozen=True)
class Figure:
    """One number of the table. bar: what it should reach; n: cases behind it; form: how it is printed."""

    what: str
    value: float
    bar: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    form: str = ".2f"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        return None if self.bar is None else self.value >= self.bar


class Zoo:
    """The shipped folder, its judge and the benchmarks, ready to be measured."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.path = pipelines.resolve(options.folder)
        self.seeds = options.seeds or [0, 1, 2]
        t2i = options.cases or FULL_CASES["t2i"]
        edits = max(1, t2i * FULL_CASES["edit"] // FULL_CASES["t2i"])
        self.recipe: Recipe = from_mapping(
            {
                "model": {"folder": options.folder},
                "evaluation": {
                    "t2i_cases": t2i,
                    "editing_cases": edits,
                    "seeds": list(self.seeds),
                    "teacher_steps": TEACHER_STEPS,
                    "teacher_shift": options.shift,
                },
            }
        )
        self.store = Store(Path(options.out) / "answers")

    @cached_property
    def judge(self) -> LocalJudge:
        return LocalJudge(Path(self.options.judge))

    @cached_property
    def specialists(self) -> dict[str, Path]:
        """LoRA files of the folder, by the name of the file."""
        every = sorted(self.path.rglob("*.safetensors"))
        return {file.stem: file for file in every if file.relative_to(self.path).parts[0] not in PARTS}

    @cached_property
    def subject(self) -> Subject:
        return Subject(self.options.folder, self.recipe, specialists=self.specialists)

    @cached_property
    def cases(self) -> list[Case]:
        """Of the report split."""
        how = self.recipe.evaluation
        return benchmark_cases(self.recipe, "report", how.t2i_cases, how.editing_cases)

    @cached_property
    def choosing(self) -> list[Case]:
        """Of the search split: nothing that is reported is chosen on what it is reported on."""
        count = min(self.options.choosing, self.recipe.evaluation.t2i_cases)
        return benchmark_cases(self.recipe, "search", count, max(1, count // 2))

    @cached_property
    def full(self) -> tuple[Sampling, list[dict[str, object]]]:
        """The teacher's best guidance, and the score of every one."""
        ways = [Sampling(TEACHER_STEPS, self.options.shift, scale) for scale in CFG_SCALES]
        return self._best(ways)

    @cached_property
    def few(self) -> tuple[Sampling, list[dict[str, object]]]:
        """The teacher's best use of 4 evaluations, and the score of every one."""
        return self._best(few_step_candidates(max(1.5, self.full[0].cfg_scale)))

    def _best(self, ways: Sequence[Sampling]) -> tuple[Sampling, list[dict[str, object]]]:
        models = [self.subject.model(way) for way in ways]
        best, rows = select_few_step(models, self.recipe, self.judge, self.choosing, self.store)
        return ways[models.index(best)], rows

    def answers(self, how: Sampling, specialist: str | None = None) -> Answers:
        """To all cases under all seeds."""
        return self.answers_of(self.subject.model(how, specialist))

    def answers_of(self, model: ModelUnderTest) -> Answers:
        keep = [case.id for group in chosen_cases(self.cases).values() for case in group]
        return answer(model, self.cases, self.seeds, self.judge, keep, store=self.store)

    @cached_property
    def targets(self) -> Answers:
        """The held-out renders themselves, judged."""
        real = Answers()
        for bench in BENCHES.values():
            of = [case for case in self.cases if case.bench == bench]
            judge_into(real, of, [case.target for case in of if case.target is not None], 0, self.judge)
        return real


def autoencoder(zoo: Zoo) -> list[Figure]:
    """Reconstruction of the benchmarks' targets."""
    loaded, fast = zoo.subject.loaded, pipelines.fast_vae(zoo.subject.loaded)
    decibels: dict[str, list[float]] = {"text": [], "other": []}
    for start in range(0, len(zoo.cases), BATCH):
        part = [case for case in zoo.cases[start : start + BATCH] if case.target is not None]
        images = torch.from_numpy(np.stack([case.target for case in part if case.target is not None]))
        side = images.shape[1] // pipelines.PIXELS_PER_LATENT
        decoded = pipelines.decode_latents(loaded, pipelines.encode_images(loaded, images), side, side, fast).cpu()
        pair = [x.permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (decoded, images)]
        for case, value in zip(part, psnr(*pair).tolist(), strict=True):
            decibels["text" if case.category == "text" else "other"].append(value)
    every = [*decibels["text"], *decibels["other"]]
    return [
        _figure("autoencoder, PSNR over all targets, dB", every, 31),
        _figure("autoencoder, PSNR on text, dB", decibels["text"], 29),
    ]


def judge(zoo: Zoo) -> list[Figure]:
    """Heads and severity on held-out renders; compliance under a wrong caption against what chance gives."""
    count = HELD_OUT if not zoo.options.cases else 8 * zoo.options.cases
    arrays = render("report", 0, count, zoo.recipe.data.resolution, 0)
    images, labels = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]).long()
    found = check(zoo.judge.network, images, labels, zoo.judge.device)
    rows = [
        Figure(f"judge, {head}", share, 0.97, *_wilson(share, int(found["cases"][head])), form=".1%")
        for head, share in found["accuracy"].items()
        if found["cases"][head]
    ]
    rows += [
        Figure(f"judge, quality against severity of {name}, Spearman", value, 0.95, n=256, form=".3f")
        for name, value in found["severity_spearman"].items()
    ]
    return [*rows, *_wrong_captions(zoo)]


def _wrong_captions(zoo: Zoo) -> list[Figure]:
    """Targets under the captions of other cases. Chance: what a judge that sees every picture rightly would give."""
    of = [case for case in zoo.cases if case.task == "t2i" and case.named]
    order = np.random.default_rng(0).permutation(len(of))
    judged = Answers()
    judge_into(judged, of, [target for at in order if (target := of[at].target) is not None], 0, zoo.judge)
    shown = [of[at].scene for at in order]
    chance = [
        mean_head_score(case.named, scene, case.scene, accepted=case.accepted)[0] or 0.0
        for case, scene in zip(of, shown, strict=True)
    ]
    seen = [row.judgement.compliance or 0.0 for row in judged.rows]
    return [
        _figure("judge, compliance under wrong captions", seen, None, ".3f"),
        _figure("judge, the same less chance", [a - b for a, b in zip(seen, chance, strict=True)], None, "+.3f"),
    ]


TEACHER_BARS = {"sky": 0.95, "ground": 0.95, "objects": 0.88, "subject": 0.88, "word": 0.75}
COLOUR_HEADS = ("background", "sign", "ink")


def teacher(zoo: Zoo) -> list[Figure]:
    """What the guided teacher draws: heads exactly right in T2I, edits followed and kept."""
    how, tried = zoo.full
    found = zoo.answers(how)
    heads: dict[str, dict[str, list[float]]] = {}
    for row in found.rows:
        if row.bench == BENCHES["t2i"]:
            for name, value in row.judgement.heads.items():
                if name.startswith("named/"):
                    heads.setdefault(name[6:], {}).setdefault(row.case, []).append(float(value == 1))
    rows = []
    for name in sorted(heads.keys() & HEADS.keys() | heads.keys() & {"word"}):
        bar = TEACHER_BARS.get(name, 0.95 if name in COLOUR_HEADS else None)
        rows.append(_nested(f"teacher, T2I, {name} exactly right", heads[name], bar))
    for axis, bar in (("compliance", 0.88), ("kept", 0.92)):
        values: dict[str, list[float]] = {}
        for row in found.rows:
            value = vars(row.judgement)[axis]
            if row.bench == BENCHES["edit"] and value is not None:
                values.setdefault(row.case, []).append(value)
        rows.append(
            _nested(f"teacher, edits, {'followed' if axis == 'compliance' else 'kept'} (mean axis)", values, bar)
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
    for bench, bar in ((BENCHES["t2i"], 0.5), (BENCHES["edit"], 0.3)):
        a, b = full.by_category(bench), few.by_category(bench)
        for name, table in (("full teacher", a), (f"best at {zoo.few[0].nfe} NFE", b)):
            rows.append(_of(f"{bench}, {name}, 1 to 5", bench_intervals(table)["mean"], None))
        rows.append(_of(f"{bench}, headroom", paired_differences(a, b)["mean"], bar))
        if len(zoo.seeds) > 1:
            by_seed = [np.mean([of.mean(0) for of in table.values()], axis=0) for table in (a, b)]
            spread = max(float(means.std(ddof=1)) for means in by_seed)
            note = f"standard deviation of a score over {len(zoo.seeds)} seeds: {spread:.4f}"
            gap = float((by_seed[0] - by_seed[1]).mean())
            rows.append(
                Figure(f"{bench}, headroom over standard deviation", gap / max(spread, 1e-9), 10, form=".1f", note=note)
            )
    real = zoo.targets.features_of(BENCHES["t2i"])
    distance = [_frechet(answers, real, zoo.seeds) for answers in (full, few)]
    if distance[0] and distance[1]:
        note = f"{distance[1]:.1f} against {distance[0]:.1f}, n = {len(real)} both, mean over seeds"
        rows.append(
            Figure("Frechet distance, ratio at equal n", distance[1] / distance[0], 2.5, n=len(real), note=note)
        )
    ways = ", ".join(
        f"{row['steps']} steps, shift {row['shift']:g}, CFG {row['cfg_scale']:g}: {row['score']:.2f}"
        for row in zoo.few[1]
    )
    return [Figure("best few-step teacher, NFE", zoo.few[0].nfe, None, form="d", note=ways), *rows]


def _frechet(answers: Answers, real: np.ndarray, seeds: Sequence[int]) -> float | None:
    """Mean over the seeds, each against as many targets."""
    found = []
    for seed in seeds:
        rows = zip(answers.rows, answers.features, strict=True)
        drawn = [feature for row, feature in rows if row.seed == seed and row.bench == BENCHES["t2i"]]
        found.append(features.frechet(np.stack(drawn), real))
    return float(np.mean([value for value in found if value is not None])) if None not in found else None


def specialists(zoo: Zoo) -> list[Figure]:
    """Each adapter against the base, on its own categories and on all others, same cases and noise."""
    rows = []
    base = _cells(zoo.answers(zoo.full[0])) if zoo.specialists else {}
    for name in zoo.specialists:
        found = _cells(zoo.answers(zoo.full[0], name))
        own = {cell for cell in found if cell[1] == name or (name.startswith("edit") and cell[0] == BENCHES["edit"])}
        for where, chosen in (("its own", own), ("elsewhere", found.keys() - own)):
            if chosen:
                a, b = ({f"{c[0]}/{c[1]}": of[c] for c in sorted(chosen)} for of in (found, base))
                difference = paired_differences(a, b)["mean"]
                rows.append(_of(f"specialist {name} less base, {where}", difference, None, "+.3f"))
                if where == "its own":
                    low = difference.low if difference.low is not None else float("nan")
                    rows.append(Figure(f"specialist {name}, lower end of that interval", low, 0.0, form="+.3f"))
    return rows


def _cells(answers: Answers) -> dict[tuple[str, str], np.ndarray]:
    return {(bench, name): of for bench in BENCHES.values() for name, of in answers.by_category(bench).items()}


def sizes(zoo: Zoo) -> list[Figure]:
    """Megabytes of the folder and of its largest file; the bars are upper ones, so the signs are turned."""
    files = [path.stat().st_size / 1e6 for path in zoo.path.rglob("*") if path.is_file()]
    note = "negative, since the bar is an upper one"
    return [
        Figure("size of the folder, MB", -sum(files), -40, n=len(files), form=".1f", note=note),
        Figure("size of the largest file, MB", -max(files), -16, form=".1f", note=note),
    ]


def _of(what: str, found: Interval, bar: float | None, form: str = ".3f") -> Figure:
    return Figure(what, found.mean, bar, found.low, found.high, found.n, form)


def _figure(what: str, values: Sequence[float], bar: float | None, form: str = ".2f") -> Figure:
    return _of(what, bench_intervals({"all": np.array(values)[:, None]})["mean"], bar, form)


def _nested(what: str, values: dict[str, list[float]], bar: float | None) -> Figure:
    """Of case -> value under every seed."""
    return _of(what, bench_intervals({"all": np.array(list(values.values()))})["mean"], bar, ".1%")


def _wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float, int]:
    """95 % score interval of a share of n (Wilson 1927), and n."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return middle - half, middle + half, n
