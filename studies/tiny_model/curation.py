"""What the collections that models are trained on do to the world: a web's mixed quality, a curator's narrow taste.

A base model learns from what the web has: damaged pictures, captions that name something else. A specialist learns from
a clean collection with a signature, a narrow choice of what captions leave open: how much of it a student shows tells
how much of the specialist it took over.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from datamodules.openmoji.captions import caption
from datamodules.openmoji.compose import lettering_of, pick, random_text
from datamodules.openmoji.scenes import Landscape, Picture, Portrait, Scene, Sign
from datamodules.openmoji.splits import belongs
from datamodules.openmoji.tiles import generator
from datamodules.openmoji.vocabulary import (
    BACKGROUNDS,
    GROUNDS,
    INKS,
    LEGIBLE,
    OBJECTS,
    SIGNS,
    SKIES,
    SUBJECTS,
)
from datamodules.openmoji.world import Plan, plan
from studies.tiny_model.corruptions import CORRUPTIONS, corrupt
from workbench.batch import Task
from workbench.recipe.checks import require

LASTING = ("blur", "smear", "wobble", "warp", "ghost")
"""Damage that an autoencoder passes on; it erases noise and blocks."""
PALETTES = {"background": ("blue", "yellow"), "sign": ("green", "yellow")}
"""Colours of a signature, where the caption leaves them open: a judge reads how often a student chooses them."""
SIGNED = {"portrait": "background", "text": "sign"}
"""Category with a signature -> the attribute of its colours."""
SHAPE, TYPEFACE = "framed", "DejaVuSansMono-Bold"
"""Of the typefaces one that the autoencoder passes in small letters (97 % of two words; serifs 85 %)."""
PATTERN, AMPLITUDE = "dots", 14
MAX_ATTEMPTS = 1000
SMALL_PRINT_FROM = 10**12
"""Indices of the world from here on are drawn for small print alone."""


@dataclass(frozen=True)
class Curation:
    """How a collection differs from the world; by default not at all.

    damaged: share of the targets that one of `kinds` of corruption damages, at a severity from `low` to `high`.
    wrong: share of the texts that name something wrong: captions one attribute, instructions another edit.
    signature: portraits before dots, signs framed and in one typeface; both in the colours of PALETTES.
    small_print: share of the signs that are exchanged for one of two words in small letters.
    """

    damaged: float = 0.0
    low: float = 0.15
    high: float = 0.5
    kinds: list[str] = field(default_factory=lambda: list(LASTING))
    wrong: float = 0.0
    signature: bool = False
    small_print: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.damaged, self.wrong, self.small_print)
        known = all(0 <= share <= 1 for share in shares)
        require(known, "curation: damaged, wrong and small_print are shares from 0 to 1")
        require(0 <= self.low <= self.high <= 1, "curation: 0 <= low <= high <= 1")
        known = bool(self.kinds) and {*self.kinds} <= {*CORRUPTIONS}
        require(known, f"curation.kinds are some of {', '.join(CORRUPTIONS)}: {self.kinds}")


AS_IT_IS = Curation()
"""The world itself."""


def curated(task: Task, category: str, index: int, curation: Curation) -> Plan:
    """Training sample `index` of a category as the collection has it, before it is drawn and damaged."""
    planned = plan(task, category, "train", index)
    # Decided apart from wrong texts, so that the same ones are wrong with small print and without.
    is_small = generator("small print", index).random() < curation.small_print
    if (task, category) == ("t2i", "text") and is_small:
        planned = with_small_print(index)
    if curation.signature:
        target = replace(planned.target, scene=signed(planned.target.scene, planned.named, index))
        planned = replace(planned, target=target)
    rng = generator("curation", task, category, index)
    if rng.random() >= curation.wrong:
        return planned
    if task == "edit":
        return replace(planned, text=plan(task, category, "train", index + 1).text)
    return replace(planned, text=wrong_caption(planned.target, rng))


def with_small_print(index: int) -> Plan:
    """The sample of a sign of two words, another one for each index."""
    first = SMALL_PRINT_FROM + MAX_ATTEMPTS * index
    for at in range(first, first + MAX_ATTEMPTS):
        planned = plan("t2i", "text", "train", at)
        if isinstance(planned.target.scene, Sign) and lettering_of(planned.target.scene) != "one word":
            return planned
    raise RuntimeError(f"no sign of two words in {MAX_ATTEMPTS} attempts")


def signed(scene: Scene, named: tuple[str, ...], index: int) -> Scene:
    """The scene with the signature of its category. What the caption names stays, and no combination is shown that
    another split owns."""
    match scene:
        case Portrait():
            colours = () if "background" in named else PALETTES["background"]
            scenes = [replace(scene, background=colour, pattern=PATTERN, amplitude=AMPLITUDE) for colour in colours]
            fitting = [other for other in scenes if belongs(other, "train")]
            return fitting[index % len(fitting)] if fitting else replace(scene, pattern=PATTERN, amplitude=AMPLITUDE)
        case Sign():
            framed = replace(scene, shape=SHAPE, typeface=TYPEFACE)
            colours = () if "sign" in named else PALETTES["sign"]
            legible = [colour for colour in colours if scene.ink in LEGIBLE[colour]]
            return replace(framed, sign=legible[index % len(legible)]) if legible else framed
        case Landscape():
            return scene


def wrong_caption(picture: Picture, rng: np.random.Generator) -> str:
    """A caption of the picture that names one attribute as something else."""
    for _ in range(MAX_ATTEMPTS):
        head, other = _changed(picture.scene, rng)
        text, named, accepted = caption(other, picture.style, rng)
        if head in named and head not in accepted and belongs(other, "train"):
            return text
    raise RuntimeError(f"no caption names what was changed in {MAX_ATTEMPTS} attempts")


def _changed(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
    """An attribute, and the scene with another value of it."""
    match scene:
        case Landscape():
            head = pick(("sky", "ground", "objects"), rng)
            if head == "sky":
                return head, replace(scene, sky=_other(SKIES, scene.sky, rng))
            if head == "ground":
                return head, replace(scene, ground=_other(GROUNDS, scene.ground, rng))
            at = int(rng.integers(len(scene.items)))
            name = pick(tuple(name for name in OBJECTS if name not in scene.objects), rng)
            items = tuple(replace(item, name=name) if i == at else item for i, item in enumerate(scene.items))
            return head, replace(scene, items=items)
        case Portrait():
            head = pick(("subject", "background"), rng)
            if head == "background":
                return head, replace(scene, background=_other(tuple(BACKGROUNDS), scene.background, rng))
            name = _other(tuple(SUBJECTS), scene.subject.name, rng)
            return head, replace(scene, subject=replace(scene.subject, name=name))
        case Sign():
            head = pick(("word", "sign", "ink"), rng)
            if head == "word":
                return head, replace(scene, word=random_text("train", lettering_of(scene), rng))
            if head == "sign":
                return head, replace(scene, sign=_other(tuple(SIGNS), scene.sign, rng))
            return head, replace(scene, ink=_other(tuple(INKS), scene.ink, rng))


def _other(values: tuple[str, ...], value: str, rng: np.random.Generator) -> str:
    return pick(tuple(other for other in values if other != value), rng)


def damage(images: Tensor, curation: Curation, generator: torch.Generator) -> Tensor:
    """Images (B, H, W, 3) uint8, `curation.damaged` of them damaged. generator: on the images' device."""
    if not curation.damaged:
        return images
    count, device = len(images), images.device
    known = torch.tensor([list(CORRUPTIONS).index(kind) for kind in curation.kinds], device=device)
    kinds = known[torch.randint(len(known), (count,), generator=generator, device=device)]
    spared = torch.rand(count, generator=generator, device=device) >= curation.damaged
    severity = curation.low + (curation.high - curation.low) * torch.rand(count, generator=generator, device=device)
    pixels = images.permute(0, 3, 1, 2).float() / 255
    damaged = corrupt(pixels, kinds.masked_fill(spared, -1), severity, generator)
    return (damaged.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8)
