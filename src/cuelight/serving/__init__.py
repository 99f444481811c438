"""Many learned prompts on one backbone: in Python a `Pool`, over HTTP ``cuelight serve``."""

from cuelight.serving.pool import Pool

__all__ = ["Pool"]
