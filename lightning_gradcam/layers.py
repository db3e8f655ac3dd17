"""A layer's name, or nothing, to a module; and the grid that its output lies on."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from lightning_gradcam.batch import Batch
from lightning_gradcam.isolation import borrowed
from lightning_gradcam.layout import Grid, Layout, Tokens, channels_first, infer, tensor_in
from lightning_gradcam.targets import Target, score

Layer = str | nn.Module

_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_LARGE = 1024 * 1024  # pixels; of larger images one is enough to choose a layer, and all that is affordable
# Nodes of the autograd graph that hand on the same values in another order or shape.
_REORDERINGS = ("PermuteBackward0", "TransposeBackward0", "ViewBackward0", "UnsafeViewBackward0", "CloneBackward0")


def check_layers(target_layer: Layer | Sequence[Layer] | None, grid: Any = None) -> tuple[Layer, ...]:
    """Turn the ``target_layer`` argument into a tuple, empty for ``None``; refuse what can never name a layer."""
    if target_layer is None:
        if grid is not None:
            raise ValueError("`grid` says how the output of a named layer lies; give `target_layer` as well")
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
    names = {name: module for module, name in _names(model).items()}
    if isinstance(layer, nn.Module):
        for name, module in names.items():
            if module is _original(layer):
                return name, module
        raise ValueError(
            f"`target_layer` {type(layer).__name__} is not a part of {type(model).__name__}; "
            "pass a module of the model that is trained, or its name"
        )
    steps = re.sub(r"\[(-?\d+)\]", r".\1", layer).split(".")
    starts = [name for name, _ in model.named_children()]
    full = _walk(model, steps)
    matches = {full} if full else {found for start in starts if (found := _walk(model, [start, *steps]))}
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


def _original(module: Any) -> Any:
    """What a compiled module was compiled from; asked so that no attribute of the user's own answers."""
    compiled = isinstance(module, nn.Module) and "_orig_mod" in module._modules
    return module._modules["_orig_mod"] if compiled else module


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """The full dotted name of every module in the model, as if nothing were compiled."""
    named = ((_original(module), re.sub(r"(^|\.)_orig_mod", "", name)) for name, module in model.named_modules())
    return {module: name.removeprefix(".") for module, name in named if module is not _original(model)}


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


