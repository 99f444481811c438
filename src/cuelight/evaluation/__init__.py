"""Evaluation: running methods over rows, comparing them, tables and plots."""

from cuelight.evaluation.evaluate import evaluate, predict_items

__all__ = ["evaluate", "predict_items"]
