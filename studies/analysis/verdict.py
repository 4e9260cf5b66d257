"""The first screen of a study's report: is its question answered, and in which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.analysis import replicates
from studies.analysis.arms import INSIDE, NO_DIFFERENCE, ONE_SEED, Floor
from studies.analysis.replicates import Spread

ENOUGH_SEEDS = 5
"""Below, the standard deviation between seeds is known to a factor of three only."""
TRIALS_PER_PARAMETER = 10
TITLES = {
    "score": "score",
    "t2i": "T2I-Bench",
    "editing": "Editing-Bench",
    "worst": "worst category",
    "diversity": "diversity",
}
Row = Mapping[str, Any]


def noise_verdict(found: Row | None) -> dict[str, Any]:
    """Of a noise floor."""
    if found is None:
        return _verdict("not answered yet", ["The noise floor needs two finished seeds at least; eight are planned."])
    three = next(row for row in found["planned"] if row["seeds"] == 3)
    lines = [
        f"Runs that differ in the seed alone have a {TITLES[found['objective']]} of {found['mean']:.3f} with "
        f"a standard deviation of {found['sd']:.3f} (95 %: {found['low']:.3f} to {found['high']:.3f}, "
        f"{found['seeds']} seeds{', ' + str(found['cases']) + ' cases' if found['cases'] else ''}).",
        f"With 3 seeds an arm a difference must be {three['alone']:.3f} to be found in 80 % of studies, "
        f"or {three['pooled']:.3f} where the study pools this noise floor in.",
    ]
    share = found["case_share"]
    if share is not None and share < 1:
        lines.append(
            f"{share:.0%} of the variance between runs would vanish with more cases; the rest is the runs' own."
        )
    elif share is not None:
        lines.append("Runs lie no further apart than so few cases make them: more cases show more than more seeds.")
    if found["seeds"] < ENOUGH_SEEDS:
        lines.append(f"Preliminary: {ENOUGH_SEEDS} seeds and more pin the deviation down.")
        return _verdict("answered in part", lines)
    return _verdict("answered", lines)


def arms_verdict(arms: Sequence[Row], rows: Sequence[Row], objective: str, spread: Spread | None) -> dict[str, Any]:
    """Of a replication: rows are the comparisons with the reference arm in the first objective."""
    told = [row for row in rows if row["objective"] == objective]
    missing = [arm["name"] for arm in arms if not arm["seeds"]]
    shown = [row for row in told if row["verdict"] not in (NO_DIFFERENCE, INSIDE, ONE_SEED)]
    unshown = [row for row in told if row["verdict"] in (NO_DIFFERENCE, INSIDE)]
    lines = []
    if shown:
        best = sorted(shown, key=lambda row: -row["difference"])
        said = [f"{row['arm']} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})" for row in best]
        lines.append(f"Against {told[0]['reference']}, {TITLES[objective]}: {'; '.join(said)}.")
    if unshown:
        lines.append(f"No difference shown for {', '.join(row['arm'] for row in unshown)}.")
        widest = max(unshown, key=lambda row: abs(row["difference"]))
        lines += _wanted(widest, spread)
    if told and all(row["verdict"] == ONE_SEED for row in told):
        lines.append("Every arm has one seed and no noise floor is known: no difference can be told from chance.")
    if not told:
        lines.append("The reference arm, or every other one, has no finished trial yet.")
    if missing:
        lines.append(f"Not finished once: {', '.join(missing)}.")
    if not told or len(shown) + len(unshown) == 0:
        return _verdict("not answered yet", lines)
    if missing or (shown and unshown):
        return _verdict("answered in part", lines)
    return _verdict("answered" if shown else "no difference shown", lines)


def _wanted(row: Row, spread: Spread | None) -> list[str]:
    """How many seeds would show the largest of the differences that were not; or, where as many have run already, that
    something else is lacking: cases, or seeds by the wider spread of the noise floor."""
    if spread is None:
        return []
    num = replicates.seeds_needed(spread, row["difference"])
    if num is None:
        lacking = f"more than {replicates.MAX_SEEDS} seeds an arm"
    elif num > min(row["seeds"]):
        lacking = f"{num} seeds an arm"
    else:
        inside = row["verdict"] == INSIDE
        lacking = "more seeds, by the noise floor's deviation," if inside else "more cases, not seeds,"
    return [f"The largest of these, {row['arm']} {row['difference']:+.3f}, would take {lacking} to show."]


def search_verdict(
    trials: Sequence[Row], front: Sequence[int], objectives: Sequence[str], importance: Row, floor: Floor | None
) -> dict[str, Any]:
    """Of a search; trials are the finished ones."""
    spreads = {name: floor.spreads[name] for name in objectives if name in floor.spreads} if floor else {}
    least = {name: replicates.minimal_difference(spread, 1, 1, spread.df) for name, spread in spreads.items()}
    num_parameters = len({name for trial in trials for name in trial["params"]})
    if not trials:
        return _verdict("not answered yet", ["No drawn recipe has a score yet."])
    lines = [f"{len(trials)} recipes drawn from a space of {num_parameters} parameters."]
    if len(objectives) > 1:
        lines.append(f"{len(front)} of them are on the front: none is beaten in {', '.join(objectives)} at once.")
    tops = {name: max(trials, key=lambda trial: trial["values"][name]) for name in objectives}
    said = [f"{TITLES[name]} {trial['values'][name]:.3f} (trial {trial['number']})" for name, trial in tops.items()]
    lines.append(f"Best: {', '.join(said)}.")
    ranked = {name: sorted(shares, key=lambda key: -shares[key])[:3] for name, shares in importance.items()}
    if ranked:
        said = [f"{TITLES[name]}: {', '.join(names)}" for name, names in ranked.items()]
        lines.append(f"What tells the best from the rest: {'; '.join(said)}.")
    if least:
        said = [f"{value:.3f} in {TITLES[name]}" for name, value in least.items()]
        lines.append(f"By the noise floor, single runs closer than {', '.join(said)} are not told apart.")
    lines.append(
        "The best of many draws looks better than it is: run it again under several seeds before believing it."
    )
    enough = TRIALS_PER_PARAMETER * num_parameters
    if len(trials) < enough:
        lines.append(f"Preliminary: about {enough} trials ({TRIALS_PER_PARAMETER} a parameter) would cover the space.")
        return _verdict("answered in part", lines)
    return _verdict("answered", lines)


def _verdict(status: str, lines: Sequence[str]) -> dict[str, Any]:
    return {"status": status, "lines": list(lines)}
