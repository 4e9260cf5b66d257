"""The first screen of a study's report: is its question answered, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.analysis import replicates
from studies.analysis.arms import Floor
from studies.analysis.importance import Importance
from workbench.evaluation.measures.catalogue import MEASURES

ENOUGH_SEEDS = 5
"""Below, the standard deviation between seeds is known to a factor of three only."""
TRIALS_PER_PARAMETER = 10
KINDS = ("better", "equivalent", "undecided", "one seed")
TITLES = {
    "score": "score",
    "t2i": "T2I-Bench",
    "editing": "Editing-Bench",
    "worst": "worst category",
    "variety": "variety",
    "diversity": "diversity",
    **{name: of.title if of.sign > 0 else f"{of.title}, negated" for name, of in MEASURES.items()},
}
Row = Mapping[str, Any]


def noise_verdict(found: Row | None) -> dict[str, Any]:
    """Verdict of a noise-floor study."""
    if found is None:
        return _verdict("not answered yet", ["The noise floor needs two finished seeds at least; eight are planned."])
    three = next(row for row in found["planned"] if row["seeds"] == 3)
    lines = [
        f"Runs that differ in the seed alone have a {TITLES[found['objective']]} of {found['mean']:.3f} with "
        f"a standard deviation of {found['sd']:.3f} (95 %: {found['low']:.3f} to {found['high']:.3f}, "
        f"{found['seeds']} seeds{', ' + str(found['cases']) + ' cases' if found['cases'] else ''}).",
        f"With 3 seeds an arm a difference must be {three['least']:.3f} to be found in 80 % of studies.",
    ]
    if found["case_share"] is not None:
        low, high = found["case_share"]
        lines.append(
            f"Between {low:.0%} and {high:.0%} of the variance between runs would vanish with more cases (95 %); the "
            "rest is the runs' own."
        )
    if found["seeds"] < ENOUGH_SEEDS:
        lines.append(f"Preliminary: {ENOUGH_SEEDS} seeds and more pin the deviation down.")
        return _verdict("answered in part", lines)
    return _verdict("answered", lines)


def arms_verdict(
    arms: Sequence[Row],
    rows: Sequence[Row],
    objective: str,
    margin: float,
    categories: Mapping[tuple[str, tuple[str, str]], str],
    not_asked: Sequence[str] = (),
) -> dict[str, Any]:
    """Verdict of a replication; rows are the comparisons with the reference arm, categories the verdicts there.
    not_asked: arms of the study that no call asked for."""
    compared = [row for row in rows if row["objective"] == objective]
    missing = [arm["name"] for arm in arms if not arm["seeds"]]
    of_kind = {kind: [row for row in compared if row["kind"] == kind] for kind in KINDS}
    lines = []
    if of_kind["better"]:
        best = sorted(of_kind["better"], key=lambda row: -row["difference"])
        found = [f"{row['arm']} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})" for row in best]
        lines.append(f"Against {compared[0]['reference']}, {TITLES[objective]}: {'; '.join(found)}.")
    if of_kind["equivalent"]:
        names = ", ".join(row["arm"] for row in of_kind["equivalent"])
        lines.append(f"Equivalent to {compared[0]['reference']} within {margin:g}: {names}.")
    for row in of_kind["undecided"]:
        lines.append(
            f"Undecided: {row['arm']} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}). To show a "
            f"difference of {margin:g}, or that there is none, takes {row['takes']}."
        )
    lines += _category_lines(categories)
    if of_kind["one seed"]:
        lines.append("Every arm has one seed: nothing is known of how far other seeds would end.")
    if not compared:
        lines.append("The reference arm, or every other one, has no finished trial yet.")
    if missing:
        lines.append(f"Not finished once: {', '.join(missing)}.")
    if not_asked:
        lines.append(f"Not asked for: {', '.join(not_asked)}.")
    decided = len(of_kind["better"]) + len(of_kind["equivalent"])
    if not compared or of_kind["one seed"]:
        return _verdict("not answered yet", lines)
    if decided == 0:
        return _verdict("undecided", lines)
    return _verdict("answered in part" if missing or not_asked or of_kind["undecided"] else "answered", lines)


def _category_lines(categories: Mapping[tuple[str, tuple[str, str]], str]) -> list[str]:
    found: dict[str, dict[str, list[str]]] = {}
    for (arm, (bench, category)), kind in categories.items():
        if kind not in ("better", "worse"):
            continue
        name = f"{'T2I' if bench == 't2i_bench' else 'edit'} {category}"
        found.setdefault(arm, {}).setdefault(kind, []).append(name)
    parts = [
        f"{arm} " + ", ".join(f"{kind} in {', '.join(names)}" for kind, names in kinds.items())
        for arm, kinds in found.items()
    ]
    return [f"By category: {'; '.join(parts)}."] if parts else []


def effects_verdict(rows: Sequence[Row], objective: str, margin: float, missing: int) -> dict[str, Any]:
    """Verdict of a screening; rows are the main effects on the objective, `missing` runs have no score yet."""
    if not rows:
        return _verdict(
            "not answered yet", [f"Main effects need every run of the design: {missing} have no score yet."]
        )
    of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("matters", "equivalent", "undecided")}
    lines = []
    if of_kind["matters"]:
        found = [
            f"{row['name']} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
            for row in of_kind["matters"]
        ]
        lines.append(f"What moves the {TITLES[objective]}, from the low level to the high one: {'; '.join(found)}.")
    if of_kind["equivalent"]:
        lines.append(f"By less than {margin:g}: {', '.join(row['name'] for row in of_kind['equivalent'])}.")
    for row in of_kind["undecided"]:
        lines.append(
            f"Undecided: {row['name']} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}). To show an "
            f"effect of {margin:g}, or that there is none, takes {row['takes']}."
        )
    decided = len(of_kind["matters"]) + len(of_kind["equivalent"])
    return _verdict("undecided" if not decided else "answered in part" if of_kind["undecided"] else "answered", lines)


def search_verdict(
    trials: Sequence[Row],
    front: Sequence[int],
    objectives: Sequence[str],
    importance: Mapping[str, Mapping[str, Importance]],
    floor: Floor | None,
) -> dict[str, Any]:
    """Verdict of a search; trials are the finished ones."""
    spreads = {name: floor.spreads[name] for name in objectives if name in floor.spreads} if floor else {}
    least = {name: replicates.minimal_difference(spread, 1, 1, spread.df) for name, spread in spreads.items()}
    num_parameters = len({name for trial in trials for name in trial["params"]})
    if not trials:
        return _verdict("not answered yet", ["No drawn recipe has a score yet."])
    lines = [f"{len(trials)} recipes drawn from a space of {num_parameters} parameters."]
    if len(objectives) > 1:
        lines.append(f"{len(front)} of them are on the front: none is beaten in {', '.join(objectives)} at once.")
    tops = {name: max(trials, key=lambda trial: trial["values"][name]) for name in objectives}
    parts = [f"{TITLES[name]} {trial['values'][name]:.3f} (trial {trial['number']})" for name, trial in tops.items()]
    lines.append(f"Best: {', '.join(parts)}.")
    if importance:
        ranked = {name: [key for key, found in of.items() if found.shown] for name, of in importance.items()}
        parts = [f"{TITLES[name]}: {', '.join(names) or 'nothing beyond chance'}" for name, names in ranked.items()]
        lines.append(f"What sets the best apart from the rest: {'; '.join(parts)}.")
    if least:
        parts = [f"{value:.3f} in {TITLES[name]}" for name, value in least.items()]
        lines.append(f"By the noise floor, single runs closer than {', '.join(parts)} cannot be told apart.")
    lines.append(
        "The best of many draws looks better than it is: workbench study FOLDER, with the folder of this search, "
        "runs it again under five fresh seeds, on cases that it was not chosen by."
    )
    enough = TRIALS_PER_PARAMETER * num_parameters
    if len(trials) < enough:
        lines.append(f"Preliminary: about {enough} trials ({TRIALS_PER_PARAMETER} a parameter) would cover the space.")
        return _verdict("answered in part", lines)
    return _verdict("answered", lines)


def _verdict(status: str, lines: Sequence[str]) -> dict[str, Any]:
    return {"status": status, "lines": list(lines)}
