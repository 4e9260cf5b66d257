"""A run's student on its way out: the pipeline folder or LoRA file, and the model card with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field
from torch import Tensor

from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.left_out import LeftOut
from datamodules.shards.packed import Made
from workbench.backbones import families, lora_files, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.finite import FiniteTensors
from workbench.backbones.folders import sample_sigmas
from workbench.backbones.load import load_roles, stored_base
from workbench.backbones.lora import role_adapters
from workbench.backbones.provenance import stated_by
from workbench.backbones.stored_weights import is_empty
from workbench.common import files
from workbench.common.console import say
from workbench.common.errors import UserError
from workbench.common.jsonl import read_scalars
from workbench.common.outside import Count, Outside, read_json
from workbench.evaluation.model_card import CARD_START, Origin, lora_card, model_card, with_scores
from workbench.evaluation.places import evaluations
from workbench.evaluation.trained_student import describe_student, student_of
from workbench.method.rollout import Sampling
from workbench.recipe.config import Guidance, Recipe
from workbench.recipe.reading import recipe_hash
from workbench.recipe.student_times import student_sampling
from workbench.runs import checkpoint
from workbench.runs.collapse import CollapseMonitor
from workbench.runs.run_folder import RunFolder

SHORT_KEYS = {"license": "model.license", "base_model": "model.base_model"}
KEYS = (*SHORT_KEYS.values(), "model.folder", "trainer.keep", "data.encoded")
"""What an export may change: where the teacher lies, what the card says, which student."""


class DataRecord(Outside):
    """What a card and a report say of the data, kept in the run folder, which may outlive the shards."""

    samples: Count
    categories: list[str]
    attribution: str
    resolution: Count | None = None
    left_out: LeftOut = Field(default_factory=LeftOut)
    made: dict[str, Made] = Field(default_factory=dict)

    @classmethod
    def of(cls, dataset: EncodedDataset) -> DataRecord:
        """What the index of encoded shards says."""
        return cls(
            samples=len(dataset),
            categories=list(dataset.categories),
            attribution=dataset.attribution,
            resolution=dataset.resolution,
            left_out=dataset.left_out,
            made=dataset.made,
        )


@rank_zero_only
def record_data(folder: RunFolder, dataset: EncodedDataset) -> None:
    """Keep in the run folder what the card and the report say of the data."""
    files.write_json(folder.data, DataRecord.of(dataset).model_dump())


def export_and_say(run: Path, out: Path, lora: bool, form: str | None, overrides: Iterable[str]) -> None:
    """`export_run`, and in words what was written and how it is sampled."""
    if re.match(r"[a-z_]+(\.[a-z_]+)*=", str(out)):
        raise UserError(f"{out} stands where the file or folder to write belongs: export RUN OUT [key=value ...]")
    if form is not None and not lora:
        raise UserError(f"--format {form} is a form of LoRA files: add --lora")
    sigmas = export_run(run, out, lora, overrides, form or "diffusers")
    print(f"wrote {out}")
    if lora:
        print(f"wrote {out.with_suffix('.md')}")
        grid = ", ".join(f"{sigma:.6g}" for sigma in sigmas)
        if form == "comfyui":
            print(f"in ComfyUI: LoraLoaderModelOnly at strength 1, cfg 1, sigmas {grid}, 0")
        else:
            print(f'over the teacher: pipeline.load_lora_weights("{out}"), then sigmas=[{grid}]')
            print(f"under a scheduler that leaves sigmas as they are: {out.with_suffix('.md')} has the lines")


def export_run(run: Path, out: Path, lora: bool, overrides: Iterable[str] = (), form: str = "diffusers") -> list[float]:
    """Write the averaged student of `run`'s newest checkpoint, or with `trainer.keep=best` of its best milestone, to
    `out`: a pipeline folder, or a LoRA file in one of `lora_files.FORMS` with its card next to it. Returns the times
    that it is sampled at, from 1 down, without the 0.

    overrides: of `KEYS` and `SHORT_KEYS`.

    Raises:
        UserError: no run, no checkpoint, an override of another key, or a LoRA of a student with full weights.
    """
    folder = RunFolder(run)
    recipe = folder.read_recipe(_checked(overrides))
    if lora:
        _check_lora_file(out)
    found = checkpoint.newest_whole(folder.checkpoints)
    if found is None and folder.student.is_dir():
        raise UserError(f"{run} is finished and its checkpoints are deleted: its student is {folder.student}")
    if found is None:
        raise UserError(f"{run} has no checkpoint yet: let it reach trainer.checkpoint_every updates")
    if lora and recipe.model.roles != "lora":
        raise UserError(f"{run} trained full weights (model.roles=full): export without --lora")
    path, update = found[0], found[1].num_updates
    if recipe.trainer.keep == "best":
        best = best_kept(folder.checkpoints, CollapseMonitor.of(read_scalars(folder.milestones)))
        if best is not None:
            path, update = checkpoint.best_of(folder.checkpoints, best), best
    denoiser = _trained_alone(recipe)
    named = {parameter: name for name, parameter in roles.trained_parameters(denoiser, roles.STUDENT).items()}
    how = student_sampling(recipe.dmd)
    if recipe.model.roles == "full":
        transformer = denoiser.network(roles.STUDENT).transformer
        stored = {name: (named[parameter], parameter.detach()) for name, parameter in transformer.named_parameters()}
        export_student(folder, recipe, checkpoint.StoredStudent(path, stored), out, update)
        return sample_sigmas(how.grid())
    adapters_of = {name: parameter.detach() for parameter, name in named.items()}
    checkpoint.load(path, {checkpoint.delivered(checkpoint.contents(path)): adapters_of})
    if lora:
        network = denoiser.network(roles.STUDENT)
        chosen, adapters = lora_files.FORMS[form], role_adapters(network.transformer, roles.STUDENT)
        header = _header(folder, how)
        lora_files.write(adapters, out, header=header, form=chosen, fused=network.fused_layers)
        _write_lora_card(folder, recipe, out, form == "comfyui", update)
    else:
        base = stored_base(recipe, None) if is_empty(denoiser) else None
        export_student(folder, recipe, roles.MergedState(denoiser, roles.STUDENT, base), out, update)
    return sample_sigmas(how.grid())


def _trained_alone(recipe: Recipe) -> RoleNetworks:
    """The networks without specialists and what the student started from: a checkpoint holds all that was trained. They
    come without values, but for adapters: these are read from there, or from the teacher's folder, one by one."""
    teacher = families.load(recipe.model.folder, text_encoder=False, empty=True)
    alone = replace(
        recipe,
        # Adapters are merged into weights as the folder has them.
        model=replace(recipe.model, student=None, frozen="auto"),
        teachers=replace(recipe.teachers, specialists={}),
        guidance=Guidance(),
    )
    return load_roles(alone, teacher)


