"""Maps to numbers, one a sample: pure functions of tensors."""
