"""Soft prompts for language models."""
