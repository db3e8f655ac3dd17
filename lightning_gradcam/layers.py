"""A layer's name, or nothing, to a module; and the grid that its output lies on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradcam.isolation import eager, evaluating, random_state

Layer = str | nn.Module

_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def check_layers(target_layer: Layer | Sequence[Layer] | None) -> tuple[Layer, ...]:
    """Turn the ``target_layer`` argument into a tuple, empty for ``None``; refuse what can never name a layer."""
    if target_layer is None:
        return ()
    layers: Any = target_layer if isinstance(target_layer, (list, tuple)) else (target_layer,)
    for layer in layers:
        if not isinstance(layer, (str, nn.Module)) or layer == "":
            raise TypeError(f"`target_layer` must be a name, a module or a sequence of these, got {layer!r}")
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"`target_layer` must name at least one layer, and none twice, got {list(layers)}")
    return tuple(layers)


def find_layer(model: nn.Module, layer: Layer) -> tuple[str, nn.Module]:
    """Find a layer in ``model``.

    Args:
        model: The model, or a module that wraps it.
        layer: A dotted name from ``model`` or from one of its direct children, with indices as Python prints them:
            ``"net.layer4"``, ``"layer4[-1].conv2"``; or a module of ``model``.

    Returns:
        The full dotted name and the module; inside a compiled module, the original one, which runs the hooks.

    Raises:
        ValueError: If there is no such layer, or several. The message names the three closest.
    """
    model = _original(model)
    names = {name.replace("_orig_mod.", ""): _original(module) for name, module in model.named_modules() if name}
    if isinstance(layer, nn.Module):
        for name, module in names.items():
            if module is _original(layer):
                return name, module
        raise ValueError(
            f"`target_layer` {type(layer).__name__} is not a part of {type(model).__name__}; "
            "pass a module of the model that is trained, or its name"
        )
    steps = re.sub(r"\[(-?\d+)\]", r".\1", layer).split(".")
    children = [[name] for name, _ in model.named_children()]
    matches = {found for start in [[], *children] if (found := _walk(model, [*start, *steps]))}
    if len(matches) > 1:
        raise ValueError(f"`target_layer` {layer!r} may mean {' or '.join(sorted(matches))}; give the full name")
    if not matches:
        closest = difflib.get_close_matches(layer, names, n=3, cutoff=0)
        raise ValueError(
            f"`target_layer` {layer!r} is not a layer of {type(model).__name__}; "
            f"the closest names are {', '.join(map(repr, closest))}"
        )
    (name,) = matches
    return name, names[name]


def _original(module: nn.Module) -> nn.Module:
    return getattr(module, "_orig_mod", module)


def _walk(module: Any, steps: Sequence[str]) -> str | None:
    """The full name that the steps lead to; an index that is no name of a child counts the children."""
    name = []
    for step in steps:
        module = _original(module)
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and re.fullmatch(r"-?\d+", step):
            children = [name for name, _ in module.named_children()]
            if step not in children and -len(children) <= int(step) < len(children):
                step = children[int(step)]  # counted from the end, or where the children have names
        module = getattr(module, step, None)
        if not isinstance(module, nn.Module):
            return None
        name.append(step)
    return ".".join(name)


def last_map_layer(model: nn.Module, forward: Callable[[], Any]) -> tuple[str, nn.Module]:
    """Choose the last layer whose output is a spatial map: the usual place for Grad-CAM in a convolutional network.

    Args:
        model: The model; it is left as it was.
        forward: Runs it once, on one or two samples.

    Returns:
        The full dotted name and the module. Of modules that hand out the same map, such as a block and its last
        layer, it is the outermost.

    Raises:
        ValueError: If no module gives a map ``(n, c, h, w)``, or what follows the last one works on tokens.
    """
    calls: list[tuple[nn.Module, tuple[int, ...]]] = []  # in the order in which the modules finish

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            calls.append((module, tuple(output.shape)))

    handles = [module.register_forward_hook(note) for module in model.modules() if module is not model]
    try:
        with torch.inference_mode(False), torch.no_grad(), random_state(), evaluating(model), eager():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    names = {_original(module): name.replace("_orig_mod.", "") for name, module in model.named_modules()}
    once = [module for module, _ in calls]
    for module, shape in reversed(calls):
        if len(shape) == 3 and shape[1] > 1:
            break  # tokens: a map before them is the patch embedding
        if (
            len(shape) == 4
            and shape[2] * shape[3] > 1
            and not isinstance(module, _ADAPTIVE_POOLS)
            and once.count(module) == 1
            and module in names
        ):
            return names[module], module
    raise ValueError(
        f"no layer of {type(model).__name__} that hands out a map (n, c, h, w) was found before the pooling; "
        'name one by `target_layer="..."`'
    )


def check_map(name: str, activations: Tensor, samples: int) -> None:
    """Refuse a layer whose output is no spatial map of every sample.

    Raises:
        ValueError: The message names the layer and its output's shape.
    """
    shape = tuple(activations.shape)
    if len(shape) != 4 or shape[0] != samples or shape[2] * shape[3] < 2:
        raise ValueError(
            f"`target_layer` {name!r} hands out {shape}, expected a spatial map ({samples}, c, h, w) of more than "
            "one cell; name a convolutional layer or block before the pooling"
        )
