"""Borrow a model and the random state, and give both back as they were."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def random_state(seed: int | None = None, holder: Any = None) -> Iterator[None]:
    """Restore the CPU, CUDA, numpy and python random states on exit, also after an exception.

    Args:
        seed: What to seed all of them with on entry; ``None`` leaves them as they are.
        holder: An object whose own random generators are restored as well, such as a dataset with one in a transform.
    """
    # Seeding CUDA before it is initialised would only be queued, and would later overwrite the run's own seed.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    held = _generators(holder)
    restore_held = [_restorer(generator) for generator in held]
    with torch.random.fork_rng(devices):
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                if devices:
                    torch.cuda.manual_seed_all(seed)
                np.random.seed(seed)
                random.seed(seed)
                for generator in held:
                    _seed(generator, seed)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            for restore in restore_held:
                restore()


_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_LEAVES = (str, bytes, int, float, complex, type(None), torch.Tensor, np.ndarray, type, ModuleType)


def _generators(holder: Any) -> list[Any]:
    """The random generators in an object's attributes, containers and closures, and in those of what is found there."""
    found, seen, pending, later = [], set(), deque([holder]), deque()
    while (pending or later) and len(seen) < 10_000:
        item = (pending or later).popleft()
        with suppress(ReferenceError):  # a weak reference to what is gone
            if isinstance(item, _LEAVES) or id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, _GENERATORS) and not isinstance(item, random.SystemRandom):
                found.append(item)
                continue
            if isinstance(item, nn.Module):
                pending.extend(item.children())
            parts = _parts(item)
            # A long list, such as a dataset's files, comes last: it shall hide nothing beside it.
            (later if len(parts) > 100 else pending).extend(parts)
    return found


def _parts(item: Any) -> list[Any]:
    """What an object holds: items, what a function closes over, or attributes."""
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, (list, tuple)):
        return list(item)
    if isinstance(item, partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, MethodType):
        return [item.__self__]
    if isinstance(item, FunctionType):
        parts = []
        for cell in item.__closure__ or ():
            with suppress(ValueError):  # a cell that is still empty
                parts.append(cell.cell_contents)
        return parts
    names = getattr(item, "__dict__", {})
    if isinstance(item, nn.Module):  # whose own two dozen dicts are mostly empty
        return [value for name, value in names.items() if name not in _OF_ANY_MODULE or value]
    return list(names.values())


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed)