def _check_lora_file(out: Path) -> None:
    """Before anything is loaded. A text of the user's where the card belongs is not written over."""
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: name a .safetensors file to write")
    card = out.with_suffix(".md")
    if card.exists() and not (card.is_file() and card.read_bytes().startswith(CARD_START.encode())):
        raise UserError(f"{card} exists and is no model card: name another file, or move it")


def export_student(
    folder: RunFolder, recipe: Recipe, student_state: Mapping[str, Tensor], out: Path, update: int
) -> None:
    """Write a run's student of `update` as a pipeline folder with its model card (collective).

    student_state: see `PipelineModel.export`.

    Raises:
        UserError: a weight is not finite, or the folder cannot be written.
    """
    remedy = "train it again, from an earlier checkpoint or another recipe"
    checked = FiniteTensors("the student", student_state, remedy)
    teacher, how = families.resolve(recipe.model.folder), student_sampling(recipe.dmd)
    family, origin = families.family_of(teacher), _origin(folder, recipe)
    draw = family.drawing_code(teacher, how, origin.resolution, origin.tasks, stored=True)
    card = _with_scores(model_card(origin, families.class_of(teacher), how, draw), folder, update)

    def finish(written: Path) -> None:
        (written / "README.md").write_text(card)
        families.state_resolution(written, recipe.data.resolution)
        describe_student(written, update)

    family.export(teacher, checked, how, out, finish)


