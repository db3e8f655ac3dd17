"""Doubles of what objects own: they do what the originals do, and what happens to them stays with them.

A double is a new object of the same class whose attributes are the doubles of the original's. Modules, tensors,
containers, random generators, closures and objects of the user's own classes have doubles; that of a parameter shares
its memory. All else is shared. None of the user's code runs to make them, neither ``__init__`` nor ``__setattr__``.
"""

from __future__ import annotations

import array
import copy
import copyreg
import gc
import random
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import chain
from operator import is_, itemgetter
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_gradcam.attribution.isolation import GENERATORS
from lightning_gradcam.attribution.memory import Memory
from lightning_gradcam.attribution.references import way_to_refer

_MANY = 10_000  # items: what a larger container holds is shared
_DEEP = 10_000  # calls of Python
_LEAVES = {int, float, complex, bool, str, bytes, type(None), type, ModuleType, torch.dtype, torch.device, torch.Size}
_DICTS = (dict, OrderedDict, defaultdict, Counter)
_LISTS = (list, set, deque)
_WEAK = (WeakSet, WeakKeyDictionary, WeakValueDictionary)
_ALSO_PLAIN = (RemovableHandle, SimpleNamespace, Namespace, UserDict, UserList)
_NEW = (object.__new__, *(kind.__new__ for kind in (dict, list, set, deque, defaultdict)))
_MADE_BY_A_CLASS_STATEMENT = 1 << 9
_MISSING = object()
_NOT_THE_USERS = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_gradcam", "numpy"}
_NOT_THE_USERS |= sys.stdlib_module_names - {"__main__"}
_WRAPPERS = ("OptimizedModule", "DistributedDataParallel")  # what is inside does the work
_LOGS = ("log", "log_dict")  # of a LightningModule
_OF_ANY_MODULE = nn.Module().__dict__.keys()  # parameters, hooks and the like
_STATE_DICT_HOOKS = [name for name in _OF_ANY_MODULE if "state_dict" in name]  # they play no part in a forward
_HOLDERS = [name for name, one in vars(nn.Module()).items() if isinstance(one, (dict, set)) and "state" not in name]
_holders_of = itemgetter(*_HOLDERS)


