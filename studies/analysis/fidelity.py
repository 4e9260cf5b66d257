"""How far two proxies agree about recipes: `python -m studies.analysis.fidelity FOLDER FOLDER ... [objective=t2i]`.

FOLDER: of one study, run on each proxy. What the seeds of each proxy blur is taken out of the correlation.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy

from studies.analysis import arms
from studies.analysis.comparisons import among_all, measure
from studies.analysis.spread import MeanSpread, mean_spread
from workbench.common.errors import UserError
from workbench.common.tables import Table, stdout_console
from workbench.evaluation.measures.statistics import CONFIDENCE


@dataclass(frozen=True)
class Agreement:
    """Of the means of the same arms on two proxies. observed: their correlation. corrected: of the arms' own effects,
    with its interval, NaN where a proxy's means are noise alone. spreads: of the two proxies."""

    observed: float
    corrected: float
    low: float
    high: float
    spreads: tuple[MeanSpread, MeanSpread]


def agreement(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Agreement | None:
    """Of the runs of the same arms, in the same order: the correlation divided by the root of both reliabilities
    (Spearman, American Journal of Psychology 15, 1904), the bounds of Fisher's z likewise. A corrected value may lie
    beyond 1 by chance; bounds do not.

    None for fewer than four arms, or where no spread is known.
    """
    our_spread, their_spread = mean_spread(ours), mean_spread(theirs)
    if len(ours) != len(theirs) or len(ours) < 4 or our_spread is None or their_spread is None:
        return None
    spreads = (our_spread, their_spread)
    means = [
        [float(np.mean(of[: spread.seeds])) for of in runs]
        for runs, spread in zip((ours, theirs), spreads, strict=True)
    ]
    observed = float(np.corrcoef(np.array(means))[0, 1])
    attenuation = math.sqrt(spreads[0].reliability * spreads[1].reliability) or math.nan
    z, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, observed))), _two_sided() / math.sqrt(len(ours) - 3)
    low, high = (max(-1.0, min(1.0, math.tanh(z + sign * half) / attenuation)) for sign in (-1, 1))
    unknown = math.isnan(attenuation)
    return Agreement(
        observed,
        observed / attenuation,
        math.nan if unknown else low,
        math.nan if unknown else high,
        spreads,
    )


def _two_sided() -> float:
    return float(scipy.special.ndtri((1 + CONFIDENCE) / 2))


def reversals(ours: Mapping[tuple[str, str], str], theirs: Mapping[tuple[str, str], str]) -> list[tuple[str, str]]:
    """Pairs of arms of which one is shown better on one proxy and worse on the other."""
    return sorted(
        pair for pair, shown in ours.items() if {shown, theirs.get(pair)} == {"better", "worse"} and pair[0] < pair[1]
    )


def _read(folder: Path, objective: str) -> tuple[dict[str, list[float]], dict[tuple[str, str], str]]:
    """Values of every finished arm, and what is shown of each pair."""
    study = arms.read_study(folder)
    if not study:
        raise UserError(f"{folder} holds no study.json: give the folders of studies")
    found = [arm for arm in arms.replicated(arms.read_arms(folder, study)) if arm.values(objective)]
    rows = among_all(measure(found, objective, study.get("reference")))
    shown = {(row["name"], other): cell["shown"] for row in rows for other, cell in row["cells"].items()}
    return {arm.name: arm.values(objective) for arm in found}, shown


def compared(folders: Sequence[Path], objective: str) -> Table:
    """A row for every pair of proxies. Raises: UserError where a pair has too few arms in common."""
    table = Table(
        "proxies", "arms", "spread / SE", "reliability", "observed", "corrected", "95 % interval", "reversed",
        title=f"{objective}: agreement of proxies",
    )  # fmt: skip
    read = {folder: _read(folder, objective) for folder in folders}
    for one, other in itertools.combinations(folders, 2):
        (ours, our_pairs), (theirs, their_pairs) = read[one], read[other]
        shared = [name for name in ours if name in theirs]
        found = agreement([ours[name] for name in shared], [theirs[name] for name in shared])
        if found is None:
            raise UserError(f"{one} and {other} share {len(shared)} finished arms: it takes four, with two seeds each")
        table.add_row(
            f"{one.name}, {other.name}",
            str(len(shared)),
            ", ".join(f"{of.ratio:.1f}" for of in found.spreads),
            ", ".join(f"{of.reliability:.2f}" for of in found.spreads),
            f"{found.observed:.2f}",
            f"{found.corrected:.2f}",
            f"{found.low:.2f} to {found.high:.2f}",
            "; ".join(f"{a} and {b}" for a, b in reversals(our_pairs, their_pairs)) or "none",
        )
    return table


def main(words: Sequence[str]) -> int:
    """Command line: FOLDER FOLDER ... [objective=NAME]"""
    named = dict(word.split("=", 1) for word in words if word.startswith("objective="))
    folders = [Path(word) for word in words if not word.startswith("objective=")]
    try:
        if len(folders) < 2:
            raise UserError("give the folders of two studies or more")
        stdout_console().print(compared(folders, named.get("objective", "score")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
