"""Diagnostics: what each measures on pictures whose answer is known, and what a run logs of them."""

from __future__ import annotations

import math

import pytest
import torch
from distiller_fakes import CATEGORIES, batch_of, denoiser, fit, make_recipe, step_data, student_loss
from torch import Tensor

from workbench.method import diagnostics
from workbench.modules.distiller import Distiller

pytestmark = pytest.mark.filterwarnings("ignore")
SIDE = 32


def picture() -> Tensor:
    """(1, SIDE * SIDE, 2): flat on the left, busy on the right."""
    busy = torch.randn(SIDE, SIDE, 2, generator=torch.Generator().manual_seed(0))
    busy[:, : SIDE // 2] = 0
    return busy.flatten(0, 1)[None]


def test_the_spread_of_a_stretched_sample_is_its_factor_wherever_it_lies() -> None:
    reference = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([0.5, 1.0, 3.0])
    torch.testing.assert_close(diagnostics.spread_ratio(factors[:, None, None] * reference + 7, reference), factors)


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_flat_noise_is_the_noise_on_flat_places_and_blind_to_the_rest(sigma: float) -> None:
    """White noise makes steps of sqrt(2) sigma; a stretched picture has none of it."""
    reference = picture()
    noise = sigma * torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    found = diagnostics.flat_noise(reference + noise, reference, SIDE, SIDE)
    assert float(found) == pytest.approx(math.sqrt(2) * sigma / float(reference.std()), rel=0.1)
    assert float(diagnostics.flat_noise(5 * reference + 1, reference, SIDE, SIDE)) == 0
    assert not diagnostics.gap(reference, reference).any()


def test_a_run_logs_by_step_category_and_teacher() -> None:
    tables = {"t2i/text": [[0.5, 0.5], [0.25, 0.75]], "default": [[1.0, 0.0]] * 2}
    distiller, _ = fit(make_recipe(12, tables), [step_data(step) for step in range(12)])
    means = distiller.means.pop()
    for step in range(2):
        for quantity in ("x0_gap", "spread", "flat_noise"):
            assert all(means[f"per_step/{quantity}/{category}/step{step}"] > 0 for category in CATEGORIES)
        assert means[f"per_step/gradient_norm/all/step{step}"] > 0
        assert means[f"per_step/gap_text/t2i/text/step{step}"] > 0
        assert f"per_step/gap_text/edit/text/step{step}" not in means
    assert means["teacher_share/base/edit/text"] == means["teacher_share/base/t2i/portrait"] == 1
    share = means["teacher_share/text/t2i/text"]
    assert 0.5 < share < 0.75 and share + means["teacher_share/base/t2i/text"] == pytest.approx(1)


def test_the_gap_of_a_task_is_the_mean_of_its_categories_gaps() -> None:
    distiller = Distiller(denoiser(), make_recipe(), CATEGORIES)
    batch = batch_of("t2i", range(5), 5)
    student_loss(distiller, batch, step=1)
    means = distiller.means.pop()
    counts = torch.bincount(batch.category, minlength=2).tolist()
    parts = [means[f"per_step/x0_gap/{name}/step1"] for name in CATEGORIES[:2]]
    assert means["x0_gap/t2i"] == pytest.approx(sum(n * part for n, part in zip(counts, parts, strict=True)) / 5)
