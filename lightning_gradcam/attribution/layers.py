"""A layer's name to a module of the model, and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_gradcam.attribution.sequences import as_list

Layer = str | nn.Module


def check_layers(target_layer: Layer | Sequence[Layer] | None, grid: Any = None) -> tuple[Layer, ...]:
    """Turn the ``target_layer`` argument into a tuple, empty for ``None``; refuse what can never name a layer."""
    if target_layer is None:
        if grid is not None:
            raise ValueError("`grid` says how the output of a named layer lies; give `target_layer` as well")
        return ()
    given: Any = as_list(target_layer)
    layers = given if isinstance(given, list) else [given]
    for layer in layers:
        if not isinstance(layer, (str, nn.Module)) or layer == "":
            raise TypeError(f"`target_layer` must be a name, a module or a sequence of these, got {layer!r}")
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"`target_layer` must name at least one layer, and none twice, got {layers}")
    return tuple(layers)


def split_call(name: str) -> tuple[str, int | None]:
    """A layer's name and which of its calls is meant, counted from 1: ``"relu#2"`` to ``("relu", 2)``."""
    found = re.fullmatch(r"(.+)#([1-9]\d*)", name, re.DOTALL)
    return (found[1], int(found[2])) if found else (name, None)


def find_layer(model: nn.Module, layer: Layer) -> tuple[str, nn.Module]:
    """Find a layer in ``model``.

    Args:
        model: The model, or a module that wraps it.
        layer: A dotted name from ``model`` or from one of its direct children, with indices as Python prints them:
            ``"net.layer4"``, ``"layer4[-1].conv2"``; of a module that one forward calls several times, which call,
            counted from 1: ``"relu#2"``; or a module of ``model``.

    Returns:
        The full dotted name, with the call where one was named, and the module; inside a compiled module, the
        uncompiled one, which runs the hooks.

    Raises:
        ValueError: If there is no such layer, or several. The message names the three closest.
    """
    model = uncompiled(model)
    if isinstance(layer, nn.Module):
        for name, module in names_of_modules(model).values():
            if module is uncompiled(layer):
                return name, module
        raise ValueError(
            f"`target_layer` {type(layer).__name__} is not a part of {type(model).__name__}; "
            "pass a module of the model that is trained, or its name"
        )
    name, call = split_call(layer)
    steps = re.sub(r"\[(-?\d+)\]", r".\1", name).split(".")
    starts = [name for name, _ in model.named_children()]
    full = _resolve(model, steps)
    matches = dict([full] if full else [found for start in starts if (found := _resolve(model, [start, *steps]))])
    if len(matches) > 1:
        raise ValueError(f"`target_layer` {layer!r} may mean {' or '.join(sorted(matches))}; give the full name")
    if not matches:
        names = [name for name, _ in names_of_modules(model).values()]
        closest = difflib.get_close_matches(layer, names, n=3, cutoff=0)
        raise ValueError(
            f"`target_layer` {layer!r} is not a layer of {type(model).__name__}; "
            f"the closest names are {', '.join(map(repr, closest))}"
        )
    ((name, module),) = matches.items()
    return (f"{name}#{call}" if call else name), module


def uncompiled(module: Any) -> Any:
    """What a compiled module was compiled from; asked so that no attribute of the user's own answers."""
    compiled = isinstance(module, nn.Module) and "_orig_mod" in module._modules
    return module._modules["_orig_mod"] if compiled else module


def names_of_modules(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """The full dotted name of every module in the model, as if nothing were compiled, and the module, by its id.

    By their ids, since some have a hash or an equality of their own, such as a metric, whose hash moves with its state.
    """
    named = ((uncompiled(module), re.sub(r"(^|\.)_orig_mod", "", name)) for name, module in model.named_modules())
    return {id(module): (name.removeprefix("."), module) for module, name in named if module is not uncompiled(model)}


def _resolve(module: Any, steps: Sequence[str]) -> tuple[str, nn.Module] | None:
    """The full name and the module that the steps lead to; an index that is no child's name counts the children."""
    name = []
    for step in steps:
        module = uncompiled(module)
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and re.fullmatch(r"-?\d+", step):
            children = [name for name, _ in module.named_children()]
            if step not in children and -len(children) <= int(step) < len(children):
                step = children[int(step)]  # counted from the end, or where the children have names
        module = getattr(module, step, None)
        if not isinstance(module, nn.Module):
            return None
        name.append(step)
    return ".".join(name), uncompiled(module)
