"""Benchmarks, judges, statistics: from models to `metrics.json`."""
