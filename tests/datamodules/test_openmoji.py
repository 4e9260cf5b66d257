"""The OpenMoji world: same arguments, same pixels; splits disjoint; texts say exactly what they determine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations as pairs_of
from pathlib import Path

import numpy as np
import pytest

from datamodules.openmoji import CATEGORIES, HEADS, MULTI_LABEL, SPLITS, Plan, corpus, draw, phrases
from datamodules.openmoji import plan as uncached_plan
from datamodules.openmoji.compose import LETTERINGS, lettering_of
from datamodules.openmoji.paint import degrade, render
from datamodules.openmoji.scenes import Landscape, Picture, Portrait, Sign
from datamodules.openmoji.splits import combinations, split_of
from datamodules.openmoji.vocabulary import (
    BACKGROUNDS,
    INKS,
    LEGIBLE,
    LINE_LETTERS,
    MAX_LETTERS,
    OBJECT_GROUPS,
    OBJECTS,
    SIGNS,
    STYLES,
    SUBJECT_GROUPS,
    SUBJECTS,
    grounds_of,
    with_article,
)
from workbench.common.errors import UserError
from workbench.evaluation.cases.case import Case
from workbench.evaluation.judges.local import judge_case

plan = lru_cache(maxsize=None)(uncached_plan)
ROOT = Path(__file__).resolve().parents[2]
CELLS = [(task, category) for task, categories in CATEGORIES.items() for category in categories]
DIGEST = """
import hashlib
from datamodules.openmoji import CATEGORIES, draw
digest = hashlib.sha256()
for task, categories in CATEGORIES.items():
    for category in categories:
        for index in range(3):
            s = draw(task, category, "report", index, seed=5, resolution=64)
            told = (s.key, s.text, s.scene, s.source_scene, s.named, s.kept, s.accepted, s.exact)
            digest.update(repr(told).encode() + s.target.tobytes())
            digest.update(b"" if s.source is None else s.source.tobytes())
