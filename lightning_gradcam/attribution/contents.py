"""What an object holds, read and set past what its own class would do instead."""

from __future__ import annotations

import copyreg
from collections import OrderedDict, deque
from functools import lru_cache
from types import CellType
from typing import Any

LISTS = (list, set, deque)
MISSING = object()


def set_names(own: dict[Any, Any], names: dict[Any, Any]) -> None:
    """Let a dict hold these and nothing else."""
    kind: Any = OrderedDict if type(own) is OrderedDict else dict  # past what a class of the user's does instead
    kind.clear(own)
    kind.update(own, names)


def items_of(value: Any) -> list[Any]:
    """What a value holds in places without a name of their own: the content of a cell, slots, items."""
    kind = type(value)
    if kind is CellType:
        return [] if value == CellType() else [value.cell_contents]
    items = [getattr(value, name, MISSING) for name in slots_of(kind)]
    return items + list(value) if issubclass(kind, LISTS) else items


def set_items(double: Any, items: list[Any]) -> None:
    """Let a double hold these, in the places of :func:`_items`."""
    kind = type(double)
    if kind is CellType:
        for item in items:
            double.cell_contents = item
        return
    slots = slots_of(kind)
    for name, item in zip(slots, items, strict=False):
        if item is not MISSING:
            object.__setattr__(double, name, item)
        elif hasattr(double, name):
            object.__delattr__(double, name)
    bases: Any = (list, deque, set)
    for base in bases:
        if issubclass(kind, base):
            base.clear(double)
            (base.update if base is set else base.extend)(double, items[len(slots) :])


@lru_cache(4096)
def slots_of(kind: type) -> list[str]:
    """The names of the slots that objects of a class have."""
    return copyreg._slotnames(kind)  # type: ignore[attr-defined]