class Doubles:
    """The doubles of all that some objects own.

    Attributes:
        originals: What has been found, by its id.
        memory: The tensors and arrays.
        undoubled_parameters: Those that are shared themselves, since they are of a class of their own or exchanged by
            the hooks of FSDP.
        generators: The doubles of random generators.
        have_own_eval: Whether the class of a module that is put in eval mode says itself what that is.
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
        # Holds the originals, so that their ids stay theirs.
        self.originals: dict[int, Any] = {id(original): original for original, _ in known}
        self.memory = Memory(copied, protects_arrays=evaluated is not None)
        self.generators: list[Any] = []
        self._doubles: dict[int, Any] = {id(original): double for original, double in known}
        self._complete = False
        self._kept = kept
        # Originals and their doubles: what holds their attributes and items, with what the original held when the
        # double was made, and what the double shall hold at the beginning of a look.
        self._modules: list[tuple[nn.Module, dict[str, Any], nn.Module, dict[str, Any]]] = []
        self._names: list[tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any], dict[Any, Any]]] = []
        self._items: list[tuple[Any, list[Any], Any, list[Any]]] = []
        no_hooks: OrderedDict[int, Any] = OrderedDict()
        self._no_hooks = dict.fromkeys(_STATE_DICT_HOOKS, no_hooks)
        self._empty: list[Any] = []  # dicts and sets of modules that are, and those of their doubles
        self._own_empty: list[Any] = [no_hooks]
        self._closing: list[nn.Module] = []

        modules = _modules_of(evaluated)
        self._evaluated = modules.keys()
        self.have_own_eval = any(type(one).train is not nn.Module.train for one in modules.values())
        self._sharded = any(type(one).__name__.startswith("FSDP") for one in modules.values())
        with no_garbage_collection(), _deep_recursion(), torch.no_grad():
            for root in roots:
                self.of(root)
        self._complete = True
        parameters = [one for module in modules.values() for one in module._parameters.values()]
        exchanged = [one for one in parameters if one is not None] if self._sharded else []
        self.undoubled_parameters = [*self.memory.undoubled, *exchanged]

    def __del__(self) -> None:
        for double in self._closing:  # a double that goes must not close what the original has open
            with suppress(TypeError):
                object.__setattr__(double, "__class__", nn.Module)

    def of(self, value: Any) -> Any:
        """What stands for a value: its double, or itself where it has none.

        Once all doubles are made, a function, bound method or object that is none of the originals stands for itself
        but for the originals that it refers to.
        """
        kind = type(value)
        if kind in _LEAVES or (kind is tuple and _LEAVES.issuperset(map(type, value))):
            return value
        double = self._doubles.get(id(value))
        if double is not None:
            return double
        return _way(kind)(self, value) if not self._complete else self._referring(value)

    def refresh(self) -> bool:
        """Set all doubles to what the originals are now; ``False`` where that takes new ones."""
        if not (self._kept and self.memory.is_complete) or any(self._empty):
            return False
        for original, before, double, after in self._modules:
            now = original.__dict__
            if now["training"] is not before["training"]:
                before["training"] = now["training"]
                if id(original) not in self._evaluated:
                    after["training"] = double.training = now["training"]
            if original.__class__ is not double.__class__:
                return False
            if not _same_names(now, before) and not self._take_over(
                now, before, double.__dict__, after, _OF_ANY_MODULE
            ):
                return False
        for now, before, own, after in self._names:
            if not _same_names(now, before) and not self._take_over(now, before, own, after):
                return False
        for original, before, double, after in self._items:
            now = _items(original)
            if len(now) != len(before) or not all(map(is_, now, before)):
                if not all(map(self._is_known, now)):
                    return False
                before[:], after[:] = now, map(self.of, now)
                _set_items(double, after)
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
        changed = {name: one for name, one in dict.items(now) if before.get(name, _MISSING) is not one}
        if not changed.keys().isdisjoint(fixed) or not all(map(self._is_known, chain(changed, changed.values()))):
            return False
        for name in before.keys() - dict.keys(now):
            del after[self.of(name)], before[name]
        after.update((self.of(name), self.of(one)) for name, one in changed.items())
        before.update(changed)
        _set_names(own, after)
        return _same_names(now, before)  # in the same order

    def _is_known(self, value: Any) -> bool:
        return type(value) in _LEAVES or id(value) in self.originals or _is_plain_tuple(value)

    def restart(self) -> None:
        """Take from the doubles what a look has left with them, but for the values of tensors and arrays."""
        for _, _, double, after in self._modules:
            double.__dict__.clear()
            double.__dict__.update(after)
        for _, _, own, after in self._names:
            _set_names(own, after)
        for _, _, double, after in self._items:
            _set_items(double, after)
        for one in filter(None, self._own_empty):
            one.clear()

    def _found(self, value: Any, double: Any) -> Any:
        self.originals[id(value)], self._doubles[id(value)] = value, double
        return double

    def _module(self, module: nn.Module) -> nn.Module:
        kind: Any = type(module)
        double = self._found(module, object.__new__(kind))
        if hasattr(kind, "__del__"):
            self._closing.append(double)
        names = vars(module)
        holders = _holders_of(names)
        own = [self.of(one) if one else type(one)() for one in holders]  # most are empty
        after = names | self._no_hooks
        after.update(zip(_HOLDERS, own, strict=True))
        for name, one in names.items():
            if type(one) not in _LEAVES and name not in _OF_ANY_MODULE:
                after[name] = self.of(one)
        if id(module) in self._evaluated:
            after["training"], after["_compiled_call_impl"] = False, None
            for name in ("_backward_hooks", "_backward_pre_hooks"):  # meant for training
                if names[name]:
                    after[name] = OrderedDict()
                    own.append(after[name])
            if self._sharded:  # its hooks exchange the parameters in the originals
                after["_parameters"] = names["_parameters"]
            if _is_lightning_module(kind):
                after |= dict.fromkeys(_LOGS, _log_nothing)
        vars(double).update(after)
        if self._kept:
            self._modules.append((module, names.copy(), double, after))
            self._empty += [one for one in holders if not one]
            self._own_empty += [one for one in own if not one]
        if _slots(kind):
            self._fill_items(module, double)
        return double

    def _object(self, value: Any) -> Any:
        """Of an object of the user's own class, which may be a container."""
        if _is_global(value):
            return self._shared(value)
        kind: Any = type(value)
        double = self._found(value, kind.__new__(kind))
        names = getattr(value, "__dict__", None)
        if names is value:  # whose keys are its attributes
            double.__dict__ = double
        elif names is not None:
            self._fill_names(names, vars(double))
        if issubclass(kind, defaultdict):
            double.default_factory = self.of(value.default_factory)
        if issubclass(kind, dict):
            self._fill_names(value, double)
        if issubclass(kind, _LISTS) or _slots(kind):
            self._fill_items(value, double)
        return double

    def _dict(self, value: Any) -> Any:
        double = defaultdict(self.of(value.default_factory)) if type(value) is defaultdict else type(value)()
        self._fill_names(value, self._found(value, double))
        return double

    def _list(self, value: Any) -> Any:
        double = deque(maxlen=value.maxlen) if type(value) is deque else type(value)()
        self._fill_items(value, self._found(value, double))
        return double

    def _weak(self, value: Any) -> Any:
        self._kept = False  # it changes where nobody sees it
        double = self._found(value, type(value)())
        if isinstance(value, WeakSet):
            double.update(map(self.of, list(value)))
        else:
            double.update({self.of(key): self.of(one) for key, one in list(value.items())})
        return double

    def _cell(self, value: CellType) -> CellType:
        double = self._found(value, CellType())
        self._fill_items(value, double)
        return double

    def _fill_names(self, names: dict[Any, Any], own: dict[Any, Any]) -> None:
        pairs = dict.items(names)
        after = (
            dict(pairs)
            if len(pairs) > _MANY
            else {name if type(name) is str else self.of(name): self.of(one) for name, one in pairs}
        )
        _set_names(own, after)
        if self._kept:
            self._names.append((names, dict(pairs), own, after))

    def _fill_items(self, value: Any, double: Any) -> None:
        items = _items(value)
        after = items.copy() if len(items) > _MANY else list(map(self.of, items))
        _set_items(double, after)
        if self._kept:
            self._items.append((value, items, double, after))

    def _parameter(self, value: nn.Parameter) -> nn.Parameter:
        return self._with_attributes(value, self.memory.parameter(value))

    def _tensor(self, value: Tensor) -> Tensor:
        return self._with_attributes(value, self.memory.tensor(value))

    def _with_attributes(self, value: Any, double: Any) -> Any:
        self._found(value, double)
        if double is not value:
            names = vars(value)
            if names:
                self._fill_names(names, vars(double))
            elif self._kept:
                self._empty.append(names)
        return double

    def _array(self, value: np.ndarray) -> np.ndarray:
        if not value.dtype.hasobject:
            return self._found(value, self.memory.array(value))
        self._kept = False
        double = self._found(value, np.empty_like(value))
        for place, one in np.ndenumerate(value):
            double[place] = self.of(one)
        return double

    def _generator(self, value: Any) -> Any:
        double = value.clone_state() if type(value) is torch.Generator else copy.deepcopy(value)
        self.generators.append(double)
        return self._found(value, double)

    def _script(self, value: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        """A copy, parameters and all: its insides are out of reach."""
        self._kept = False
        return self._found(value, copy.deepcopy(value).eval())

    def _bytes(self, value: Any) -> Any:
        self._kept = False
        return self._found(value, copy.copy(value))

    def _function(self, value: FunctionType) -> Any:
        """The function with the doubles of what it closes over; of a compiled one what it was compiled from."""
        if "_torchdynamo_orig_callable" in vars(value):
            return self.of(vars(value)["_torchdynamo_orig_callable"])
        closure = value.__closure__ or ()
        self._doubles[id(value)] = value  # it may refer to itself
        cells = tuple(map(self._referring_cell, closure)) if self._complete else tuple(map(self.of, closure))
        defaults, keywords = self.of(value.__defaults__), self.of(value.__kwdefaults__)
        del self._doubles[id(value)]
        refers = not all(map(is_, cells, closure)) or defaults is not value.__defaults__
        if not refers and keywords is value.__kwdefaults__ and (self._complete or not vars(value)):
            return value
        double = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells)
        double.__kwdefaults__, double.__qualname__, double.__module__ = keywords, value.__qualname__, value.__module__
        if self._complete:
            vars(double).update(vars(value))
            return double
        self._found(value, double)
        self._fill_names(vars(value), vars(double))
        return double

    def _referring_cell(self, value: CellType) -> CellType:
        """A cell with what stands for its content; the same one where that is the content itself."""
        if id(value) in self._doubles or value == CellType():
            return self._doubles.get(id(value), value)
        content = self.of(value.cell_contents)
        return value if content is value.cell_contents else CellType(content)

    def _referring(self, value: Any) -> Any:
        """What is none of the originals, made to refer to doubles where it refers to originals."""
        way = _way(type(value))
        if way in (Doubles._function, Doubles._method, Doubles._wrapper) or isinstance(way, partial):
            return way(self, value)
        if way is not Doubles._object or not hasattr(value, "__dict__"):
            return value
        names = {name: self._doubles.get(id(one), one) for name, one in vars(value).items()}
        if all(map(is_, names.values(), vars(value).values())):
            return value
        double = copy.copy(value)
        vars(double).update(names)
        return double

    def _refer(self, value: Any, *, refer: Callable[[Any, Any], Any]) -> Any:
        return refer(self.of, value)

    def _method(self, value: MethodType) -> Any:
        if value.__func__.__name__ in _LOGS and _is_lightning_module(type(value.__self__)):
            return _log_nothing
        owner = self.of(value.__self__)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)

    def _wrapper(self, value: nn.Module) -> nn.Module:
        return self.of(_unwrapped(value))

    def _shared(self, value: Any) -> Any:
        self.originals[id(value)] = value
        return value