print(digest.hexdigest())
"""


def test_every_process_draws_the_same_samples() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", DIGEST]
        digests.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(digests) == 1


def test_order_of_drawing_does_not_matter() -> None:
    def digest(index: int) -> str:
        sample = draw("edit", "scene", "train", index)
        assert sample.source is not None
        return hashlib.sha256(sample.target.tobytes() + sample.source.tobytes()).hexdigest()

    assert [digest(i) for i in range(8)] == [digest(i) for i in reversed(range(8))][::-1]


def test_seeds_splits_and_indices_give_different_samples() -> None:
    draws = [
        draw("t2i", "landscape", split, index, seed=seed) for split in SPLITS for index in range(3) for seed in (0, 1)
    ]
    assert len({sample.target.tobytes() for sample in draws}) == len(draws)
    assert len({sample.key for sample in draws}) == len(draws)
    assert all(re.fullmatch(r"[a-z0-9_-]+", sample.key) for sample in draws)


@pytest.mark.parametrize(("task", "category"), CELLS)
@pytest.mark.parametrize("resolution", [64, 128])
def test_resolution_changes_the_pixels_and_nothing_else(task: str, category: str, resolution: int) -> None:
    for index in range(4):
        sample, other = (draw(task, category, "train", index, resolution=side) for side in (resolution, 96))
        assert sample.target.shape == (resolution, resolution, 3) and sample.target.dtype == np.uint8
        assert (sample.text, sample.scene, sample.source_scene) == (other.text, other.scene, other.source_scene)
        assert json.loads(json.dumps(sample.scene)) == sample.scene
        assert (sample.source is None) == (task == "t2i")
        assert sample.source is None or sample.source.shape == sample.target.shape


def test_held_out_combinations_are_disjoint_and_never_trained_on() -> None:
    shown: dict[str, set[tuple[str, ...]]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for task, category in CELLS:
            for index in range(120):
                planned = plan(task, category, split, index)
                asked = combinations(planned.target.scene)
                shown[split] |= asked if planned.source is None else asked | combinations(planned.source.scene)
                assert split == "train" or any(split_of(one) == split for one in asked)
    owned = {split: {one for one in shown[split] if split_of(one) == split} for split in SPLITS}
    assert owned["train"] == shown["train"]
    for held_out in SPLITS[1:]:
        assert shown[held_out] <= owned[held_out] | {one for one in shown[held_out] if split_of(one) == "train"}
    for first, second in pairs_of(SPLITS, 2):
        assert not owned[first] & owned[second]
    words = {split: {one[1] for one in owned[split] if one[0] == "word"} for split in SPLITS}
    assert all(len(words[split]) > 30 for split in SPLITS)


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_of_every_head_occurs(split: str) -> None:
    seen: dict[str, Counter[str]] = {head: Counter() for head in HEADS}
    for task, category in CELLS:
        for index in range(300):
            planned = plan(task, category, split, index)
            for picture in (planned.target, planned.source):
                for head, value in ({} if picture is None else picture.heads()).items():
                    seen[head].update(value if head in MULTI_LABEL or head == "word" else [value])
    for head, classes in HEADS.items():
        assert set(seen[head]) == set(classes)


def test_words_fit_and_read() -> None:
    for index in range(500):
        sign = plan("t2i", "text", "train", index).target.scene
        assert isinstance(sign, Sign) and re.fullmatch(
            rf"[A-Z]{{2,{MAX_LETTERS}}}( [A-Z]{{2,{MAX_LETTERS}}})?", sign.word
        )
        assert len(sign.word) <= LINE_LETTERS or len(sign.lines) == 2
        assert sign.ink in LEGIBLE[sign.sign]


def _luminance(colour: tuple[int, int, int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_ink_contrasts_with_its_sign() -> None:
    """WCAG 2 contrast ratio, (L1 + 0.05) / (L2 + 0.05)."""
    for sign, inks in LEGIBLE.items():
        for ink in inks:
            dark, light = sorted((_luminance(SIGNS[sign]), _luminance(INKS[ink])))
            assert (light + 0.05) / (dark + 0.05) >= 4, (sign, ink)


def _mentions(text: str, names: tuple[str, ...]) -> set[str]:
    return {name for name in names if re.search(rf"\b{name}\b", text)}


def _open_objects(accepted: Mapping[str, Sequence[str | tuple[str, ...]]]) -> set[str]:
    """The objects that not every accepted set holds."""
    sets = [set(value) for value in accepted.get("objects", ())]
    return set.union(*sets) - set.intersection(*sets) if sets else set()


def test_captions_name_what_they_say_they_name_and_nothing_else() -> None:
    for index in range(800):
        planned = plan("t2i", "landscape", "train", index)
        scene = planned.target.scene
        assert isinstance(scene, Landscape) and planned.named
        objects = _mentions(planned.text, tuple(OBJECTS))
        said_open = _open_objects(planned.accepted)
        assert objects == (set(scene.objects) - said_open if "objects" in planned.named else set())
        assert bool(said_open) == any(of in planned.text for options in phrases.ANY_OBJECT.values() for of in options)
        assert not {"sky", "ground"} <= set(planned.named), "a caption must leave something free"
        said = {"sky": phrases.SKIES[scene.sky], "ground": phrases.GROUNDS[scene.ground]}
        for head, options in said.items():
            assert head not in planned.named or any(option in planned.text for option in options)
        assert not re.search(r"\b(left|right|big|small|mirror|cloud|sun|moon|huge|near|far)\b", planned.text)


def test_captions_name_objects_from_left_to_right() -> None:
    seen = 0
    for index in range(400):
        planned = plan("t2i", "landscape", "train", index)
        scene = planned.target.scene
        assert isinstance(scene, Landscape)
        found = [re.search(rf"\b{item.name}\b", planned.text) for item in sorted(scene.items, key=lambda item: item.x)]
        places = [match.start() for match in found if match]
        assert places == sorted(places), planned.text
        seen += len(places) > 1
    assert seen > 100


def test_portrait_and_sign_captions() -> None:
    for index in range(500):
        portrait = plan("t2i", "portrait", "train", index)
        assert isinstance(portrait.target.scene, Portrait)
        subject = portrait.target.scene.subject.name
        group = next((of for of, names in SUBJECT_GROUPS.items() if subject in names), "")
        is_open = "subject" in portrait.accepted
        assert not is_open or any(of in portrait.text for of in phrases.ANY_SUBJECT[group])
        assert (with_article(subject) in portrait.text) != is_open
        if "background" in portrait.named:
            assert portrait.target.scene.background in portrait.text
        sign = plan("t2i", "text", "train", index)
        assert isinstance(sign.target.scene, Sign)
        words = sign.target.scene.word.split() if "word" in sign.named else []
        assert re.findall(r"\b[A-Z]+\b", sign.text) == words and (words or sign.named == ("sign",))
        colours = {getattr(sign.target.scene, head) for head in ("sign", "ink") if head in sign.named}
        if sign.target.style == "plain":
            assert _mentions(sign.text, (*SIGNS, *INKS)) == colours
        assert not {"sign", "ink"} <= set(sign.named)


@pytest.mark.parametrize(("task", "category"), CELLS)
def test_texts_are_short_and_their_heads_are_visible(task: str, category: str) -> None:
    texts = set()
    for index in range(300):
        planned = plan(task, category, "train", index)
        texts.add(planned.text)
        assert len(planned.text.split()) <= 14, planned.text
        assert "{" not in planned.text and " a orange" not in planned.text and "  " not in planned.text
        letters = re.sub(r"\b[A-Z]{2,6}\b", "", planned.text)
        assert letters == letters.lower()
        heads = planned.target.heads()
        assert set(planned.named) <= set(heads) and set(planned.kept) <= set(heads)
        assert not set(planned.named) & set(planned.kept)
        if planned.source is not None:
            before = planned.source.heads()
            assert all(heads[head] == before[head] for head in planned.kept), planned
            assert all(heads[head] != before.get(head) for head in planned.named), planned
    assert len(texts) > 20


def test_a_recoloured_picture_names_no_colour() -> None:
    styles = Counter()
    for index in range(3000):
        planned = plan("t2i", ("landscape", "portrait", "text")[index % 3], "train", index)
        styles[planned.target.style] += 1
        assert ("style" in planned.named) == (planned.target.style != "plain")
        assert set(planned.named) <= set(planned.target.heads())
    assert 0.07 < 1 - styles["plain"] / 3000 < 0.13 and set(styles) == set(STYLES)


def _object_mask(scene: Landscape | Portrait, resolution: int) -> np.ndarray:
    """(H, W) True where the objects or the subject cover what lies behind: alike over two different backdrops."""
    if isinstance(scene, Portrait):
        behind = [dataclasses.replace(scene, background=name, pattern="plain") for name in ("red", "white")]
    else:
        behind = [dataclasses.replace(scene, ground="grass", sky=sky) for sky in ("night", "rain")]
        behind.append(dataclasses.replace(scene, ground="snow", sky="overcast"))
    images = [render(Picture(one), resolution) for one in behind]
    return np.all([(image == images[0]).all(axis=-1) for image in images], axis=0)


def test_exact_scene_edit_leaves_objects_untouched_and_changes_the_rest_it_names() -> None:
    kinds = Counter()
    for index in range(120):
        planned, sample = plan("edit", "scene", "train", index), draw("edit", "scene", "train", index)
        if not sample.exact:
            continue
        (head,) = sample.named
        kinds[head] += 1
        scene = planned.target.scene
        assert isinstance(scene, Landscape | Portrait) and sample.source is not None
        mask = _object_mask(scene, 128)
        assert mask.any() and np.array_equal(sample.source[mask], sample.target[mask])
        assert (sample.source != sample.target).any(axis=-1).mean() > 0.05
        if isinstance(scene, Landscape):
            row = round(scene.look.horizon * 128)
            kept = slice(row, None) if head == "sky" else slice(0, row)
            assert np.array_equal(sample.source[kept], sample.target[kept])
    assert set(kinds) == {"sky", "ground", "background"}


def test_object_edit_changes_only_where_the_object_is() -> None:
    for index in range(40):
        planned, sample = plan("edit", "object", "train", index), draw("edit", "object", "train", index)
        before, after = planned.source.scene, planned.target.scene  # type: ignore[union-attr]
        assert isinstance(before, Landscape) and isinstance(after, Landscape) and sample.source is not None
        changed = set(before.items) ^ set(after.items)
        assert 1 <= len(changed) <= 2
        allowed = np.zeros((128, 128), bool)
        for item in changed:
            top, left, half = round((item.y - item.size) * 128) - 2, round(item.x * 128), round(item.size * 64) + 2
            allowed[max(0, top) : round(item.y * 128) + 2, max(0, left - half) : left + half] = True
        differs = (sample.source != sample.target).any(axis=-1)
        assert differs.any() and not differs[~allowed].any()


def test_enhance_and_style_keep_the_scene() -> None:
    for category in ("enhance", "style"):
        for index in range(20):
            planned = plan("edit", category, "search", index)
            assert planned.source is not None and planned.source.scene == planned.target.scene
            clean = planned.target if category == "enhance" else planned.source
            assert clean == Picture(clean.scene)


def test_identity_keeps_the_subject_and_moves_it_or_keeps_the_background_and_exchanges_it() -> None:
    exchanged = 0
    for index in range(80):
        planned, sample = plan("edit", "identity", "train", index), draw("edit", "identity", "train", index)
        source, target = planned.source.scene, planned.target.scene  # type: ignore[union-attr]
        assert isinstance(source, Portrait | Landscape) and isinstance(target, Portrait | Landscape)
        assert source.subject is not None and target.subject is not None and source.subject != target.subject
        if "subject" in planned.named:
            exchanged += 1
            assert dataclasses.replace(source, subject=target.subject) == target
        assert ("subject" in planned.named) == (source.subject.name != target.subject.name)
        assert sample.source is not None and (sample.source != sample.target).any(axis=-1).mean() > 0.03
    assert 8 < exchanged < 28


def _edits(category: str, count: int, split: str = "train") -> Iterator[Plan]:
    for index in range(count):
        yield plan("edit", category, split, index)


@pytest.mark.parametrize("category", CATEGORIES["edit"])
@pytest.mark.parametrize("split", SPLITS)
def test_open_edits_accept_their_target_and_never_their_source(category: str, split: str) -> None:
    for planned in _edits(category, 300, split):
        assert planned.source is not None
        before, after = planned.source.heads(), planned.target.heads()
        for head, values in planned.accepted.items():
            assert head in planned.named and not planned.exact and len(values) == len(set(values)) > 1
            options = [list(value) if head in MULTI_LABEL else value for value in values]
            assert after[head] in options and before[head] not in options, planned.text
            classes = {one for value in values for one in (value if head in MULTI_LABEL else (value,))}
            assert classes <= set(HEADS[head])


@pytest.mark.parametrize("category", CATEGORIES["edit"])
def test_the_target_fulfils_an_edit_and_the_source_does_not(category: str) -> None:
    for index in range(60):
        sample = draw("edit", category, "report", index, resolution=64)
        assert sample.source_scene is not None and sample.source is not None
        fields = {name: getattr(sample, name) for name in ("source", "target", "scene", "source_scene")}
        fields |= {name: getattr(sample, name) for name in ("named", "kept", "accepted", "exact")}
        case = Case(sample.key, "edit", category, sample.text, **fields)
        # A judge says something of every head, whether it applies or not.
        answered = judge_case(case, sample.target, sample.source_scene | sample.scene, 1.0)
        copied = judge_case(case, sample.source, sample.scene | sample.source_scene, 1.0)
        assert answered.compliance == 1 and answered.score == 5
        assert copied.compliance == 0 and copied.score == 1
        assert sample.exact or "kept/pixels" not in answered.attributes


def test_most_edits_are_open_and_most_of_those_accept_many_values() -> None:
    shares = {category: np.mean([not p.exact for p in _edits(category, 400)]) for category in CATEGORIES["edit"]}
    assert 0.58 < shares["scene"] < 0.72 and 0.8 < shares["object"] < 0.9 and 0.72 < shares["text"] < 0.88
    assert shares["identity"] > 0.85 and shares["enhance"] == 0 and 0.13 < shares["style"] < 0.27


def _look_at(text: str, category: str) -> list[np.ndarray]:
    """Targets, 64 px a side, of the edits that a text asks for."""
    wanted = [index for index in range(1500) if plan("edit", category, "train", index).text == text]
    return [draw("edit", category, "train", index, resolution=64).target for index in wanted]


@pytest.mark.parametrize(("text", "category"), [("change the scenery", "scene"), ("put them somewhere else", "scene")])
def test_two_targets_of_one_open_text_have_little_in_common(text: str, category: str) -> None:
    images = _look_at(text, category)
    assert len(images) >= 5
    changed = [(np.abs(a.astype(int) - b).max(axis=-1) > 16).mean() for a, b in pairs_of(images, 2)]
    assert np.mean(changed) > 0.7


def test_open_edits_of_one_source_kind_reach_most_of_what_they_accept() -> None:
    """Entropy of the drawn class over the accepted ones: within a tenth of the uniform one's."""
    seen: Counter[str] = Counter()
    for planned in _edits("scene", 2000):
        if "sky" in planned.accepted:
            seen[planned.target.heads()["sky"]] += 1
    shares = np.array(list(seen.values())) / seen.total()
    assert -(shares * np.log(shares)).sum() > 0.9 * np.log(len(HEADS["sky"]))


