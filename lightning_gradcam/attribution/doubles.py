"""Doubles of what objects own: they do what the originals do, and what happens to them stays with them.

A double is a new object of the same class whose attributes are the doubles of the original's. Modules, tensors,
containers, random generators, closures and objects of the user's own classes have doubles; that of a parameter shares
its memory. All else is shared. None of the user's code runs, neither ``__init__`` nor ``train``.
"""

from __future__ import annotations

import copy
import copyreg
import gc
import random
import sys
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from operator import is_, itemgetter
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from lightning_gradcam.attribution.isolation import GENERATORS

_ROOM = 1 << 24  # bytes of tensors and arrays to copy; what finds no more room is shared
_MANY = 10_000  # items: what a larger container holds is shared
_LEAVES = {int, float, complex, bool, str, bytes, type(None), type, ModuleType}
_LEAVES |= {torch.dtype, torch.device, torch.Size}
_DICTS = (dict, OrderedDict, defaultdict, Counter)
_LISTS = (list, set, deque)
_ALSO_PLAIN = (RemovableHandle, SimpleNamespace)
_NEW = (object.__new__, dict.__new__, list.__new__)
_MADE_BY_A_CLASS_STATEMENT = 1 << 9
_MISSING = object()
_NOT_THE_USERS = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_gradcam", "numpy"}
_NOT_THE_USERS |= sys.stdlib_module_names - {"__main__"}
_WRAPPERS = ("OptimizedModule", "DistributedDataParallel")  # what is inside does the work
_OF_ANY_MODULE = nn.Module().__dict__.keys()  # parameters, hooks and the like
_STATE_DICT_HOOKS = [name for name in _OF_ANY_MODULE if "state_dict" in name]  # they play no part in a forward
_HOLDERS = [name for name, one in vars(nn.Module()).items() if isinstance(one, (dict, set)) and "state" not in name]
_holders_of = itemgetter(*_HOLDERS)


class NoShapeError(ValueError):
    """A parameter or buffer gets its shape in the first forward only."""