def _log_nothing(*args: Any, **options: Any) -> None:
    """Take the place of ``LightningModule.log``."""


@lru_cache(4096)
def _is_lightning_module(kind: type) -> bool:
    return any(base.__name__ == "LightningModule" for base in kind.__mro__)


@lru_cache(4096)
def _way(kind: type) -> Callable[[Doubles, Any], Any]:
    """How to make what stands for an object of this class."""
    if issubclass(kind, nn.Module):
        if kind.__name__ in _WRAPPERS:
            return Doubles._wrapper
        return Doubles._script if issubclass(kind, torch.jit.ScriptModule) else Doubles._module
    if kind in _DICTS or kind in _LISTS:
        return Doubles._dict if kind in _DICTS else Doubles._list
    if issubclass(kind, Tensor):
        return Doubles._parameter if kind is nn.Parameter else Doubles._tensor
    if issubclass(kind, np.ndarray):
        return Doubles._array
    if issubclass(kind, GENERATORS):
        return Doubles._generator if kind is not random.SystemRandom else Doubles._shared
    refer = way_to_refer(kind)
    if refer is not None:
        return partial(Doubles._refer, refer=refer)
    others: dict[type, Callable[[Doubles, Any], Any]] = {
        FunctionType: Doubles._function,
        MethodType: Doubles._method,
        CellType: Doubles._cell,
        bytearray: Doubles._bytes,
        array.array: Doubles._bytes,
    }
    others |= dict.fromkeys(_WEAK, Doubles._weak)
    return others.get(kind, Doubles._object if _is_plain(kind) else Doubles._shared)


