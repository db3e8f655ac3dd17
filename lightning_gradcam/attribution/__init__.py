"""A model and a batch to signed maps; knows torch alone."""