def _restorer(generator: Any) -> Callable[[], object]:
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        return partial(generator.set_state, generator.get_state())
    return partial(generator.setstate, generator.getstate())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` in eval mode and restore on exit what a forward can change.

    Restored are each module's own ``training`` flag, each parameter's ``requires_grad``, each dense buffer, and each
    plain attribute, such as a counter, a cached tensor, or what lists, dicts, sets and tuples hold. Flags are set one
    by one: ``model.train()`` would also flip the sub-modules that the user keeps in eval mode. The user's backward
    hooks do not run: they are meant for training.
    """
    modules = list(model.modules())
    training = [module.training for module in modules]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    restorers = [_restorer_of_names(names, limit) for module in modules for names, limit in _namespaces(module)]
    try:
        for module in modules:
            module.training = False
            for name in ("_backward_hooks", "_backward_pre_hooks"):
                if getattr(module, name, None):
                    setattr(module, name, OrderedDict())
        yield
    finally:
        with ExitStack() as stack:  # all of it, also where one of them fails
            for restore in restorers:
                stack.callback(restore)
            for parameter, flag in trainable:
                stack.callback(parameter.requires_grad_, flag)
            for module, flag in zip(modules, training, strict=True):
                stack.callback(setattr, module, "training", flag)


def _namespaces(module: nn.Module) -> Iterator[tuple[dict[str, Any], float]]:
    """What a module names that a forward may change, and how many values of a tensor there are worth a copy."""
    if isinstance(module._buffers, dict):  # a scripted module has none of its own
        yield module._buffers, math.inf
    if not type(module).__module__.startswith("torch.distributed."):  # wrappers keep the state of a protocol there
        yield vars(module), 1_000_000


def _restorer_of_names(names: dict[str, Any], limit: float) -> Callable[[], None]:
    """A function that gives names back as they are now: the objects, and what tensors, arrays and containers hold."""
    objects = dict(names)
    values = _held(value for name, value in objects.items() if name not in _OF_ANY_MODULE)
    direct, room, held = set(map(id, objects.values())), 1_000_000, []
    for value in values:
        own = id(value) in direct
        if _is_state(value, limit if own else room):
            held.append((value, value.detach().clone(), value.requires_grad))
            room -= 0 if own else value.numel()  # a list may hold the outputs of a whole validation
    arrays = [(value, value.copy()) for value in values if isinstance(value, np.ndarray)]
    containers = [(value, copy.copy(value)) for value in values if type(value) in _CONTAINERS]

    def restore() -> None:
        for name in names.keys() - objects.keys():
            del names[name]
        names.update(objects)
        for container, content in containers:
            container.clear()
            (container.extend if isinstance(container, (list, deque)) else container.update)(content)
        for array, values in arrays:
            array[...] = values
        with torch.no_grad():
            for tensor, values, required_grad in held:
                if tensor.requires_grad and not required_grad:  # changed in place by what depends on our leaf
                    tensor.detach_()
                # BatchNorm changes its buffers without a version bump, so only the values tell.
                if tensor.shape != values.shape:
                    tensor.resize_(values.shape)
                if not torch.equal(tensor, values):
                    tensor.copy_(values)

    return restore


def _held(values: Iterable[Any]) -> list[Any]:
    """The values, and what their containers hold in turn; of that at most the nearest 10,000."""
    found, seen, pending = [], set(), deque(values)
    while pending and len(found) < 10_000:
        value = pending.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        found.append(value)
        if type(value) in _CONTAINERS or type(value) is tuple:
            pending.extend(value.values() if isinstance(value, dict) else value)
    return found


_CONTAINERS = (list, deque, dict, OrderedDict, defaultdict, Counter, set)
_OF_ANY_MODULE = nn.Module().__dict__.keys()  # hooks and the like, which a module handles itself


def _is_state(value: Any, limit: float) -> bool:
    dense = isinstance(value, torch.Tensor) and not is_lazy(value) and value.layout == torch.strided
    return dense and not isinstance(value, nn.Parameter) and value.numel() <= limit


@contextmanager
def unchanged(thing: Any) -> Iterator[None]:
    """Restore on exit the attributes of an object, and what containers among them hold.

    Of a function these are what it closes over, of a method those of the object that it is bound to.
    """
    with ExitStack() as stack:
        for restore in list(_restorers_of(thing)):
            stack.callback(restore)
        yield


def _restorers_of(thing: Any, depth: int = 3) -> Iterator[Callable[[], object]]:
    parts: list[Any] = []
    if isinstance(thing, MethodType):
        parts = [thing.__self__]
    elif isinstance(thing, partial):
        parts = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # a cell that is still empty
                parts.append(cell.cell_contents)
                yield partial(setattr, cell, "cell_contents", cell.cell_contents)
        yield _restorer_of_names({str(i): part for i, part in enumerate(parts)}, 1_000_000)
    elif not isinstance(thing, (type, ModuleType)) and hasattr(thing, "__dict__"):
        yield _restorer_of_names(vars(thing), 1_000_000)
    for part in parts if depth else ():
        yield from _restorers_of(part, depth - 1)


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Let new tensors be float32 on the CPU, whatever the user has made the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def borrowed(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Run a model for a look at it: in eval mode, uncompiled, outside inference mode, and with nothing of it kept.

    Args:
        model: The model; see :func:`evaluating` and :func:`random_state` for what is given back.
        seed: See :func:`random_state`; always the same, so that a forward that draws random numbers draws them again.
    """
    with torch.inference_mode(False), random_state(seed, holder=model), evaluating(model), eager():
        yield


def eager() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled: a compiled graph skips hooks. Without dynamo loaded nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
