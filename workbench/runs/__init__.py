"""From a recipe to a run folder: the only part that sees data and modules."""