def test_redrawn_scenes_keep_their_objects_about_where_they_were() -> None:
    redrawn = [p for p in _edits("scene", 300) if {"sky", "ground"} <= set(p.named)]
    assert len(redrawn) > 80
    for planned in redrawn:
        before, after = planned.source.scene, planned.target.scene  # type: ignore[union-attr]
        assert isinstance(before, Landscape) and isinstance(after, Landscape) and before.look != after.look
        assert before.sky != after.sky and before.ground != after.ground and before.objects == after.objects
        for old, new in zip(before.items, after.items, strict=True):
            assert abs(old.x - new.x) <= 0.13 and old.mirrored == new.mirrored


@pytest.mark.parametrize("quality", ["blurry", "noisy", "blocky"])
def test_defects_are_coarse_enough_to_outlive_an_autoencoder(quality: str) -> None:
    """What is left of the damage after a 4 x 4 mean, as coarse as a latent sees it, and how it grows with the side."""
    pictures = [plan("t2i", name, "train", i).target for name in CATEGORIES["t2i"] for i in range(8)]
    for side in (64, 128):
        left, whole = [], []
        for at, picture in enumerate(pictures):
            clean = render(picture, side)
            damage = degrade(clean, quality, 977 * at + 5).astype(np.float64) - clean
            step = side // 32
            coarse = damage.reshape(32, step, 32, step, 3).mean(axis=(1, 3))
            left.append(np.abs(coarse).mean())
            whole.append(np.abs(damage).mean())
        assert np.mean(whole) > 8 and np.mean(left) > (0.35 if quality == "blurry" else 0.6) * np.mean(whole)


