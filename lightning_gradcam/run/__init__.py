"""One training run: what is looked at, when, and where it goes."""
