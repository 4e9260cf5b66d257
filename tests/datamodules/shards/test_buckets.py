"""The one rule by which pictures of any size become ones that a batch can hold."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from datamodules.shards.buckets import bucket_of, buckets, fitted
from workbench.common.errors import UserError
from workbench.recipe.config import Data

DATA = Data(resolution=256)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom: a pixel's colour says where it was."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray((np.stack([x, y, 0 * x], -1) * 255).round().astype(np.uint8))


@pytest.mark.parametrize(("resolution", "multiple"), [(128, 32), (256, 32), (512, 16), (1024, 32), (1328, 16)])
def test_buckets_have_the_resolutions_pixels_and_sides_that_the_family_takes(resolution: int, multiple: int) -> None:
    found = buckets(resolution, multiple)
    assert found[0] == (resolution, resolution) and len(found) == len({*found})
    for width, height in found:
        assert width % multiple == height % multiple == 0
        assert (height, width) in found
        # rounding a side by half a multiple is all that moves the count
        shortest = min(width, height)
        assert abs(math.log(width * height / resolution**2)) < 2 * multiple / shortest


@pytest.mark.parametrize(
    "size", [(100, 100), (500, 375), (375, 500), (1920, 1080), (1024, 1536), (2048, 512), (90, 71)]
)
def test_a_picture_goes_to_the_nearest_aspect_and_is_cut_at_its_centre(size: tuple[int, int]) -> None:
    bucket = bucket_of(size, DATA, 32, "x")
    distances = {b: abs(math.log(b[0] / b[1] * size[1] / size[0])) for b in buckets(256, 32)}
    assert distances[bucket] == min(distances.values())
    image = gradient(*size)
    target, sources = fitted(image, (), DATA, 32, "x")
    assert sources == () and target is not None and target.size == bucket
    np.testing.assert_array_equal(target, ImageOps.fit(image, bucket, Image.Resampling.LANCZOS))


def test_a_picture_of_a_bucket_stays_as_it_is() -> None:
    for size in buckets(256, 32):
        image = gradient(*size)
        target, _ = fitted(image, (), DATA, 32, "x")
        np.testing.assert_array_equal(target, image)


def test_a_recipe_may_leave_the_longest_buckets_out() -> None:
    few = replace(DATA, max_buckets=3)
    sizes = [(100, 100), (400, 300), (300, 400), (1600, 400), (400, 1600), (1920, 1080)]
    assert {bucket_of(size, few, 32, "x") for size in sizes} == {*buckets(256, 32)[:3]}
    assert bucket_of((1600, 400), few, 32, "x") == bucket_of((400, 300), DATA, 32, "x")


def test_squares_are_cut_where_they_are_asked_for() -> None:
    square = replace(DATA, aspects="square")
    target, _ = fitted(gradient(600, 200), (), square, 32, "x")
    assert target is not None
    np.testing.assert_array_equal(target, ImageOps.fit(gradient(600, 200), (256, 256), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("aspects", ["keep", "square"])
@pytest.mark.parametrize(
    ("source", "target"),
    [((1920, 1080), (960, 540)), ((1024, 683), (500, 333)), ((683, 1024), (1392, 2048)), ((1920, 1080), (1392, 752))],
)
def test_source_and_target_stay_aligned_whatever_their_sizes(aspects, source, target) -> None:
    """The same place of the frame lies at the same pixel of both."""
    data = replace(DATA, aspects=aspects)
    first, (second,) = fitted(gradient(*target), [gradient(*source)], data, 32, "x")
    assert first is not None and first.size == second.size
    difference = np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int))[4:-4, 4:-4]
    assert difference.max() <= 2, "two of 255, less than a pixel"


def test_an_edit_whose_pictures_show_other_frames_is_named() -> None:
    with pytest.raises(UserError, match=r"sample a: the source is 1920 x 1080 and the target 512 x 512.*aspects"):
        fitted(gradient(512, 512), [gradient(1920, 1080)], DATA, 32, "sample a")


def test_of_several_sources_each_keeps_its_aspect_and_those_of_the_targets_its_crop() -> None:
    sources = [gradient(1000, 500), gradient(300, 410), gradient(600, 620)]
    target, placed = fitted(gradient(512, 512), sources, DATA, 32, "x")
    assert target is not None and target.size == (256, 256)
    assert [image.size for image in placed] == [(352, 192), (224, 320), (256, 256)]
    np.testing.assert_array_equal(placed[1], ImageOps.fit(sources[1], (224, 320), Image.Resampling.LANCZOS))
    assert np.abs(np.asarray(placed[2]).astype(int) - np.asarray(target).astype(int)).max() <= 2
    none, alone = fitted(None, sources[:2], DATA, 32, "x")
    assert none is None and [image.size for image in alone] == [(352, 192), (224, 320)]
    with pytest.raises(UserError, match=r"^sample a, source 2 is 1000 x 200 pixels"):
        fitted(gradient(512, 512), [gradient(512, 512), gradient(1000, 200)], DATA, 32, "sample a")


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        ((4000, 8), {}, "4000 x 8 pixels, a side below data.min_side=32"),
        ((1, 1), {}, "1 x 1 pixels, a side below data.min_side=32"),
        ((1000, 200), {}, "an aspect of 5 to 1, beyond data.max_aspect=4"),
        ((200, 1000), {}, "an aspect of 5 to 1"),
        ((64, 64), {"min_side": 100}, "data.min_side=100"),
        ((150, 100), {"max_aspect": 1.2}, "beyond data.max_aspect=1.2"),
    ],
)
def test_pictures_out_of_bounds_are_named(size: tuple[int, int], changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"^sample a is .*{re.escape(message)}"):
        fitted(Image.new("RGB", size), (), replace(DATA, **changes), 32, "sample a")


def test_a_wider_bound_takes_a_banner_into_the_widest_bucket() -> None:
    target, _ = fitted(gradient(1000, 100), (), replace(DATA, max_aspect=12), 32, "x")
    assert target is not None and target.size == (512, 128)