class Doubles:
    """The doubles of all that some objects own.

    Attributes:
        originals: What has been found, by its id.
        parameters: The parameters, each with its double.
        undoubled_parameters: Those that are shared themselves, since they are of a class of their own or exchanged by
            the hooks of FSDP.
        shared_state: The tensors, other than parameters, that share their memory with a double.
        read_only: The arrays that are shared as read-only ones.
        generators: The doubles of random generators.
    """

    def __init__(
        self,
        roots: Sequence[Any],
        evaluated: nn.Module | None = None,
        known: Sequence[tuple[Any, Any]] = (),
        instead: Mapping[tuple[type, str], Callable[..., Any]] = {},
        copied: Sequence[Any] = (),
        kept: bool = False,
    ) -> None:
        """Make the doubles.

        Args:
            roots: Where to begin.
            evaluated: A module whose double, with all its parts, is in eval mode and has no backward hooks.
            known: Originals that have a double already.
            instead: What to call in place of a module's method, by a class of the module and the method's name.
            copied: Tensors and arrays whose memory must not be shared, however large they are.
            kept: Whether to note what :meth:`refresh` asks for.

        Raises:
            NoShapeError: If there is a lazy parameter or buffer.
        """
        # Holds the originals, so that their ids stay theirs.
        self.originals: dict[int, Any] = {id(original): original for original, _ in known}
        self.parameters: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.undoubled_parameters: list[nn.Parameter] = []
        self.shared_state: list[Tensor] = []
        self.read_only: list[np.ndarray] = []
        self.generators: list[Any] = []
        self._doubles: dict[int, Any] = {id(original): double for original, double in known}
        self._instead = instead
        self._copied = set(map(id, copied))
        self._room = _ROOM
        self._complete = False
        self._kept = kept
        self._tensors: list[Tensor] = []  # those that are copied, and their copies
        self._copies: list[Tensor] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        # Of an original and its double: what holds their attributes and items, with what the original held when the
        # double was made, and what the double shall hold at the beginning of a look.
        self._modules: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = []
        self._names: list[tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any], dict[Any, Any]]] = []
        self._items: list[tuple[Any, list[Any], Any, list[Any]]] = []
        no_hooks: OrderedDict[int, Any] = OrderedDict()
        self._no_state_dict_hooks = dict.fromkeys(_STATE_DICT_HOOKS, no_hooks)
        self._empty: list[Any] = []  # a module's own dicts that are, and those of its double
        self._own_empty: list[Any] = []

        modules = _modules_of(evaluated)
        self._evaluated = modules.keys()
        self._sharded = any(type(module).__name__.startswith("FSDP") for module in modules.values())
        if self._sharded:
            parameters = [one for module in modules.values() for one in module._parameters.values()]
            self.undoubled_parameters += [one for one in parameters if one is not None]
        with torch.no_grad(), _no_garbage_collection():
            for root in roots:
                self.of(root)
        self._complete = True

    def of(self, value: Any) -> Any:
        """What stands for a value: its double, or itself where it has none.

        Once all doubles are made, a function, bound method or object that is none of the originals stands for itself
        but for the originals that it refers to.
        """
        kind = type(value)
        if kind in _LEAVES:
            return value
        double = self._doubles.get(id(value))
        if double is not None:
            return double
        way = _way_to_refer(kind)
        if way is None and self._complete:
            return self._referring(value) if _is_plain(kind) and hasattr(value, "__dict__") else value
        way = way or _way_to_double(kind)
        if way is None:
            self.originals[id(value)] = value
            return value
        return way(self, value)

    def shared(self) -> dict[int, Tensor]:
        """The tensors that share their memory with a double, by the address of that memory."""
        tensors = [*self.shared_state, *(original for original, _ in self.parameters)]
        found = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
        return {address: tensor for address, tensor in found.items() if address}

    def refresh(self) -> bool:
        """Set all doubles to what the originals are now; ``False`` where that takes new ones."""
        if not self._kept or any(self._empty):
            return False
        for now, before, _, after in self._modules:
            before["training"] = now["training"]  # the doubles have their own
            if not _same_names(now, before) and not self._take_over(now, before, after, _OF_ANY_MODULE):
                return False
        for now, before, _, after in self._names:
            if not _same_names(now, before) and not self._take_over(now, before, after):
                return False
        for original, before, _, after in self._items:
            now = _items(original)
            if len(now) != len(before) or not all(map(is_, now, before)):
                if not all(map(self._is_known, now)):
                    return False
                before[:], after[:] = now, map(self.of, now)
        for original, double in self.parameters:
            if original.data_ptr() != double.data_ptr() or original.shape != double.shape:
                return False
            if double.requires_grad or double.grad is not None:
                return False
        for original, double in zip(self._tensors, self._copies, strict=True):
            if original.shape != double.shape or double.requires_grad:
                return False
        if any(original.shape != double.shape or not double.flags.writeable for original, double in self._arrays):
            return False
        self._restart()
        return True

    def _take_over(
        self, now: dict[Any, Any], before: dict[Any, Any], after: dict[Any, Any], fixed: Collection[str] = ()
    ) -> bool:
        """Let a double hold what the original holds now; ``False`` where that asks for a double that there is not."""
        changed = {name: one for name, one in dict.items(now) if before.get(name, _MISSING) is not one}
        if not changed.keys().isdisjoint(fixed) or not all(map(self._is_known, chain(changed, changed.values()))):
            return False
        for name in before.keys() - dict.keys(now):
            del after[self.of(name)], before[name]
        after.update((self.of(name), self.of(one)) for name, one in changed.items())
        before.update(changed)
        return _same_names(now, before)  # in the same order

    def _is_known(self, value: Any) -> bool:
        return _is_leaf(value) or id(value) in self.originals

    def _restart(self) -> None:
        """Give the doubles the content that they begin a look with."""
        for _, _, own, after in self._modules:
            own.clear()
            own.update(after)
        for _, _, own, after in self._names:
            _set_names(own, after)
        for _, _, double, after in self._items:
            _set_items(double, after)
        for one in filter(None, self._own_empty):
            one.clear()
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._tensors)  # pyright: ignore[reportPrivateImportUsage]
        for original, double in self._arrays:
            np.copyto(double, original)

    def _module(self, module: nn.Module) -> nn.Module:
        kind: Any = type(module)
        if hasattr(kind, "__del__"):  # a double that goes must not close what the original has open
            kind = type(kind)(kind.__name__, (kind,), {"__del__": lambda self: None})
        double = self._found(module, object.__new__(kind))
        names = vars(module)
        holders = _holders_of(names)
        own = [self.of(one) if one else type(one)() for one in holders]  # most are empty
        after = names | self._no_state_dict_hooks
        after.update(zip(_HOLDERS, own, strict=True))
        for name, one in names.items():
            if type(one) not in _LEAVES and name not in _OF_ANY_MODULE:
                after[name] = self.of(one)
        if self._instead:
            after.update(self._instead_of(module))
        if id(module) in self._evaluated:
            after["training"], after["_compiled_call_impl"] = False, None
            for name in ("_backward_hooks", "_backward_pre_hooks"):  # meant for training
                after[name] = after[name] and OrderedDict()
            if self._sharded:  # its hooks exchange the parameters in the originals
                after["_parameters"] = names["_parameters"]
        vars(double).update(after)
        if self._kept:
            self._modules.append((names, names.copy(), vars(double), after))
            self._empty += [one for one in holders if not one]
            self._own_empty += [one for one in own if not one]
        if _slots(kind):
            self._fill_items(module, double)
        return double

    def _object(self, value: Any) -> Any:
        """Of an object of the user's own class, which may be a list or a dict."""
        kind: Any = type(value)
        double = self._found(value, kind.__new__(kind))
        if hasattr(value, "__dict__"):
            self._fill_names(vars(value), vars(double))
        if issubclass(kind, dict):
            self._fill_names(value, double)
        if issubclass(kind, list) or _slots(kind):
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

    def _cell(self, value: CellType) -> CellType:
        double = self._found(value, CellType())
        self._fill_items(value, double)
        return double

    def _found(self, value: Any, double: Any) -> Any:
        self.originals[id(value)], self._doubles[id(value)] = value, double
        return double

    def _fill_names(self, names: dict[Any, Any], own: dict[Any, Any]) -> None:
        if len(names) > _MANY:
            after = dict(dict.items(names))
        else:
            after = {self.of(name): self.of(one) for name, one in dict.items(names)}
        _set_names(own, after)
        self._names.append((names, dict(dict.items(names)), own, after))

    def _fill_items(self, value: Any, double: Any) -> None:
        items = _items(value)
        after = items if len(items) > _MANY else list(map(self.of, items))
        _set_items(double, after)
        self._items.append((value, items, double, after))

    def _parameter(self, value: nn.Parameter) -> nn.Parameter:
        copied = id(value) in self._copied
        double = nn.Parameter(value.clone() if copied else value, requires_grad=False)
        if vars(value):
            vars(double).update(vars(value))
        if copied:
            self._tensors.append(value)
            self._copies.append(double)
        else:
            self.parameters.append((value, double))
        return self._found(value, double)

    def _tensor(self, value: Tensor) -> Tensor:
        if is_lazy(value):
            raise NoShapeError
        if isinstance(value, nn.Parameter):  # of a class of its own
            self.undoubled_parameters.append(value)
            return self._found(value, value)
        if type(value._base) is Tensor:  # what is written to a view shows in the tensor that it is of
            view = self.of(value._base).as_strided(value.shape, value.stride(), value.storage_offset())
            return self._found(value, view)
        dense = type(value) is Tensor and value.layout is torch.strided and not value.is_nested and not value.is_meta
        if dense and not self._has_room(value):
            self.shared_state.append(value)
            return self._found(value, value.detach())
        try:
            double = value.clone()
        except (RuntimeError, NotImplementedError, TypeError):  # a library's own class, whose tensors are not copied
            return self._found(value, value)
        if dense:
            self._tensors.append(value)
            self._copies.append(double)
        else:
            self._kept = False
        return self._found(value, double)

    def _array(self, value: np.ndarray) -> np.ndarray:
        if not value.flags.writeable:
            return self._found(value, value)
        if id(value) not in self._copied and (type(value) is np.memmap or not self._has_room(value)):
            view = value.view()
            if self._evaluated:
                self.read_only.append(value)
                view.flags.writeable = False
            return self._found(value, view)
        double = np.array(value, subok=False)
        self._arrays.append((value, double))
        return self._found(value, double)

    def _has_room(self, value: Tensor | np.ndarray) -> bool:
        if id(value) in self._copied:
            return True
        fits = value.nbytes <= self._room
        self._room -= value.nbytes if fits else 0
        return fits

    def _generator(self, value: Any) -> Any:
        double = value.clone_state() if type(value) is torch.Generator else copy.deepcopy(value)
        self.generators.append(double)
        return self._found(value, double)

    def _script(self, value: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        """A copy, parameters and all: its insides are out of reach."""
        self._kept = False
        return self._found(value, copy.deepcopy(value).eval())

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        if all(map(_is_leaf, value)):
            return value
        kind: Any = type(value)
        if kind is tuple:
            return tuple(map(self.of, value))
        return kind._make(map(self.of, value)) if hasattr(kind, "_make") else value  # a named one

    def _partial(self, value: partial[Any]) -> partial[Any]:
        keywords = {name: self.of(one) for name, one in value.keywords.items()}
        return partial(self.of(value.func), *map(self.of, value.args), **keywords)

    def _method(self, value: MethodType) -> Any:
        owner = self.of(value.__self__)
        if owner is value.__self__:
            return value
        return self._instead_of(value.__self__).get(value.__func__.__name__) or MethodType(value.__func__, owner)

    def _builtin_method(self, value: BuiltinFunctionType) -> Any:
        owner = self.of(value.__self__)  # such as the list of an `append`, or a module of a plain function
        return value if owner is value.__self__ else getattr(owner, value.__name__)

    def _reference(self, value: weakref.ref[Any]) -> weakref.ref[Any]:
        target = value()
        double = self.of(target)
        return value if double is target else weakref.ref(double)

    def _wrapper(self, value: nn.Module) -> nn.Module:
        inside = _unwrapped(value)
        return self._module(inside) if inside is value else self.of(inside)

    def _function(self, value: FunctionType) -> Any:
        """The function with the doubles of what it closes over; of a compiled one what it was compiled from."""
        if "_torchdynamo_orig_callable" in vars(value):
            return self.of(vars(value)["_torchdynamo_orig_callable"])
        closure = value.__closure__ or ()
        if self._complete:
            self._doubles[id(value)] = value  # it may call itself
            cells = tuple(map(self._referring_cell, closure))
            del self._doubles[id(value)]
        else:
            cells = tuple(map(self.of, closure))
        if all(map(is_, cells, closure)):
            return value
        double = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
        double.__kwdefaults__, double.__qualname__ = value.__kwdefaults__, value.__qualname__
        vars(double).update(vars(value))
        return double if self._complete else self._found(value, double)

    def _referring_cell(self, value: CellType) -> CellType:
        """A cell with what stands for its content; the same one where that is the content itself."""
        if id(value) in self._doubles or value == CellType():
            return self._doubles.get(id(value), value)
        content = self.of(value.cell_contents)
        return value if content is value.cell_contents else CellType(content)

    def _referring(self, value: Any) -> Any:
        """An object with the doubles of its attributes; the same one where there are none."""
        names = {name: self._doubles.get(id(one), one) for name, one in vars(value).items()}
        if all(map(is_, names.values(), vars(value).values())):
            return value
        double = copy.copy(value)
        vars(double).update(names)
        return double

    def _instead_of(self, value: Any) -> dict[str, Callable[..., Any]]:
        return {name: other for (kind, name), other in self._instead.items() if isinstance(value, kind)}


@lru_cache(4096)
def _way_to_refer(kind: type) -> Callable[[Doubles, Any], Any] | None:
    """How to make an object that refers to doubles where this one, of a class of Python's own, refers to originals."""
    if kind.__name__ in _WRAPPERS and issubclass(kind, nn.Module):
        return Doubles._wrapper
    if issubclass(kind, tuple):
        return Doubles._tuple
    ways: dict[type, Callable[[Doubles, Any], Any]] = {
        partial: Doubles._partial,
        FunctionType: Doubles._function,
        MethodType: Doubles._method,
        BuiltinFunctionType: Doubles._builtin_method,
        weakref.ref: Doubles._reference,
    }
    return ways.get(kind)


@lru_cache(4096)
def _way_to_double(kind: type) -> Callable[[Doubles, Any], Any] | None:
    """How to make the double of an object of this class; ``None``: it is shared."""
    if kind in _DICTS or kind in _LISTS:
        return Doubles._dict if kind in _DICTS else Doubles._list
    if issubclass(kind, Tensor):
        return Doubles._parameter if kind is nn.Parameter else Doubles._tensor
    if issubclass(kind, nn.Module):
        return Doubles._script if issubclass(kind, torch.jit.ScriptModule) else Doubles._module
    if kind in (np.ndarray, np.memmap):
        return Doubles._array
    if issubclass(kind, GENERATORS):
        return Doubles._generator if kind is not random.SystemRandom else None
    if kind is CellType:
        return Doubles._cell
    return Doubles._object if _is_plain(kind) else None


@lru_cache(4096)
def _is_plain(kind: type) -> bool:
    """Whether objects of this class are the user's own and no more than their attributes and items."""
    if kind in _ALSO_PLAIN:
        return True
    users = kind.__module__.partition(".")[0] not in _NOT_THE_USERS and not hasattr(kind, "__del__")
    as_usual = kind.__new__ in _NEW and kind.__reduce_ex__ is object.__reduce_ex__  # how it is made and pickled
    return users and as_usual and bool(kind.__flags__ & _MADE_BY_A_CLASS_STATEMENT)


def _is_leaf(value: Any) -> bool:
    kind = type(value)
    return kind in _LEAVES or (kind is tuple and all(map(_is_leaf, value)))


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
def _no_garbage_collection() -> Iterator[None]:
    """Spare Python the search for circles in thousands of new objects, which takes longer than to make them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _same_names(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return len(now) == len(before) and all(map(is_, dict.values(now), before.values())) and all(map(is_, now, before))


def _set_names(own: dict[Any, Any], names: dict[Any, Any]) -> None:
    kind: Any = OrderedDict if type(own) is OrderedDict else dict  # past what a class of the user's does instead
    kind.clear(own)
    kind.update(own, names)


def _items(value: Any) -> list[Any]:
    """What a value holds in places without a name of their own: items, the content of a cell, slots."""
    kind = type(value)
    if kind is CellType:
        return [] if value == CellType() else [value.cell_contents]
    if issubclass(kind, _LISTS):
        return list(value)
    return [getattr(value, name, _MISSING) for name in _slots(kind)]


def _set_items(double: Any, items: list[Any]) -> None:
    """Let a double hold these, in the places of :func:`_items`."""
    kind = type(double)
    if kind is CellType:
        for item in items:
            double.cell_contents = item
    elif issubclass(kind, list):
        list.__setitem__(double, slice(None), items)
    elif kind in _LISTS:
        double.clear()
        double.update(items) if kind is set else double.extend(items)
    else:
        for name, item in zip(_slots(kind), items, strict=True):
            if item is not _MISSING:
                object.__setattr__(double, name, item)
            elif hasattr(double, name):
                object.__delattr__(double, name)


@lru_cache(4096)
def _slots(kind: type) -> list[str]:
    return copyreg._slotnames(kind)  # type: ignore[attr-defined]
