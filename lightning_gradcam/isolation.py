"""Borrow a model and the random state, and give both back as they were."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
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
    restore_held = [_restorer(generator) for generator in _generators(holder)]
    with torch.random.fork_rng(devices):
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                if devices:
                    torch.cuda.manual_seed_all(seed)
                np.random.seed(seed)
                random.seed(seed)
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
    found, seen, pending = [], set(), deque([holder])
    while pending and len(seen) < 10_000:  # nearest first, so that a long list of objects hides nothing beside it
        item = pending.popleft()
        if isinstance(item, _LEAVES) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, _GENERATORS) and not isinstance(item, random.SystemRandom):
            found.append(item)
        elif isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
        elif isinstance(item, partial):
            pending.extend([item.func, *item.args, *item.keywords.values()])
        elif isinstance(item, MethodType):
            pending.append(item.__self__)
        elif isinstance(item, FunctionType):
            for cell in item.__closure__ or ():
                with suppress(ValueError):  # a cell that is still empty
                    pending.append(cell.cell_contents)
        else:
            pending.extend(getattr(item, "__dict__", {}).values())
    return found


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
    plain attribute, such as a counter, a cached tensor, or the items of a list, dict or set. Flags are set one by one:
    ``model.train()`` would also flip the sub-modules that the user keeps in eval mode. The user's backward hooks do not
    run: they are meant for training.
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
    held = [(value, value.detach().clone()) for value in objects.values() if _is_state(value, limit)]
    arrays = [(value, value.copy()) for value in objects.values() if isinstance(value, np.ndarray)]
    own = [value for name, value in objects.items() if name not in _OF_ANY_MODULE]
    containers = [(value, copy.copy(value)) for value in own if type(value) in _CONTAINERS]

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
            for tensor, values in held:
                # BatchNorm changes its buffers without a version bump, so only the values tell.
                if tensor.shape != values.shape:
                    tensor.resize_(values.shape)
                if not torch.equal(tensor, values):
                    tensor.copy_(values)

    return restore


_CONTAINERS = (list, deque, dict, OrderedDict, defaultdict, Counter, set)
_OF_ANY_MODULE = nn.Module().__dict__.keys()  # hooks and the like, which a module handles itself


def _is_state(value: Any, limit: float) -> bool:
    dense = isinstance(value, torch.Tensor) and not is_lazy(value) and value.layout == torch.strided
    return dense and value.numel() <= limit


@contextmanager
def borrowed(model: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Run a model for a look at it: in eval mode, uncompiled, outside inference mode, and with nothing of it kept.

    Args:
        model: The model; see :func:`evaluating` and :func:`random_state` for what is given back.
        seed: See :func:`random_state`.
    """
    with torch.inference_mode(False), random_state(seed, holder=model), evaluating(model), eager():
        yield


def eager() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled: a compiled graph skips hooks. Without dynamo loaded nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
