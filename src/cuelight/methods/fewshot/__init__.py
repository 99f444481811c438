"""Few labels: templates, verbalizers, and what is built on them."""
