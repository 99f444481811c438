"""How the small weights that come with cuelight were made."""
