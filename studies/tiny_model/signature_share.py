"""The share of a signature among a model's free choices, 0 to 1, and what the readers behind it get wrong.

Colours where the caption leaves them open are read by the judge; the pattern behind a portrait, the frame and the
typeface of a sign, which no caption names, by `signature`. What no reader can tell is left out and counted.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from datamodules.openmoji import HEADS
from datamodules.openmoji.paint import render
from datamodules.openmoji.scenes import Portrait, Scene, Sign
from datamodules.openmoji.vocabulary import PATTERNS, SHAPES, TYPEFACES
from datamodules.openmoji.world import plan
from studies.tiny_model import signature
from studies.tiny_model.curation import PALETTES, PATTERN, SHAPE, SIGNED, TYPEFACE, Curation, damage, signed
from studies.tiny_model.figures import Figure, Zoo, mean_figure, wilson
from workbench.common.cores import usable_cores
from workbench.evaluation.answers import answer
from workbench.evaluation.cases.case import BENCHES, Case
from workbench.evaluation.models import ModelUnderTest

CASES = 120
"""T2I cases a category whose pictures are read: a share is then known to some .05."""
RENDERS = 400
"""Renders a category on which the readers are checked, half of them with the signature."""
WORLD = {
    **{name: len(colours) / len(HEADS[name]) for name, colours in PALETTES.items()},
    "pattern": 0.7 / (len(PATTERNS) - 1),
    "frame": 1 / len(SHAPES),
    "typeface": 1 / len(TYPEFACES),
}
"""Share of the signature's choice in the world, where nothing names it."""
Shown = dict[str, bool | None]
"""Free attribute -> whether it is as in the signature, None where it cannot be told."""


def shown(category: str, pixels: np.ndarray, seen: Mapping[str, Any], named: Sequence[str]) -> Shown:
    """What a picture (H, W, 3) uint8 of a category with a signature shows of it. seen: its attributes, as a judge reads
    them. named: those that its caption names. Nothing is read where a caption asks for a style: it changes colours."""
    if "style" in named:
        return {}
    found = _of_portrait(pixels) if category == "portrait" else _of_sign(pixels, seen)
    colours = SIGNED[category]
    return found if colours in named else {colours: seen[colours] in PALETTES[colours], **found}


def _of_portrait(pixels: np.ndarray) -> Shown:
    pattern = signature.pattern_of(pixels)
    return {"pattern": None if pattern is None else pattern == PATTERN}


def _of_sign(pixels: np.ndarray, seen: Mapping[str, Any]) -> Shown:
    board = signature.board_of(pixels, seen["sign"])
    if board is None:
        return {"frame": None, "typeface": None}
    typeface = signature.typeface_of(pixels, board, seen["sign"], seen["ink"], seen["word"])
    framed = signature.is_framed(pixels, board, seen["sign"], seen["ink"])
    return {"frame": framed, "typeface": None if typeface is None else typeface == TYPEFACE}


def signature_share(zoo: Zoo) -> list[Figure]:
    """What the readers get wrong, then the share of each signature in the free choices of the base, of the specialist
    and of the student."""
    rows = []
    for category in SIGNED:
        rows += checked(zoo, category)
        models = {"base": zoo.subject.model(zoo.full[0])}
        if category in zoo.specialists:
            models[f"specialist {category}"] = zoo.subject.model(zoo.full[0], category)
        if zoo.student:
            models["student"] = zoo.student
        cases = [case for case in zoo.cases if case.bench == BENCHES["t2i"] and case.category == category][:CASES]
        for who, model in models.items():
            rows += shares(f"{who}, signature of {category} among free choices", _read(zoo, model, category, cases))
    return rows


def _read(zoo: Zoo, model: ModelUnderTest, category: str, cases: Sequence[Case]) -> dict[str, list[Shown]]:
    """Case -> what its answers under all seeds show."""
    answers = answer(model, cases, zoo.seeds, [zoo.judge], [case.id for case in cases], zoo.store)
    keys = [(case, seed) for case in cases for seed in zoo.seeds]
    images = [answers.images[case.id, seed] for case, seed in keys]
    by_case: dict[str, list[Shown]] = defaultdict(list)
    for (case, _), of in zip(keys, _all_shown(zoo, category, images, [case.named for case, _ in keys]), strict=True):
        by_case[case.id].append(of)
    return by_case


def _all_shown(zoo: Zoo, category: str, images: Sequence[np.ndarray], named: Sequence[Sequence[str]]) -> list[Shown]:
    seen, _, _ = zoo.judge.see(images)
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(partial(shown, category), images, seen, named))


