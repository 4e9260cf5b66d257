"""Searches and comparisons over recipes, and how the tiny model was made."""
