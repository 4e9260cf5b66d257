"""Collections: shares of damage and of wrong texts, what a signature changes and what it must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules.openmoji.captions import caption
from datamodules.openmoji.compose import lettering_of
from datamodules.openmoji.scenes import Portrait, Sign
from datamodules.openmoji.splits import belongs
from datamodules.openmoji.tiles import generator
from datamodules.openmoji.vocabulary import CATEGORIES, LEGIBLE
from datamodules.openmoji.world import Plan, plan
from studies.tiny_model.curation import AS_IT_IS, PALETTES, Curation, curated, damage, wrong_caption
from workbench.batch import TASKS
from workbench.common.errors import UserError

COUNT = 60


def test_by_default_a_collection_is_the_world() -> None:
    for task in TASKS:
        for category in CATEGORIES[task]:
            assert curated(task, category, 5, AS_IT_IS) == plan(task, category, "train", 5)


@pytest.mark.parametrize("category", CATEGORIES["t2i"])
def test_wrong_captions_contradict_their_picture(category: str) -> None:
    for index in range(40):
        picture = plan("t2i", category, "train", index).target
        text = wrong_caption(picture, generator("test", index))
        # No caption of the picture, however it is phrased, is this text.
        true = {caption(picture.scene, picture.style, generator("true", index, i))[0] for i in range(100)}
        assert text not in true


def test_so_many_texts_are_wrong_as_were_asked_for() -> None:
    for task, category in (("t2i", "portrait"), ("edit", "scene")):
        wrong = [
            curated(task, category, i, Curation(wrong=0.25)).text != plan(task, category, "train", i).text
            for i in range(4 * COUNT)
        ]
        # Two instructions of a category may be the same.
        assert 0.13 < np.mean(wrong) < 0.36


def test_so_many_signs_are_in_small_print_as_were_asked_for() -> None:
    """Those that are exchanged are all different and of both kinds; half of those that stay are of two words too."""
    none, some, all_of = (
        [curated("t2i", "text", i, Curation(small_print=share)) for i in range(4 * COUNT)] for share in (0, 0.5, 1)
    )
    small = [{lettering_of(_sign(one)) != "one word" for one in found} for found in (none, all_of)]
    assert small == [{False, True}, {True}]
    exchanged = [one != other for one, other in zip(some, none, strict=True)]
    assert 0.35 < np.mean(exchanged) < 0.65
    for one, without, whole in zip(some, none, all_of, strict=True):
        assert one in (without, whole), "an exchanged sign is the same at every share"
    kinds = [lettering_of(_sign(one)) for one in all_of]
    assert 0.4 < np.mean([kind == "two lines" for kind in kinds]) < 0.6
    assert len({_sign(one) for one in all_of}) == len(all_of)
    for one in all_of:
        assert belongs(one.target.scene, "train") and set(one.named) <= set(one.target.heads())
        assert "word" in one.named and all(word in one.text for word in _sign(one).word.split())


def test_small_print_is_of_signs_alone_and_leaves_the_wrong_texts_wrong() -> None:
    web, small = Curation(wrong=0.25), Curation(wrong=0.25, small_print=1.0)
    for task, category in (("t2i", "portrait"), ("t2i", "landscape"), ("edit", "text")):
        for index in range(COUNT):
            assert curated(task, category, index, small) == curated(task, category, index, web)
    for index in range(COUNT):
        true = plan("t2i", "text", "train", index).text
        is_wrong = curated("t2i", "text", index, web).text != true
        printed = curated("t2i", "text", index, Curation(small_print=1.0))
        assert (curated("t2i", "text", index, small) != printed) == is_wrong


def _sign(planned: Plan) -> Sign:
    assert isinstance(planned.target.scene, Sign)
    return planned.target.scene


def test_a_signature_decides_what_captions_leave_open_and_nothing_else() -> None:
    signed = [curated("t2i", "portrait", i, Curation(signature=True)) for i in range(COUNT)]
    plain = [plan("t2i", "portrait", "train", i) for i in range(COUNT)]
    free = [one.target.scene for one in signed if "background" not in one.named]
    assert np.mean([scene.background in PALETTES["background"] for scene in free]) > 0.9
    for one, other in zip(signed, plain, strict=True):
        assert isinstance(one.target.scene, Portrait) and one.target.scene.pattern == "dots"
        assert one.text == other.text and belongs(one.target.scene, "train")
        assert one.target.scene.subject == other.target.scene.subject
        if "background" in one.named:
            assert one.target.scene.background == other.target.scene.background
    for index in range(COUNT):
        one = curated("t2i", "text", index, Curation(signature=True))
        scene, other = one.target.scene, plan("t2i", "text", "train", index).target.scene
        assert isinstance(scene, Sign) and isinstance(other, Sign)
        assert (scene.shape, scene.word, scene.ink) == ("framed", other.word, other.ink)
        assert scene.ink in LEGIBLE[scene.sign]
        assert scene.sign == other.sign if "sign" in one.named else scene.sign in PALETTES["sign"]
        assert scene.lines == other.lines


def test_damage_has_its_share_its_kinds_and_its_generator() -> None:
    images = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert damage(images, AS_IT_IS, torch.Generator()) is images
    web = Curation(damaged=0.5, kinds=["blur"], low=0.5)

    def once(curation: Curation) -> torch.Tensor:
        return damage(images, curation, torch.Generator().manual_seed(1))

    changed = (once(web) != images).flatten(1).any(1).float().mean().item()
    assert 0.3 < changed < 0.7 and torch.equal(once(web), once(web))
    assert once(web).dtype == torch.uint8 and once(web).shape == images.shape
    roughness = [
        (of.float().diff(dim=1).abs().mean()).item() for of in (images, once(web), once(replace(web, damaged=1.0)))
    ]
    assert roughness == sorted(roughness, reverse=True), "blur smooths"


@pytest.mark.parametrize(
    "wrong", [{"damaged": 1.5}, {"low": 0.6}, {"kinds": ["rain"]}, {"kinds": []}, {"wrong": -0.1}, {"small_print": 2}]
)
def test_impossible_collections_are_user_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="curation"):
        Curation(**wrong)  # type: ignore[arg-type]
