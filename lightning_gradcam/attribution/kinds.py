"""How the double of an object is made, by the object's class.

Each function takes the doubles made so far and the original, and hands back what stands for it.
"""

from __future__ import annotations

import array
import copy
import random
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from functools import lru_cache, partial
from operator import is_, itemgetter
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_gradcam.attribution.contents import LISTS, slots_of
from lightning_gradcam.attribution.isolation import GENERATORS
from lightning_gradcam.attribution.references import way_to_refer

if TYPE_CHECKING:
    from lightning_gradcam.attribution.doubles import Doubles

LEAVES: set[type] = {
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    type(None),
    type,
    ModuleType,
    torch.dtype,
    torch.device,
    torch.Size,
}
OF_ANY_MODULE = nn.Module().__dict__.keys()  # parameters, hooks and the like
_DICTS = (dict, OrderedDict, defaultdict, Counter)
_WEAK = (WeakSet, WeakKeyDictionary, WeakValueDictionary)
_ALSO_PLAIN = (RemovableHandle, SimpleNamespace, Namespace, UserDict, UserList)
_NEW = (object.__new__, *(kind.__new__ for kind in (dict, list, set, deque, defaultdict)))
_MADE_BY_A_CLASS_STATEMENT = 1 << 9
_NOT_THE_USERS = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_gradcam", "numpy"}
_NOT_THE_USERS |= sys.stdlib_module_names - {"__main__"}
_WRAPPERS = ("OptimizedModule", "DistributedDataParallel")  # what is inside does the work
_LOGS = ("log", "log_dict")  # of a LightningModule
_STATE_DICT_HOOKS = [name for name in OF_ANY_MODULE if "state_dict" in name]  # they play no part in a forward
_HOLDERS = [name for name, one in vars(nn.Module()).items() if isinstance(one, (dict, set)) and "state" not in name]
_holders_of = itemgetter(*_HOLDERS)


@lru_cache(4096)
def way(kind: type) -> Callable[[Doubles, Any], Any]:
    """How to make what stands for an object of this class."""
    if issubclass(kind, nn.Module):
        if kind.__name__ in _WRAPPERS:
            return _wrapper
        return _script if issubclass(kind, torch.jit.ScriptModule) else _module
    if kind in _DICTS or kind in LISTS:
        return _dict if kind in _DICTS else _list
    if issubclass(kind, Tensor):
        return _parameter if kind is nn.Parameter else _tensor
    if issubclass(kind, np.ndarray):
        return _array
    if issubclass(kind, GENERATORS):
        return _generator if kind is not random.SystemRandom else _shared
    refer = way_to_refer(kind)
    if refer is not None:
        return partial(_refer, refer=refer)
    others: dict[type, Callable[[Doubles, Any], Any]] = {
        FunctionType: _function,
        MethodType: _method,
        CellType: _cell,
        bytearray: _bytes,
        array.array: _bytes,
    }
    others |= dict.fromkeys(_WEAK, _weak)
    return others.get(kind, _object if _is_plain(kind) else _shared)


def referring(doubles: Doubles, value: Any) -> Any:
    """What is none of the originals, made to refer to doubles where it refers to originals."""
    make = way(type(value))
    if make in (_function, _method, _wrapper) or isinstance(make, partial):
        return make(doubles, value)
    if make is not _object or not hasattr(value, "__dict__"):
        return value
    names = {name: doubles.by_id.get(id(one), one) for name, one in vars(value).items()}
    if all(map(is_, names.values(), vars(value).values())):
        return value
    double = copy.copy(value)
    vars(double).update(names)
    return double


def unwrapped(value: Any) -> Any:
    """What a wrapper of a module does its work with; anything else is itself."""
    while type(value).__name__ in _WRAPPERS and isinstance(value, nn.Module):
        (value,) = value._modules.values()
    return value


def modules_of(root: nn.Module | None) -> dict[int, nn.Module]:
    """The modules that ``root.modules()`` names, without the wrappers, by their ids."""
    found: dict[int, nn.Module] = {}
    pending = [root]
    while pending:
        module = unwrapped(pending.pop())
        if module is not None and id(module) not in found:
            found[id(module)] = module
            pending.extend(module._modules.values())
    return found


