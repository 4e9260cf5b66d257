"""Runs the trials of a study: queue, workers, storage."""
