"""Borrow a model and the random state, and give both back as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn


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


def _generators(holder: Any) -> list[Any]:
    """The random generators in an object's attributes and containers, and in those of the objects found there."""
    found, seen, pending = [], set(), [holder]
    while pending and len(seen) < 10_000:  # a dataset may hold a list of all its files
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, _GENERATORS) and not isinstance(item, random.SystemRandom):
            found.append(item)
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, (list, tuple)):
            pending += item
        elif not isinstance(item, (torch.Tensor, type, ModuleType)):
            pending += getattr(item, "__dict__", {}).values()
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

    Restored are each module's own ``training`` flag, each parameter's ``requires_grad`` and each buffer, both
    the object and its values. Flags are set one by one: ``model.train()`` would also flip the sub-modules that
    the user keeps in eval mode.
    """
    training = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        for module, _ in training:
            module.training = False
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                # BatchNorm changes its buffers without a version bump, so only the values tell.
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def eager() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled: a compiled graph skips hooks. Without dynamo loaded nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