def test_groups_are_large_and_every_place_has_objects() -> None:
    for groups, known in ((OBJECT_GROUPS, OBJECTS), (SUBJECT_GROUPS, SUBJECTS)):
        for names in groups.values():
            assert 4 <= len(names) == len(set(names)) and set(names) <= set(known)
    assert all(count >= 4 for count in Counter(drawing.place for drawing in OBJECTS.values()).values())


def test_scenes_are_sparse_and_words_short() -> None:
    counts = Counter(len(p.target.scene.items) for p in (plan("t2i", "landscape", "train", i) for i in range(800)))  # type: ignore[union-attr]
    assert counts[3] / 800 <= 0.11 and counts[1] > 250 and counts[2] > 250
    signs = [plan("t2i", "text", "train", i).target.scene for i in range(1000)]
    assert {lettering_of(sign): True for sign in signs if isinstance(sign, Sign)}.keys() == LETTERINGS.keys()
    single = Counter(len(sign.word) for sign in signs if lettering_of(sign) == "one word")  # type: ignore[arg-type,union-attr]
    assert 440 <= single.total() <= 560 and single[6] <= 60 and min(single[n] for n in (2, 3, 4, 5)) > 60


def test_objects_stand_where_they_belong() -> None:
    for index in range(300):
        scene = plan("t2i", "landscape", "train", index).target.scene
        assert isinstance(scene, Landscape) and 1 <= len(set(scene.objects)) == len(scene.items) <= 3
        for item in scene.items:
            assert scene.ground in grounds_of(item.name)
            assert item.size <= item.y <= 1 and item.size / 2 <= item.x <= 1 - item.size / 2
            assert (item.y < scene.look.horizon) == (OBJECTS[item.name].place == "sky")