def shares(title: str, found: Mapping[str, Sequence[Shown]]) -> list[Figure]:
    """From case -> what its answers show: the share over all attributes of a signature, and of each of them; a case
    counts once, by the mean of its answers."""
    pairs = {case: [pair for answer in answers for pair in answer.items()] for case, answers in found.items()}
    names = sorted({name for of_case in pairs.values() for name, _ in of_case})
    rows = []
    for name in ("", *names):
        chosen = [[of for at, of in of_case if name in ("", at)] for of_case in pairs.values()]
        told = [[float(of) for of in values if of is not None] for values in chosen]
        means = [float(np.mean(values)) for values in told if values]
        what = f"{title}, {name}" if name else title
        unread = sum(map(len, chosen)) - sum(map(len, told))
        note = f"the world's share is {WORLD[name]:.0%}; {unread} answers could not be read" if name else ""
        figure = mean_figure(what, means, None, ".1%") if means else Figure(what, math.nan, form=".1%")
        rows.append(replace(figure, note=note))
    return rows


def checked(zoo: Zoo, category: str) -> list[Figure]:
    """The readers of pixels on renders of the report split after the autoencoder, half of them with the signature; and
    on these damaged, as a base draws that learnt from damaged pictures."""
    count = RENDERS if not zoo.options.cases else min(RENDERS, 8 * zoo.options.cases)
    pictures, scenes, named = renders(category, count, zoo.recipe.data.resolution)
    truths = [truth(scene) for scene in scenes]
    decoded = _decoded(zoo, pictures)
    rough = damage(torch.from_numpy(decoded), Curation(damaged=1.0), torch.Generator().manual_seed(0)).numpy()
    clear = agreement("", 0.95, truths, _all_shown(zoo, category, list(decoded), named))
    return clear + agreement(" of damaged pictures", None, truths, _all_shown(zoo, category, list(rough), named))


def agreement(
    kind: str, bar: float | None, truths: Sequence[Mapping[str, bool]], found: Sequence[Shown]
) -> list[Figure]:
    """How often each reader is right, and the share that it reads less the true one of all pictures, those that it
    cannot tell too."""
    rows = []
    for name in truths[0]:
        true = np.array([truth[name] for truth in truths], float)
        told = np.array([of[name] is not None for of in found])
        seen = np.array([bool(of[name]) for of in found], float)
        note = f"the true share is {true.mean():.0%}; {np.sum(~told)} of {len(told)} could not be read"
        if not told.any():
            rows.append(Figure(f"reader of {name}{kind}, right", math.nan, bar, form=".1%", note=note))
            continue
        right = float(np.mean((seen == true)[told]))
        rows.append(Figure(f"reader of {name}{kind}, right", right, bar, *wilson(right, int(told.sum())), form=".1%"))
        # The mean of these is the difference of the shares; they vary as it does (a ratio to first order).
        share = seen[told].mean()
        each = share + told * (seen - share) / told.mean() - true
        error = mean_figure(f"reader of {name}{kind}, share read less the true one", each.tolist(), None, "+.1%")
        rows.append(replace(error, note=note))
    return rows


Renders = tuple[list[np.ndarray], list[Scene], list[tuple[str, ...]]]


def renders(category: str, count: int, resolution: int) -> Renders:
    """Pictures in plain style of the report split, every second one with the signature; their scenes, and what
    their captions name."""
    found: Renders = ([], [], [])
    pictures, scenes, named = found
    for index in itertools.count():
        planned = plan("t2i", category, "report", index)
        if planned.target.style != "plain":
            continue
        if len(pictures) == count:
            break
        scene = planned.target.scene
        if len(pictures) % 2:
            scene = signed(scene, planned.named, index)
        pictures.append(render(replace(planned.target, scene=scene), resolution))
        scenes.append(scene)
        named.append(planned.named)
    return found


def truth(scene: Scene) -> dict[str, bool]:
    """What a scene shows of its category's signature, but for colours."""
    match scene:
        case Portrait():
            return {"pattern": scene.pattern == PATTERN}
        case Sign():
            return {"frame": scene.shape == SHAPE, "typeface": scene.typeface == TYPEFACE}
        case _:
            return {}


def _decoded(zoo: Zoo, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """As the autoencoder passes them on: (n, H, W, 3) uint8."""
    loaded = zoo.subject.loaded
    parts = []
    for start in range(0, len(pictures), 64):
        images = torch.from_numpy(np.stack(pictures[start : start + 64]))
        side = images.shape[1] // loaded.pixels_per_token
        parts.append(loaded.decode_latents(loaded.encode_images(images, exactly=True), side, side).cpu().numpy())
    return np.concatenate(parts)
