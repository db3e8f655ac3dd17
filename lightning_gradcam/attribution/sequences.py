"""Sequences of any kind to lists, where an argument comes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def as_list(value: Any) -> Any:
    """Arrays, tensors and sequences of any kind as a list, an array's numbers as Python's own; else what was given.

    A list of a configuration library is a ``Sequence`` and no ``list``; arrays, tensors and series are neither.
    """
    if is_array(value):
        return value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return value
    items: list[Any] = list(value)
    return [one.tolist() if is_array(one) and not one.ndim else one for one in items]


def part_of(values: Any, which: slice | list[int]) -> Any:
    """Some of a tensor's rows or of a sequence's items, of an empty one none."""
    if isinstance(which, slice) or is_array(values):
        return values[which]
    return [values[i] for i in which] if len(values) else values


def is_array(value: Any) -> bool:
    """Whether the value is an array, a tensor or a series."""
    return hasattr(type(value), "tolist") and hasattr(value, "ndim")
