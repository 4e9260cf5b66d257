"""How well a local judge judges: held-out accuracy of every head, and whether its quality falls as damage grows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.stats import spearmanr
from torch import Tensor

from datamodules.openmoji import MULTI_LABEL
from studies.tiny_model.corruptions import CORRUPTIONS, corrupt
from studies.tiny_model.judge_data import COLUMNS, SINGLE_LABEL, is_clean
from workbench.common.tables import Table
from workbench.evaluation.judges.local_network import preprocess
from workbench.evaluation.judges.networks import Network

GRADED = 1024
"""Clean images that each corruption damages, as far as there are so many."""


@torch.inference_mode()
def predict(network: Network, pixels: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Logits of every head, on the CPU, for pixels (B, 3, S, S) in [-1, 1]."""
    parts = [network(part.to(device))[1] for part in pixels.split(256)]
    return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}


def right(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Per attribute (B,): 1 right, 0 wrong, nan where it does not apply. Sets and words count only when exact."""
    answers = {}
    for head in SINGLE_LABEL:
        target = labels[:, COLUMNS[head]].squeeze(1)
        answers[head] = torch.where(target >= 0, (logits[head].argmax(1) == target).float(), torch.nan)
    for head in MULTI_LABEL:
        target = labels[:, COLUMNS[head]]
        exact = ((logits[head] > 0).long() == target).all(1).float()
        answers[head] = torch.where(target[:, 0] >= 0, exact, torch.nan)
    target = labels[:, COLUMNS["word"]]
    exact = (logits["word"].argmax(2) == target).all(1).float()
    answers["word"] = torch.where(target[:, 0] >= 0, exact, torch.nan)
    return answers


def check(network: Network, images: Tensor, labels: Tensor, device: torch.device) -> dict[str, dict[str, float]]:
    """Held-out figures for images (B, S, S, 3): `accuracy` and `cases` of every head, `severity_spearman`, the rank
    correlation of rated technical quality with the severity of each corruption, sign reversed, on clean images, and of
    how many (`graded`)."""
    pixels = preprocess(images, network.config.resolution)
    logits = predict(network, pixels, device)
    answers = right(logits, labels)
    clean = is_clean(labels)
    spearman = {}
    generator = torch.Generator().manual_seed(0)
    rows = clean.nonzero().squeeze(1)
    subset = pixels[rows[torch.randperm(len(rows), generator=generator)[:GRADED]]] / 2 + 0.5
    for index, name in enumerate(CORRUPTIONS):
        severity = torch.rand(len(subset), generator=generator)
        damaged = corrupt(subset, torch.full((len(subset),), index), severity, generator)
        rated = predict(network, damaged * 2 - 1, device)["technical"]
        spearman[name] = -float(spearmanr(severity.numpy(), rated.numpy()).statistic)
    return {
        "accuracy": {head: float(values.nanmean()) for head, values in answers.items()},
        "cases": {head: float((~values.isnan()).sum()) for head, values in answers.items()},
        "severity_spearman": spearman,
        "graded": {"cases": float(len(subset))},
        "technical": {"clean": float(logits["technical"].sigmoid()[clean].mean())},
    }


def table(measured: Mapping[str, Mapping[str, float]]) -> Table:
    """The figures for a terminal."""
    out = Table("head or corruption", "accuracy or Spearman", "cases", title="the local judge, held out")
    for head, value in measured["accuracy"].items():
        out.add_row(head, f"{value:.1%}", f"{measured['cases'][head]:.0f}")
    out.add_section()
    graded = f"{measured['graded']['cases']:.0f}"
    for name, value in measured["severity_spearman"].items():
        out.add_row(f"technical quality against severity of {name}", f"{value:.3f}", graded)
    out.add_row("technical quality of clean images", f"{measured['technical']['clean']:.3f}", "")
    return out
