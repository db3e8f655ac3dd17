"""What refers to other objects and has no state of its own, made anew to refer to their doubles.

Each function takes ``of``, which gives what stands for an object, and returns the value itself where it refers to
nothing that has a double.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from operator import is_
from types import BuiltinFunctionType, MappingProxyType
from typing import Any

Of = Callable[[Any], Any]


def way_to_refer(kind: type) -> Callable[[Of, Any], Any] | None:
    """How to make an object of this class anew; ``None`` for a class that has a state."""
    if issubclass(kind, tuple):
        return _tuple
    return {
        frozenset: _frozenset,
        partial: _partial,
        BuiltinFunctionType: _builtin_method,
        MappingProxyType: _mapping,
        weakref.ref: _reference,
        weakref.ProxyType: _proxy,
        weakref.CallableProxyType: _proxy,
    }.get(kind)


def _tuple(of: Of, value: tuple[Any, ...]) -> Any:
    kind: Any = type(value)
    items: tuple[Any, ...] = tuple(map(of, value))
    make = None if kind is tuple else getattr(kind, "_make", None)  # that of a named one
    if all(map(is_, items, value)) or not (kind is tuple or make):
        return value
    return make(items) if make else items


def _frozenset(of: Of, value: frozenset[Any]) -> frozenset[Any]:
    items = list(map(of, value))
    return value if all(map(is_, items, value)) else frozenset(items)


def _partial(of: Of, value: partial[Any]) -> partial[Any]:
    keywords = {name: of(one) for name, one in value.keywords.items()}
    return partial(of(value.func), *map(of, value.args), **keywords)


def _builtin_method(of: Of, value: BuiltinFunctionType) -> Any:
    owner = of(value.__self__)  # such as the list of an `append`; of a function its module
    return value if owner is value.__self__ else getattr(owner, value.__name__)


def _mapping(of: Of, value: MappingProxyType[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType({of(key): of(one) for key, one in value.items()})


def _reference(of: Of, value: weakref.ref[Any]) -> weakref.ref[Any]:
    target = value()
    double = of(target)
    return value if double is target else weakref.ref(double)


def _proxy(of: Of, value: Any) -> Any:
    try:
        target = value.__reduce_ex__.__self__  # a proxy hands on the method of what it stands for
    except ReferenceError:
        return value
    double = of(target)
    return value if double is target else weakref.proxy(double)
