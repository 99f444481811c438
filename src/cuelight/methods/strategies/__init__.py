"""The survey's inference techniques, one file each; see `cuelight.methods.strategy` for what a strategy is."""

holds_methods = False
"""Strategies are called on a question, not tuned: `cuelight.methods.cards` passes by."""