def _module(doubles: Doubles, module: nn.Module) -> nn.Module:
    kind: Any = type(module)
    double = doubles.found(module, object.__new__(kind))
    if hasattr(kind, "__del__"):
        doubles.closing.append(double)
    names = vars(module)
    holders = _holders_of(names)
    own = [doubles.of(one) if one else type(one)() for one in holders]  # most are empty
    after = names | dict.fromkeys(_STATE_DICT_HOOKS, doubles.no_hooks)
    after.update(zip(_HOLDERS, own, strict=True))
    for name, one in names.items():
        if type(one) not in LEAVES and name not in OF_ANY_MODULE:
            after[name] = doubles.of(one)
    if id(module) in doubles.evaluated:
        after["training"], after["_compiled_call_impl"] = False, None
        for name in ("_backward_hooks", "_backward_pre_hooks"):  # meant for training
            if names[name]:
                after[name] = OrderedDict()
                own.append(after[name])
        if doubles.sharded:  # its hooks exchange the parameters in the originals
            after["_parameters"] = names["_parameters"]
        if _is_lightning_module(kind):
            after |= dict.fromkeys(_LOGS, _log_nothing)
    vars(double).update(after)
    if doubles.kept:
        doubles.note_module(module, double, after, holders, own)
    if slots_of(kind):
        doubles.fill_items(module, double)
    return double


def _object(doubles: Doubles, value: Any) -> Any:
    """Of an object of the user's own class, which may be a container."""
    if _is_sentinel(value):
        return _shared(doubles, value)
    kind: Any = type(value)
    double = doubles.found(value, kind.__new__(kind))
    names = getattr(value, "__dict__", None)
    if names is value:  # whose keys are its attributes
        double.__dict__ = double
    elif names is not None:
        doubles.fill_names(names, vars(double))
    if issubclass(kind, defaultdict):
        double.default_factory = doubles.of(value.default_factory)
    if issubclass(kind, dict):
        doubles.fill_names(value, double)
    if issubclass(kind, LISTS) or slots_of(kind):
        doubles.fill_items(value, double)
    return double


def _dict(doubles: Doubles, value: Any) -> Any:
    double = defaultdict(doubles.of(value.default_factory)) if type(value) is defaultdict else type(value)()
    doubles.fill_names(value, doubles.found(value, double))
    return double


def _list(doubles: Doubles, value: Any) -> Any:
    double = deque(maxlen=value.maxlen) if type(value) is deque else type(value)()
    doubles.fill_items(value, doubles.found(value, double))
    return double


def _weak(doubles: Doubles, value: Any) -> Any:
    doubles.kept = False  # it changes where nobody sees it
    double = doubles.found(value, type(value)())
    if isinstance(value, WeakSet):
        double.update(map(doubles.of, list(value)))
    else:
        double.update({doubles.of(key): doubles.of(one) for key, one in list(value.items())})
    return double


def _cell(doubles: Doubles, value: CellType) -> CellType:
    double = doubles.found(value, CellType())
    doubles.fill_items(value, double)
    return double


def _parameter(doubles: Doubles, value: nn.Parameter) -> nn.Parameter:
    return _with_attributes(doubles, value, doubles.memory.parameter(value))


def _tensor(doubles: Doubles, value: Tensor) -> Tensor:
    return _with_attributes(doubles, value, doubles.memory.tensor(value))


def _with_attributes(doubles: Doubles, value: Any, double: Any) -> Any:
    doubles.found(value, double)
    if double is not value:
        names = vars(value)
        if names:
            doubles.fill_names(names, vars(double))
        elif doubles.kept:
            doubles.note_empty(names)
    return double


def _array(doubles: Doubles, value: np.ndarray) -> np.ndarray:
    if not value.dtype.hasobject:
        return doubles.found(value, doubles.memory.array(value))
    doubles.kept = False
    double = doubles.found(value, np.empty_like(value))
    for place, one in np.ndenumerate(value):
        double[place] = doubles.of(one)
    return double


