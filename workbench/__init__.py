"""Workbench for few-step distillation recipes."""

__version__ = "0.1.0"