def best_kept(folder: Path, monitor: CollapseMonitor) -> int | None:
    """The best milestone, where the last one is clearly worse and the weights of the best are there; None where the
    last one is to be delivered."""
    best = monitor.best_to_keep()
    if best is None:
        return None
    if not checkpoint.has_best(folder, best):
        say(f"the student of update {best} was better, but its weights are gone or damaged: the last one is kept")
        return None
    say(f"the student of update {best} is delivered: at the end of the run it was clearly worse")
    return best


def return_to_best(folder: Path, monitor: CollapseMonitor, average: Mapping[str, Tensor]) -> int | None:
    """Read the weights of the best milestone into `average`, where it is to be delivered; its update, or None."""
    best = best_kept(folder, monitor)
    if best is not None:
        checkpoint.load_best(folder, average, best)
    return best


def _checked(overrides: Iterable[str]) -> list[str]:
    """The overrides under the recipe's own keys."""
    checked = []
    for item in overrides:
        key, _, value = item.partition("=")
        key = SHORT_KEYS.get(key, key)
        if key not in KEYS:
            known = ", ".join((*SHORT_KEYS, *KEYS[len(SHORT_KEYS) :]))
            raise UserError(f"export takes no {key}: the student is exported as it was trained; it takes {known}")
        checked.append(f"{key}={value}")
    return checked


def _header(folder: RunFolder, how: Sampling) -> dict[str, str]:
    header = {"sample_sigmas": json.dumps(sample_sigmas(how.grid())), "recipe_hash": recipe_hash(folder.read_recipe())}
    return header | ({"stochastic_sampling": "true"} if how.stochastic else {})


def _write_lora_card(folder: RunFolder, recipe: Recipe, out: Path, comfyui: bool, update: int) -> None:
    teacher, how, origin = families.resolve(recipe.model.folder), student_sampling(recipe.dmd), _origin(folder, recipe)
    draw = families.family_of(teacher).drawing_code(teacher, how, origin.resolution, origin.tasks, stored=False)
    text = lora_card(origin, families.class_of(teacher), how, draw, out.name, comfyui)
    files.write_bytes(out.with_suffix(".md"), _with_scores(text, folder, update).encode())


def _with_scores(card: str, folder: RunFolder, update: int) -> str:
    """The card with the run's scores, where they are of the student of `update`."""
    found = [scored for _, scored in evaluations(folder.path).values() if scored.student is not None]
    student = student_of(folder.path) if found else None
    same = [of for of in found if student is not None and student.update == update and of.student == student]
    return with_scores(card, same) if same else card


def _origin(folder: RunFolder, recipe: Recipe) -> Origin:
    """What the card says, from the recipe, the teacher's folder and the run folder; a line asks for what is missing."""
    stated = stated_by(families.resolve(recipe.model.folder))
    if recipe.model.license:
        stated = {name: value for name, value in stated.items() if not name.startswith("license")}
        stated["license"] = recipe.model.license
    if recipe.model.base_model:
        stated["base_model"] = recipe.model.base_model
    data = _data(folder, recipe)
    origin = Origin(
        title=f"Distilled from {recipe.model.folder}",
        recipe_hash=recipe_hash(folder.read_recipe()),
        data=f"{data.samples} samples of {', '.join(data.categories)}",
        licence=data.attribution,
        fields=stated,
        tasks=[task for task, share in recipe.mixture.tasks.items() if share > 0],
        resolution=data.resolution or recipe.data.resolution,
    )
    ships = recipe.model.folder in families.SHIPPED
    if missing := [f"model.{name}" for name in origin.missing if not (ships and name == "base_model")]:
        say(
            f"the model card lacks what {recipe.model.folder} does not say: {', '.join(missing)}; give "
            f"{' '.join(f'{key}={EXAMPLES[key]}' for key in missing)}"
        )
    return origin


EXAMPLES = {"model.license": "apache-2.0", "model.base_model": "OWNER/NAME"}


def _data(folder: RunFolder, recipe: Recipe) -> DataRecord:
    """As recorded; of a run from before there was a record, from its shards."""
    if folder.data.is_file():
        return read_json(folder.data, DataRecord, "copy the run folder again")
    return DataRecord.of(EncodedDataset(recipe.data.encoded))