@dataclass(eq=False)
class _Call:
    """A module has handed out a tensor.

    Attributes:
        name: Of the module.
        module: The module.
        shape: Of the tensor.
        source: The node of the autograd graph that made the tensor, and which of its outputs it is.
        layout: How the tensor lies on a grid, if it does.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    source: tuple[Node | None, int]
    layout: Layout = channels_first
    grid: Grid = (0, 0)

    @property
    def cells(self) -> int:
        return math.prod(self.grid)


def locate(
    model: nn.Module,
    layers: Sequence[Layer],
    grid: Layout | None,
    batch: Batch,
    forward: Callable[[Batch], Any],
    target: Target,
) -> tuple[dict[str, Layout], str]:
    """Find the layers, or choose one, and how their outputs lie on a grid.

    Args:
        model: The model; it is left as it was.
        layers: Names or modules; none: one is chosen.
        grid: The layout of all named layers; ``None``: it is found from one forward without gradients.
        batch: The samples, of which one or two are run.
        forward: Runs the model on a batch.
        target: ``(output, batch) -> scores (n,)``, for the choice.

    Returns:
        Each layer's layout by its full dotted name; and why a layer was chosen, empty where they were named.

    Raises:
        ValueError: If a name is wrong or no layer can be chosen.
    """
    batch = batch.part(slice(2 if math.prod(batch.images.shape[2:]) <= _LARGE else 1))
    if not layers:
        name, layout, reason = choose_layer(model, batch, forward, target)
        return {name: layout}, reason
    found = dict(find_layer(model, layer) for layer in layers)
    if len(found) < len(layers):
        raise ValueError(f"`target_layer` {list(layers)} names a layer twice, {list(found)}")
    if grid:
        return dict.fromkeys(found, grid), ""
    calls: list[_Call] = []
    with _on_trial(model), torch.no_grad(), _noting(model, calls):
        forward(batch)
    _lay_out(calls, batch)
    layouts = {call.name: call.layout for call in calls}
    return {name: layouts.get(name, channels_first) for name in found}, ""


def choose_layer(
    model: nn.Module, batch: Batch, forward: Callable[[Batch], Any], target: Target
) -> tuple[str, Layout, str]:
    """Choose the layer that tells best where the score comes from.

    It is the last one on a grid that all that the score knows of the image passes through: in the autograd graph
    every path from the score to the image crosses it. And it is alive: the score's gradient reaches more than one cell
    of its grid, and more than one channel, of which the map of a single class has one.

    Two kinds of networks ask for more. Where the score is read from a class token, no patch is alive after the last
    block, and the last such layer is the one before that block; then the norm is taken through which the block reads
    it. Where branches run side by side after it, on smaller grids, it is the last layer of the smallest grid.

    Args:
        model: The model; it is left as it was.
        batch: One or two samples.
        forward: Runs the model on a batch.
        target: ``(output, batch) -> scores (n,)``.

    Returns:
        The full dotted name, the layout of its output and why it was chosen. Of modules that hand out the same
        tensor, such as a block and its last layer, it is the outermost.

    Raises:
        ValueError: If there is none.
    """
    calls: list[_Call] = []
    with _on_trial(model), torch.enable_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        batch = batch.apply(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))
        with _noting(model, calls, graph=True) as head:
            output = forward(batch)
        _lay_out(calls, batch)
        candidates = _candidates(calls)
        try:
            root = score(target, output, batch).sum()
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"`target` failed on the {len(batch.images)} samples with which a layer is chosen; it must take any "
                "number of them, and read labels from `batch.labels`"
            ) from error
        inputs: list[Tensor] = []
        apply_to_collection(batch.inputs, Tensor, inputs.append)
        crossed = _crossed(root.grad_fn, [batch.images]) or _crossed(root.grad_fn, inputs)
        if root.requires_grad and head and not _gradient(root, head[0]).any():
            # A head whose weights start at zero hides all that is before it: ask what it reads.
            root = (head[0] * torch.randn_like(head[0])).sum()
        through = [call for call in candidates if call.source[0] in crossed]
        best = next((call for call in reversed(through) if _alive(call, root)), None)
        reason = "the last layer that all paths from the image to the score cross"

        after = candidates if best is None else candidates[candidates.index(best) + 1 :]
        alike = [call for call in after if best is not None and call.shape == best.shape]
        if any(call in through and isinstance(call.layout, Tokens) for call in alike):  # no patch is alive there
            reader = next((call for call in alike if _alive(call, root)), None)
            if reader is not None:
                best, reason = reader, "through which the class token reads the patches for the last time"
        else:
            smaller = [call for call in after if best is None or call.cells < best.cells]
            smaller.sort(key=lambda call: -call.cells)
            branch = next((call for call in reversed(smaller) if _alive(call, root)), None)
            if branch is not None:
                best, reason = branch, "the last layer of the smallest grid, since branches run side by side"
        if best is None:
            if not root.requires_grad:
                problem = "the score has no gradient: the forward detaches it, runs in inference mode or on integers"
            elif not candidates:
                problem = "none of its modules, called once, hands out maps or tokens on a grid"
            else:
                problem = f"the score's gradient is zero or not finite in all {len(candidates)} layers on a grid"
            raise ValueError(
                f'no layer of {type(model).__name__} can be chosen, since {problem}; name one by `target_layer="..."`'
            )
    return best.name, best.layout, f"{' x '.join(map(str, best.grid))} cells, {reason}"


@contextmanager
def _on_trial(model: nn.Module) -> Iterator[None]:
    with borrowed(model, seed=0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a re-entrant checkpoint complains of inputs without gradients
        yield


@contextmanager
def _noting(model: nn.Module, calls: list[_Call], graph: bool = False) -> Iterator[list[Tensor]]:
    """Note what the modules hand out, in the order in which they finish.

    Args:
        model: The model.
        calls: The list to fill.
        graph: Whether to build the autograd graph also where the model turns it off.

    Yields:
        A list that holds in the end what the last module with parameters of its own has read.
    """
    names = _names(model)
    head: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        if graph:
            torch.set_grad_enabled(True)
            has_weights = any(True for _ in module.parameters(recurse=False))
            if has_weights and args and isinstance(args[0], Tensor) and args[0].requires_grad:
                head[:] = [args[0]]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        output = tensor_in(output)
        if isinstance(output, Tensor):
            source = (output.grad_fn, output.output_nr)
            calls.append(_Call(names[_original(module)], module, tuple(output.shape), source))

    handles = []
    try:
        for module in names:
            if not isinstance(module, torch.jit.ScriptModule):
                handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        yield head
    finally:
        for handle in handles:
            handle.remove()


def _lay_out(calls: Sequence[_Call], batch: Batch) -> None:
    """Find the layout of every tensor that was handed out."""
    samples, _, height, width = batch.images.shape
    seen: dict[Grid, None] = {}
    for call in calls:
        if len(call.shape) == 4 and _is_spatial(call.module):
            seen[call.shape[2:]] = None
        found = infer(call.shape, samples, (height, width), seen)
        if found:
            call.layout, call.grid = found
            if isinstance(call.layout, Tokens) and call.cells == call.shape[1 - call.layout.batch_axis]:
                seen[call.grid] = None


def _is_spatial(module: nn.Module) -> bool:
    """Whether the module is a pooling or has a convolution's weights, maybe to call a function with them."""
    has_kernel = any(parameter.ndim == 4 for parameter in module.parameters(recurse=False))
    return has_kernel or isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.Conv2d))


