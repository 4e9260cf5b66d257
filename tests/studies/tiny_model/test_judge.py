"""Training of the local judge: a warm start across vocabularies, and going on after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studies.tiny_model import judge
from studies.tiny_model.judge_weights import fit, save
from workbench.evaluation.judges.local_network import (
    BLANK,
    NUM_CHARACTERS,
    JudgeConfig,
    JudgeNetwork,
    classes_of,
    spelled,
)
from workbench.evaluation.judges.networks import load, network_of

OPTIONS = judge.Options(
    steps=3, batch_size=2, pool=8, first=8, held_out=1, workers=1, warmup=1, resolution=32, rating_width=8,
    save_every_s=0.0,
)  # fmt: skip
SMALL = JudgeConfig(
    {"sky": ("clear", "dusk"), "objects": ("car", "tree", "house")}, resolution=32, widths=(8, 8, 8, 8), num_features=8
)


def test_a_warm_start_takes_every_class_that_both_name() -> None:
    torch.manual_seed(0)
    donor = JudgeNetwork(SMALL)
    changed = JudgeNetwork(replace(SMALL, heads={"sky": ("dusk", "fog", "clear"), "objects": ("boat", "tree")}))
    fresh = {name: tensor.clone() for name, tensor in changed.state_dict().items()}
    copied = fit(changed, donor)
    given, now = donor.state_dict(), changed.state_dict()
    for name in ("single.sky.weight", "single.sky.bias"):
        assert torch.equal(now[name][0], given[name][1]) and torch.equal(now[name][2], given[name][0])
        assert torch.equal(now[name][1], fresh[name][1])
    assert torch.equal(now["multi_local.objects.weight"][1], given["multi_local.objects.weight"][1])
    assert torch.equal(now["multi.objects.bias"][0], fresh["multi.objects.bias"][0])
    assert torch.equal(now["stage1.0.weight"], given["stage1.0.weight"])
    unnamed = sum(now[name][row].numel() for name, row in _unnamed(now))
    assert copied == sum(tensor.numel() for tensor in now.values()) - unnamed


def _unnamed(state: dict[str, torch.Tensor]) -> list[tuple[str, int]]:
    """Rows of the classes that the donor does not know."""
    rows = {"single.sky": 1, "multi.objects": 0, "multi_local.objects": 0}
    return [(name, rows[head]) for name in state if (head := name.rpartition(".")[0]) in rows]


@pytest.mark.parametrize("architecture", ["cnn", "transformer"])
def test_a_warm_start_of_more_characters_and_positions_reads_as_before(architecture: str) -> None:
    """The first positions and characters are the donor's, bit for bit."""
    torch.manual_seed(0)
    few = replace(SMALL, max_letters=3, num_characters=BLANK + 1, architecture=architecture)
    donor, grown = network_of(few).eval(), network_of(replace(SMALL, max_letters=5, architecture=architecture)).eval()
    copied = fit(grown, donor)
    assert copied == sum(tensor.numel() for tensor in donor.state_dict().values())
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before, after = (network(images)[1]["word"] for network in (donor, grown))
    assert after.shape == (2, 5, NUM_CHARACTERS)
    # Tokens of a transformer see one another: those of new positions change what the first say.
    if architecture == "cnn":
        assert torch.allclose(after[:, :3, : BLANK + 1], before, atol=1e-6)


def test_a_new_rating_starts_as_if_it_were_not_there() -> None:
    donor = JudgeNetwork(replace(SMALL, rating_width=0)).eval()
    network = JudgeNetwork(SMALL).eval()
    fit(network, donor)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(network(images)[1]["technical"], donor(images)[1]["technical"], atol=1e-6)
    network(images)[1]["technical"].sum().backward()
    assert network.rating is not None and network.rating.rate[-1].weight.grad.abs().max() > 0


def test_an_interrupted_training_goes_on_and_a_finished_one_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken = judge.Trainer.step, []

    def dies_at_the_third(self: judge.Trainer, *args: object) -> torch.Tensor:
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(args)
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(judge.Trainer, "step", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        judge.run(tmp_path / "judge", OPTIONS)
    monkeypatch.setattr(judge.Trainer, "step", lambda self, *args: taken.append(args) or step(self, *args))
    measured = judge.run(tmp_path / "judge", OPTIONS)
    assert len(taken) == 3, "two steps before, one after"
    assert set(measured["severity_spearman"]) >= {"ghost", "warp"}
    assert judge.run(tmp_path / "judge", OPTIONS) == measured and len(taken) == 3
    assert load(tmp_path / "judge").config.rating_width == 8


def test_ghosts_and_warps_are_drawn_more_often() -> None:
    shares = [OPTIONS.kinds.get(name, 1.0) for name in judge.CORRUPTIONS]
    images = torch.full((4000, 3, 4, 4), 0.5)
    seen = []

    def kinds_only(images: torch.Tensor, kinds: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(kinds)
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "corrupt", kinds_only)
        patch.setattr(judge, "augment", lambda images, _: images)
        _, quality = judge.damaged_batch(images, OPTIONS, torch.Generator().manual_seed(0))
    counts = torch.bincount(seen[0][seen[0] >= 0], minlength=len(shares)).float()
    expected = torch.tensor(shares) / sum(shares) * OPTIONS.damaged
    assert torch.allclose(counts / 4000, expected, atol=0.025)
    assert torch.equal(quality == 1, seen[0] < 0)


def test_a_saved_judge_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    network = JudgeNetwork(SMALL).eval()
    save(network, tmp_path, {})
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(load(tmp_path)(images)[1]["word"], network(images)[1]["word"], atol=2e-2)


def test_a_text_and_its_classes_are_inverses_up_to_the_first_blank() -> None:
    for text in ("", "GO", "NO PARKING", "A B"):
        assert spelled(classes_of(text)) == text
        assert spelled([*classes_of(text), BLANK, *classes_of("Z Z")]) == text
