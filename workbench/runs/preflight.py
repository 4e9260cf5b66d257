"""Whether encoded data fit a recipe, checked before anything is trained."""

from __future__ import annotations

import math

from lightning.pytorch.utilities import rank_zero_only

from datamodules.shards.encoded import EncodedDataset
from workbench.backbones.family import PipelineModel
from workbench.common.console import say
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe
from workbench.runs.encoding import encoder_fingerprint

_ROUGHLY = 2.0


def check_data(dataset: EncodedDataset, teacher: PipelineModel, recipe: Recipe) -> None:
    """Warn of data that another encoder may have made.

    Raises: UserError for embeddings of another width than the teacher reads, shards of another resolution than the
        recipe's, and samples that lack what a loss needs.
    """
    _check_width(dataset, teacher, recipe)
    check_resolution(dataset, teacher.pixels_per_token, recipe)
    _warn_of_other_weights(dataset, recipe)
    _check_targets(dataset, recipe)


def check_resolution(dataset: EncodedDataset, pixels_per_token: int, recipe: Recipe) -> None:
    """`data.resolution` is what the run is known by, and what its evaluation draws at.

    Raises: UserError for shards of another one.
    """
    wanted, found = recipe.data.resolution, dataset.resolution
    if found is None:  # an index of before it was kept: sizes say it roughly
        pixels = [shape.height * shape.width * pixels_per_token**2 for shape in dataset.geometries]
        if any(wanted**2 / _ROUGHLY < count < wanted**2 * _ROUGHLY for count in pixels):
            return
        found = round(math.sqrt(max(pixels)))
    if found != wanted:
        raise UserError(
            f"data.resolution is {wanted}, and the shards of {recipe.data.encoded} were encoded at {found}: set "
            f"data.resolution={found}, or pack and encode again at {wanted}"
        )


def _check_width(dataset: EncodedDataset, teacher: PipelineModel, recipe: Recipe) -> None:
    """Embeddings of another text encoder would train without a word and be worth nothing."""
    expected = teacher.embedding_dim
    if dataset.embedding_dim != expected:
        raise UserError(
            f"{recipe.data.encoded} was encoded with another pipeline (embeddings of width {dataset.embedding_dim}, "
            f"{recipe.model.folder} reads {expected}): run `workbench encode` with this model.folder"
        )


@rank_zero_only
def _warn_of_other_weights(dataset: EncodedDataset, recipe: Recipe) -> None:
    """No more than a warning: a copy that was saved again has the same weights in other files."""
    if dataset.pipeline_fingerprint != encoder_fingerprint(recipe.model.folder):
        say(
            f"warning: {recipe.data.encoded} was encoded with other files of text encoder or autoencoder than those "
            f"of {recipe.model.folder}: if their weights differ, run `workbench encode` into another data.encoded"
        )


def _check_targets(dataset: EncodedDataset, recipe: Recipe) -> None:
    """Some terms of the loss need a target of every sample that the mixture plans."""
    option = recipe.dmd.needs_targets
    if option is None:
        return
    planned = [recipe.mixture.has_weight(name) for name in dataset.categories]
    for i, category in enumerate(dataset.samples.category.tolist()):
        if planned[category] and not dataset.has_target(i):
            raise UserError(
                f"dmd.{option} needs a target of every sample, but {dataset.samples.keys[i]} of "
                f"{dataset.categories[category]} has none: leave it out, take that category out of mixture.categories, "
                "or encode data with pictures"
            )
