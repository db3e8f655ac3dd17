"""Maps and photos to one picture."""