def _generator(doubles: Doubles, value: Any) -> Any:
    double = value.clone_state() if type(value) is torch.Generator else copy.deepcopy(value)
    doubles.generators.append(double)
    return doubles.found(value, double)


def _script(doubles: Doubles, value: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A copy, parameters and all: its insides are out of reach."""
    doubles.kept = False
    return doubles.found(value, copy.deepcopy(value).eval())


def _bytes(doubles: Doubles, value: Any) -> Any:
    doubles.kept = False
    return doubles.found(value, copy.copy(value))


def _function(doubles: Doubles, value: FunctionType) -> Any:
    """The function with the doubles of what it closes over; of a compiled one what it was compiled from."""
    if "_torchdynamo_orig_callable" in vars(value):
        return doubles.of(vars(value)["_torchdynamo_orig_callable"])
    closure = value.__closure__ or ()
    doubles.by_id[id(value)] = value  # it may refer to itself
    cells = (
        tuple(_referring_cell(doubles, cell) for cell in closure)
        if doubles.complete
        else tuple(map(doubles.of, closure))
    )
    defaults, keywords = doubles.of(value.__defaults__), doubles.of(value.__kwdefaults__)
    del doubles.by_id[id(value)]
    refers = not all(map(is_, cells, closure)) or defaults is not value.__defaults__
    if not refers and keywords is value.__kwdefaults__ and (doubles.complete or not vars(value)):
        return value
    double = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells)
    double.__kwdefaults__ = keywords
    double.__qualname__, double.__module__ = value.__qualname__, value.__module__
    if doubles.complete:
        vars(double).update(vars(value))
        return double
    doubles.found(value, double)
    doubles.fill_names(vars(value), vars(double))
    return double


def _referring_cell(doubles: Doubles, value: CellType) -> CellType:
    """A cell with what stands for its content; the same one where that is the content itself."""
    if id(value) in doubles.by_id or value == CellType():
        return doubles.by_id.get(id(value), value)
    content = doubles.of(value.cell_contents)
    return value if content is value.cell_contents else CellType(content)


def _refer(doubles: Doubles, value: Any, *, refer: Callable[[Any, Any], Any]) -> Any:
    return refer(doubles.of, value)


def _method(doubles: Doubles, value: MethodType) -> Any:
    if value.__func__.__name__ in _LOGS and _is_lightning_module(type(value.__self__)):
        return _log_nothing
    owner = doubles.of(value.__self__)
    return value if owner is value.__self__ else MethodType(value.__func__, owner)


def _wrapper(doubles: Doubles, value: nn.Module) -> nn.Module:
    return doubles.of(unwrapped(value))


def _shared(doubles: Doubles, value: Any) -> Any:
    doubles.originals[id(value)] = value
    return value


def _log_nothing(*args: Any, **options: Any) -> None:
    """Take the place of ``LightningModule.log``."""


@lru_cache(4096)
def _is_lightning_module(kind: type) -> bool:
    return any(base.__name__ == "LightningModule" for base in kind.__mro__)


def _is_plain(kind: type) -> bool:
    """Whether objects of this class are the user's own and no more than their attributes and items."""
    if kind in _ALSO_PLAIN:
        return True
    package = kind.__module__.partition(".")[0]
    users = package not in _NOT_THE_USERS or (issubclass(kind, dict) and package not in ("torch", "numpy"))
    as_usual = kind.__new__ in _NEW and kind.__reduce_ex__ is object.__reduce_ex__ and not hasattr(kind, "__del__")
    return users and as_usual and bool(kind.__flags__ & _MADE_BY_A_CLASS_STATEMENT)


def _is_sentinel(value: Any) -> bool:
    """Whether an object holds nothing and is a constant of its class's module, told by its identity."""
    if getattr(value, "__dict__", None) or slots_of(type(value)) or isinstance(value, (dict, *LISTS)):
        return False
    module = sys.modules.get(type(value).__module__)
    return any(one is value for one in list(vars(module).values())) if module else False
