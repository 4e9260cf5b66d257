"""The best recipe of a search, run again: the best of many draws looks better than it is, and it was chosen on the
cases of the search split. Here it meets the base recipe under fresh seeds on the report split.

    workbench study runs/studies/search              the winner, against the base recipe of that search
    workbench study runs/studies/search/trial-0017   another of its trials
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from studies.analysis import arms
from studies.machine.options import base_words, parse
from studies.reading import StudyFile
from studies.study import Differences, Study
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load

NUM_SEEDS = 5
BASE = "base"


def is_folder(name: str) -> bool:
    """Whether `name` is the folder of a study, or the run folder of one of its trials."""
    return any((place / "study.json").is_file() for place in (Path(name), Path(name).resolve().parent))


def winner_of(place: Path) -> Study:
    """The study of the winner of the search in the folder `place`, or of the trial whose run folder it is.

    Raises: UserError if no trial there has finished, or its recipe is gone.
    """
    is_study = (place / "study.json").is_file()
    folder = place if is_study else place.parent
    study = arms.read_study(folder)
    trial = _winner(folder, study) if is_study else _trial_at(place, study)
    run = arms.run_folder(folder, trial)
    assert run is not None
    drawn, words = load(run / "recipe.yaml"), base_words(study.get("command", [])[1:])
    options = parse("search", words)
    again = folder.with_name(f"{folder.name}-{'winner' if is_study else run.name}")
    measured = ["score"] if "score" in trial["values"] else []
    measured += [name for name in study["objectives"] if name not in measured]
    return StudyFile(
        QUESTION=f"Does {run.name} of {folder.name} hold under fresh seeds, on cases that it was not chosen by?",
        ARMS={BASE: {}, run.name: differences(drawn, load(options.recipe, options.overrides))},
        SEEDS=tuple(drawn.seed + i for i in range(1, NUM_SEEDS + 1)),
        OBJECTIVES=tuple(measured),
        SPLIT="report",
        WORDS=(*words, f"folder={again}"),
    )


def _finished(study: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        {**trial, "arm": arm["name"]}
        for arm in study.get("arms", [])
        for trial in arm["trials"]
        if trial.get("state") == "complete" and trial.get("values") and trial.get("run")
    ]


def _winner(place: Path, study: Mapping[str, Any]) -> Mapping[str, Any]:
    """The best draw by the objective; of several objectives the best by the score on their front."""
    drawn = [trial for trial in _finished(study) if trial["arm"] == arms.SEARCH]
    if not drawn:
        raise UserError(f"no draw of a search in {place} has finished: run `workbench study search` there first")
    first = study["objectives"][0]
    on_front = [trial for trial in drawn if trial["number"] in (study.get("front") or [])]
    by = "score" if len(study["objectives"]) > 1 and all("score" in trial["values"] for trial in drawn) else first
    return max(on_front or drawn, key=lambda trial: trial["values"][by])


def _trial_at(place: Path, study: Mapping[str, Any]) -> Mapping[str, Any]:
    for trial in _finished(study):
        if Path(trial["run"]).name == place.name:
            return trial
    raise UserError(f"{place} is no finished trial of the study in {place.parent}")


def differences(recipe: Recipe, base: Recipe) -> Differences:
    """What `recipe` sets otherwise than `base`, but for its evaluation, its seed and its folder."""
    recipe = replace(recipe, trainer=replace(recipe.trainer, folder=base.trainer.folder))
    ours, theirs = asdict(recipe), asdict(base)
    found = {
        section: {key: value for key, value in values.items() if value != theirs[section][key]}
        for section, values in ours.items()
        if section not in ("evaluation", "seed")
    }
    return {section: values for section, values in found.items() if values}