def _candidates(calls: Sequence[_Call]) -> list[_Call]:
    """Of the modules that handed out one tensor on a grid, the outermost that was called once."""
    times = Counter(call.module for call in calls)
    handed: dict[tuple[Node | None, int], list[_Call]] = {}
    for call in calls:
        node, output = call.source
        while node is not None and node.name() in _REORDERINGS:
            node, output = node.next_functions[0]
        handed.setdefault((node, output), []).append(call)
    found = []
    for (node, _), same in handed.items():
        maker = same[0]
        outer = [
            call
            for call in same
            if f"{maker.name}.".startswith(f"{call.name}.") and times[call.module] == 1 and call.cells
        ]
        if node is not None and outer and not isinstance(maker.module, _ADAPTIVE_POOLS):
            found.append(outer[-1])
    return found


def _crossed(score: Node | None, leaves: Sequence[Tensor]) -> set[Node]:
    """The nodes of the autograd graph that every path from the score to one of the leaves crosses."""
    finished: list[Node] = []  # depth first: what a node leads to comes before it
    entered: set[Node | None] = {None}
    stack = [(score, False)]
    while stack:
        node, left = stack.pop()
        if left and node:
            finished.append(node)
        elif node and node not in entered:
            entered.add(node)
            stack.append((node, True))
            stack.extend((following, False) for following, _ in node.next_functions)
    place: dict[Node, int] = {}  # of those that lead to a leaf, counted from there
    for node in finished:
        variable = getattr(node, "variable", None)
        ends = any(variable is leaf for leaf in leaves)
        if ends or any(following in place for following, _ in node.next_functions):
            place[node] = len(place)
    crossed, reached = set(), len(place)
    for node in reversed(place):  # from the score on: no edge before a crossed node leads past it
        if reached >= place[node]:
            crossed.add(node)
        reached = min([reached, *(place[following] for following, _ in node.next_functions if following in place)])
    return crossed


def _gradient(root: Tensor, of: Tensor | GradientEdge) -> Tensor:
    """The gradient of ``root``; zero where it does not depend on the tensor."""
    if not root.requires_grad:
        return torch.zeros(())
    try:
        (gradient,) = torch.autograd.grad(root, of, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise ValueError(
            'a re-entrant checkpoint hides what the score depends on; name a layer by `target_layer="..."`, or use '
            "`checkpoint(..., use_reentrant=False)`"
        ) from error
    return torch.zeros(()) if gradient is None else gradient


def _alive(call: _Call, root: Tensor) -> bool:
    """Whether the gradient is finite and in some sample reaches more than one cell and more than one channel."""
    node, output = call.source
    gradient = _gradient(root, GradientEdge(node, output)) if node else torch.zeros(())
    if gradient.shape != call.shape:
        return False
    gradient = call.layout(gradient).flatten(2)
    channels, cells = ((gradient != 0).any(axis).sum(1) for axis in (2, 1))
    return bool(gradient.isfinite().all() and ((channels > 1) & (cells > 1)).any())
