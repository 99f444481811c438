"""Web pages over the same calls; needs the extra ``studio``."""
