"""Keep what is global to a process as it was: random states, and what new tensors are by default."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

_OF_ANY_MODULE = nn.Module().__dict__.keys()  # hooks and the like, which a module handles itself


@contextmanager
def random_state(seed: int | None = None, holder: Any = None) -> Iterator[None]:
    """Restore the CPU, CUDA, numpy and python random states on exit, also after an exception.

    Args:
        seed: What to seed all of them with on entry; ``None`` leaves them as they are.
        holder: An object whose own random generators are restored as well, such as a dataset with one in a transform.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    held = _generators(holder)
    restore_held = [_restorer(generator) for generator in held]
    with torch.random.fork_rng(()), _cuda_state(seed):
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                np.random.seed(seed)
                random.seed(seed)
                for generator in held:
                    seed_generator(generator, seed)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            for restore in restore_held:
                restore()


@contextmanager
def _cuda_state(seed: int | None) -> Iterator[None]:
    """Let the CUDA devices' own generators be in a state of ours, seeded or a copy of theirs.

    States are exchanged, never set: after a seed or a state is set, as by `fork_rng`, the next training step of a
    recurrent layer with dropout draws cuDNN's state anew (`reset_rnn_state` of torch's CUDA generator).
    """
    # Seeding CUDA before it is initialised would only be queued, and would later overwrite the run's own seed.
    generators = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    own = [generator.graphsafe_get_state() for generator in generators]
    try:
        for generator in generators:
            other = generator.clone_state()
            if seed is not None:
                other.manual_seed(seed)
            generator.graphsafe_set_state(other)
        yield
    finally:
        for generator, state in zip(generators, own, strict=True):
            generator.graphsafe_set_state(state)


GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
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
            if isinstance(item, GENERATORS) and not isinstance(item, random.SystemRandom):
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
    if isinstance(item, (MethodType, BuiltinMethodType)):  # numpy's are of either type, by its release
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


def seed_generator(generator: Any, seed: int) -> None:
    """Seed a random generator of whatever library."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        seed_generator(generator.bit_generator, seed)
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = type(generator)(seed).state
    else:
        generator.seed(seed)


def _restorer(generator: Any) -> Callable[[], object]:
    if isinstance(generator, np.random.Generator):
        generator = generator.bit_generator
    if isinstance(generator, np.random.BitGenerator):
        return partial(setattr, generator, "state", generator.state)
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        return partial(generator.set_state, generator.get_state())
    return partial(generator.setstate, generator.getstate())


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Let new tensors be float32 on the CPU, whatever the user has made the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    moved = torch.empty(0).device.type != "cpu"
    try:
        with torch.device("cpu") if moved else nullcontext():  # a mode that costs every call
            yield
    finally:
        torch.set_default_dtype(before)
