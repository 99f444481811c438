"""Text prompts that are found by search."""