def test_drawings_are_many_and_backgrounds_distinct() -> None:
    assert len(OBJECTS) >= 32 and len(SUBJECTS) >= 40
    for first, second in pairs_of(BACKGROUNDS.values(), 2):
        # Shades move each channel by at most 13, patterns by 14.
        assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 54


def test_corpus_is_the_captions_of_the_train_split() -> None:
    texts = list(corpus(18, seed=3))
    assert texts[:9] == [plan(task, category, "train", 0, 3).text for task, category in CELLS]
    assert texts == list(corpus(18, seed=3)) != list(corpus(18, seed=4))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("t2i", "scene", "train", 0), "t2i/scene"),
        (("edit", "landscape", "train", 0), "edit/landscape"),
        (("t2i", "text", "test", 0), "test"),
        (("t2i", "text", "train", 0, 0, 100), "100"),
    ],
)
def test_wrong_names_are_user_errors(arguments: tuple[object, ...], named: str) -> None:
    with pytest.raises(UserError, match=named):
        draw(*arguments)  # type: ignore[arg-type]


def test_drawing_takes_milliseconds() -> None:
    """2 ms on a free core over all categories, edits drawing two pictures; the bound is generous for busy machines."""

    def draw_all(start: int, stop: int) -> None:
        for index in range(start, stop):
            task, category = CELLS[index % len(CELLS)]
            draw(task, category, "train", index)

    draw_all(0, 600)
    began_s = time.process_time()
    draw_all(600, 900)
    assert (time.process_time() - began_s) / 300 < 0.01