def _is_plain(kind: type) -> bool:
    """Whether objects of this class are the user's own and no more than their attributes and items."""
    if kind in _ALSO_PLAIN:
        return True
    package = kind.__module__.partition(".")[0]
    users = package not in _NOT_THE_USERS or (issubclass(kind, dict) and package not in ("torch", "numpy"))
    as_usual = kind.__new__ in _NEW and kind.__reduce_ex__ is object.__reduce_ex__ and not hasattr(kind, "__del__")
    return users and as_usual and bool(kind.__flags__ & _MADE_BY_A_CLASS_STATEMENT)


def _is_global(value: Any) -> bool:
    """Whether an object is a constant of the module of its class, which code may tell by its identity."""
    module = sys.modules.get(type(value).__module__)
    return any(one is value for one in list(vars(module).values())) if module else False


def _is_plain_tuple(value: Any) -> bool:
    return type(value) is tuple and all(type(one) in _LEAVES or _is_plain_tuple(one) for one in value)


def _unwrapped(value: Any) -> Any:
    while type(value).__name__ in _WRAPPERS and isinstance(value, nn.Module):
        (value,) = value._modules.values()
    return value


def _modules_of(root: nn.Module | None) -> dict[int, nn.Module]:
    """The modules that ``root.modules()`` names, without the wrappers, by their ids."""
    found: dict[int, nn.Module] = {}
    pending = [root]
    while pending:
        module = _unwrapped(pending.pop())
        if module is not None and id(module) not in found:
            found[id(module)] = module
            pending.extend(module._modules.values())
    return found


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


def _set_names(own: dict[Any, Any], names: dict[Any, Any]) -> None:
    kind: Any = OrderedDict if type(own) is OrderedDict else dict  # past what a class of the user's does instead
    kind.clear(own)
    kind.update(own, names)


def _items(value: Any) -> list[Any]:
    """What a value holds in places without a name of their own: the content of a cell, slots, items."""
    kind = type(value)
    if kind is CellType:
        return [] if value == CellType() else [value.cell_contents]
    items = [getattr(value, name, _MISSING) for name in _slots(kind)]
    return items + list(value) if issubclass(kind, _LISTS) else items


def _set_items(double: Any, items: list[Any]) -> None:
    """Let a double hold these, in the places of :func:`_items`."""
    kind = type(double)
    if kind is CellType:
        for item in items:
            double.cell_contents = item
        return
    slots = _slots(kind)
    for name, item in zip(slots, items, strict=False):
        if item is not _MISSING:
            object.__setattr__(double, name, item)
        elif hasattr(double, name):
            object.__delattr__(double, name)
    bases: Any = (list, deque, set)
    for base in bases:
        if issubclass(kind, base):
            base.clear(double)
            (base.update if base is set else base.extend)(double, items[len(slots) :])


@lru_cache(4096)
def _slots(kind: type) -> list[str]:
    return copyreg._slotnames(kind)  # type: ignore[attr-defined]
