"""Doubles of what objects own: they do what the originals do, and what happens to them stays with them.

A double is a new object of the same class whose attributes are the doubles of the original's. Modules, tensors,
containers, random generators, closures and objects of the user's own classes have doubles; that of a parameter shares
its memory. All else is shared. None of the user's code runs to make them, neither ``__init__`` nor ``__setattr__``.
"""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterator, KeysView, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import nn

from lightning_gradcam.attribution.contents import MISSING, items_of, set_items, set_names
from lightning_gradcam.attribution.kinds import LEAVES, OF_ANY_MODULE, modules_of, referring, way
from lightning_gradcam.attribution.memory import Memory

_MANY = 10_000  # items: what a larger container holds is shared
_DEEP = 10_000  # calls of Python


class Doubles:
    """The doubles of all that some objects own.

    Attributes:
        originals: What has been found, by its id.
        memory: The tensors and arrays.
        undoubled_parameters: Those that are shared themselves, since they are of a class of their own or exchanged by
            the hooks of FSDP.
        generators: The doubles of random generators.
        have_own_eval: Whether the class of a module that is put in eval mode says itself what that is.
        by_id: The doubles by the ids of their originals; these and what follows are for the functions that make them.
        complete: Whether all have been made.
        kept: Whether they can be brought up to date.
        evaluated: The ids of the modules that are put in eval mode.
        sharded: Whether FSDP exchanges their parameters.
        no_hooks: The hooks of a module that play no part in a forward.
        closing: Doubles of modules whose class says what happens when one of them goes.
    """

    def __init__(
        self,
        roots: Sequence[Any],
        evaluated: nn.Module | None = None,
        known: Sequence[tuple[Any, Any]] = (),
        copied: Sequence[Any] = (),
        kept: bool = False,
    ) -> None:
        """Make the doubles.

        Args:
            roots: Where to begin.
            evaluated: A module whose double, with all its parts, is in eval mode, has no backward hooks, and of a
                ``LightningModule`` logs nothing.
            known: Originals that have a double already.
            copied: Tensors and arrays whose memory must not be shared, however large they are.
            kept: Whether to note what :meth:`refresh` and :meth:`restart` ask for.

        Raises:
            NoShapeError: If there is a lazy parameter or buffer.
        """
        self.closing: list[nn.Module] = []
        # Holds the originals, so that their ids stay theirs.
        self.originals: dict[int, Any] = {id(original): original for original, _ in known}
        self.memory: Memory = Memory(copied, protects_arrays=evaluated is not None)
        self.generators: list[Any] = []
        self.by_id: dict[int, Any] = {id(original): double for original, double in known}
        self.complete: bool = False
        self.kept: bool = kept
        # Originals and their doubles: what holds their attributes and items, with what the original held when the
        # double was made, and what the double shall hold at the beginning of a look.
        self._modules: list[tuple[nn.Module, dict[str, Any], nn.Module, dict[str, Any]]] = []
        self._names: list[tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any], dict[Any, Any]]] = []
        self._items: list[tuple[Any, list[Any], Any, list[Any]]] = []
        self._empty: list[Any] = []  # dicts and sets of modules that are, and those of their doubles
        self.no_hooks: OrderedDict[int, Any] = OrderedDict()
        self._own_empty: list[Any] = [self.no_hooks]

        modules = modules_of(evaluated)
        self.evaluated: KeysView[int] = modules.keys()
        self.have_own_eval: bool = any(type(one).train is not nn.Module.train for one in modules.values())
        self.sharded: bool = any(type(one).__name__.startswith("FSDP") for one in modules.values())
        with no_garbage_collection(), _deep_recursion(), torch.no_grad():
            for root in roots:
                self.of(root)
        self.complete = True
        parameters = [one for module in modules.values() for one in module._parameters.values()]
        exchanged = [one for one in parameters if one is not None] if self.sharded else []
        self.undoubled_parameters: list[nn.Parameter] = [*self.memory.undoubled, *exchanged]

    def __del__(self) -> None:
        for double in self.closing:  # a double that goes must not close what the original has open
            with suppress(TypeError):
                object.__setattr__(double, "__class__", nn.Module)

    def of(self, value: Any) -> Any:
        """What stands for a value: its double, or itself where it has none.

        Once all doubles are made, a function, bound method or object that is none of the originals stands for itself
        but for the originals that it refers to.
        """
        kind = type(value)
        if kind in LEAVES or (kind is tuple and LEAVES.issuperset(map(type, value))):
            return value
        double = self.by_id.get(id(value))
        if double is not None:
            return double
        return referring(self, value) if self.complete else way(kind)(self, value)

    def refresh(self) -> bool:
        """Set all doubles to what the originals are now; ``False`` where that takes new ones."""
        if not (self.kept and self.memory.is_complete) or any(self._empty):
            return False
        for original, before, double, after in self._modules:
            now = original.__dict__
            if now["training"] is not before["training"]:
                before["training"] = now["training"]
                if id(original) not in self.evaluated:
                    after["training"] = double.training = now["training"]
            if original.__class__ is not double.__class__:
                return False
            if not _same_names(now, before) and not self._take_over(now, before, double.__dict__, after, OF_ANY_MODULE):
                return False
        for now, before, own, after in self._names:
            if not _same_names(now, before) and not self._take_over(now, before, own, after):
                return False
        for original, before, double, after in self._items:
            now = items_of(original)
            if len(now) != len(before) or not all(map(is_, now, before)):
                if not all(map(self._is_known, now)):
                    return False
                before[:], after[:] = now, map(self.of, now)
                set_items(double, after)
        if not self.memory.has_same_form():
            return False
        self.memory.update()
        return True

    def _take_over(
        self,
        now: dict[Any, Any],
        before: dict[Any, Any],
        own: dict[Any, Any],
        after: dict[Any, Any],
        fixed: Collection[str] = (),
    ) -> bool:
        """Let a double hold what the original holds now; ``False`` where that asks for a double that there is not."""
        changed = {name: one for name, one in dict.items(now) if before.get(name, MISSING) is not one}
        if not changed.keys().isdisjoint(fixed) or not all(map(self._is_known, chain(changed, changed.values()))):
            return False
        for name in before.keys() - dict.keys(now):
            del after[self.of(name)], before[name]
        after.update((self.of(name), self.of(one)) for name, one in changed.items())
        before.update(changed)
        set_names(own, after)
        return _same_names(now, before)  # in the same order

    def _is_known(self, value: Any) -> bool:
        if type(value) is tuple:
            return all(map(self._is_known, value))
        return type(value) in LEAVES or id(value) in self.originals

    def restart(self) -> None:
        """Take from the doubles what a look has left with them, but for the values of tensors and arrays."""
        for _, _, double, after in self._modules:
            double.__dict__.clear()
            double.__dict__.update(after)
        for _, _, own, after in self._names:
            set_names(own, after)
        for _, _, double, after in self._items:
            set_items(double, after)
        for one in filter(None, self._own_empty):
            one.clear()

    def found(self, value: Any, double: Any) -> Any:
        """Note an original's double, before what it holds is doubled, which may refer to it."""
        self.originals[id(value)], self.by_id[id(value)] = value, double
        return double

    def note_module(
        self, module: nn.Module, double: nn.Module, after: dict[str, Any], holders: Sequence[Any], own: Sequence[Any]
    ) -> None:
        """Note what a module's double holds; most of a module's dicts are empty and shall be so."""
        self._modules.append((module, vars(module).copy(), double, after))
        self._empty += [one for one in holders if not one]
        self._own_empty += [one for one in own if not one]

    def note_empty(self, names: dict[Any, Any]) -> None:
        """Note a dict that is empty; what is put into it later asks for new doubles."""
        self._empty.append(names)

    def fill_names(self, names: dict[Any, Any], own: dict[Any, Any]) -> None:
        """Let a dict hold the doubles of what an original dict holds."""
        pairs = dict.items(names)
        after = (
            dict(pairs)
            if len(pairs) > _MANY
            else {name if type(name) is str else self.of(name): self.of(one) for name, one in pairs}
        )
        set_names(own, after)
        if self.kept:
            self._names.append((names, dict(pairs), own, after))

    def fill_items(self, value: Any, double: Any) -> None:
        """Let a double hold the doubles of the items of an original."""
        items = items_of(value)
        after = items.copy() if len(items) > _MANY else list(map(self.of, items))
        set_items(double, after)
        if self.kept:
            self._items.append((value, items, double, after))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Spare Python the search for circles in thousands of new objects, which takes longer than to make them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """Let Python call as deep as a model may be."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _same_names(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return len(now) == len(before) and all(map(is_, dict.values(now), before.values())) and all(map(is_, now, before))
