"""Which layer to look at where none is named, and how the output of any lies on a grid."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.modules.module import register_module_forward_hook

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.layers import Layer, find_layer, names_of_modules
from lightning_gradcam.attribution.layout import Grid, Layout, Tokens, channels_first, first_tensor, infer_layout
from lightning_gradcam.attribution.targets import Target, score

_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_LARGE = 1024 * 1024  # pixels; of larger images one is enough to choose a layer, and all that is affordable
# Nodes of the autograd graph that hand on the same values in another order or shape.
_REORDERINGS = ("PermuteBackward0", "TransposeBackward0", "ViewBackward0", "UnsafeViewBackward0", "CloneBackward0")


@dataclass(eq=False)
class _ModuleCall:
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


def locate_layers(
    model: nn.Module,
    layers: Sequence[Layer],
    grid: Layout | None,
    batch: Batch,
    forward: Callable[[Batch], Any],
    target: Target,
) -> tuple[dict[str, Layout | None], str]:
    """Find the layers, or choose one.

    Args:
        model: A stand-in.
        layers: Names or modules of it; none: one is chosen.
        grid: The layout of all named layers; ``None``: the forward that captures them will tell.
        batch: The samples, of which one or two are run to choose a layer.
        forward: Runs the model on a batch.
        target: ``(output, batch) -> scores (n,)``, for the choice.

    Returns:
        Each layer's layout by its full dotted name, as far as it is known; and why a layer was chosen, empty where
        they were named.

    Raises:
        ValueError: If a name is wrong or no layer can be chosen.
    """
    if not layers:
        few = batch.part(slice(2 if math.prod(batch.size) <= _LARGE else 1))
        name, layout, reason = choose_layer(model, few, forward, target)
        return {name: layout}, reason
    found = dict(find_layer(model, layer) for layer in layers)
    if len(found) < len(layers):
        raise ValueError(f"`target_layer` {list(layers)} names a layer twice, {list(found)}")
    return dict.fromkeys(found, grid), ""


@contextmanager
def recording_shapes() -> Iterator[list[tuple[nn.Module, Sequence[int]]]]:
    """Note the modules that hand out a tensor and its shape, in the order in which they finish."""
    calls: list[tuple[nn.Module, Sequence[int]]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        output = first_tensor(output)
        if isinstance(output, Tensor):
            calls.append((module, output.shape))

    handle = register_module_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def layouts_of(
    layers: Mapping[str, nn.Module], calls: Sequence[tuple[nn.Module, Sequence[int]]], batch: Batch
) -> dict[str, Layout]:
    """How what the layers handed out lies on a grid, told by the shapes of all that the model's modules did."""
    wanted = set(map(id, layers.values()))
    found = dict(zip((id(module) for module, _ in calls), _find_layouts(calls, batch, wanted), strict=True))
    known = {name: found.get(id(module)) for name, module in layers.items()}
    return {name: layout[0] if layout else channels_first for name, layout in known.items()}


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
        model: A stand-in.
        batch: One or two samples.
        forward: Runs the model on a batch.
        target: ``(output, batch) -> scores (n,)``.

    Returns:
        The full dotted name, the layout of its output and why it was chosen. Of modules that hand out the same
        tensor, such as a block and its last layer, it is the outermost.

    Raises:
        ValueError: If there is none.
    """
    calls: list[_ModuleCall] = []
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a re-entrant checkpoint complains of inputs without gradients
        batch = batch.apply(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))
        with _recording_calls(model, calls) as head:
            output = forward(batch)
        for call, found in zip(calls, _find_layouts(((one.module, one.shape) for one in calls), batch), strict=True):
            call.layout, call.grid = found or (call.layout, call.grid)
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
        crossed = _nodes_on_every_path(root.grad_fn, [batch.images]) or _nodes_on_every_path(root.grad_fn, inputs)
        if root.requires_grad and head and not _gradient(root, head[0]).any():
            # A head whose weights start at zero hides all that is before it: ask what it reads.
            root = (head[0] * torch.randn_like(head[0])).sum()
        through = [call for call in candidates if call.source[0] in crossed]
        best = next((call for call in reversed(through) if _is_alive(call, root)), None)
        reason = "the last layer that all paths from the image to the score cross"

        after = candidates if best is None else candidates[candidates.index(best) + 1 :]
        alike = [call for call in after if best is not None and call.shape == best.shape]
        if any(call in through and isinstance(call.layout, Tokens) for call in alike):  # no patch is alive there
            reader = next((call for call in alike if _is_alive(call, root)), None)
            if reader is not None:
                best, reason = reader, "through which the class token reads the patches for the last time"
        else:
            smaller = [call for call in after if best is None or call.cells < best.cells]
            smaller.sort(key=lambda call: -call.cells)
            branch = next((call for call in reversed(smaller) if _is_alive(call, root)), None)
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
def _recording_calls(model: nn.Module, calls: list[_ModuleCall]) -> Iterator[list[Tensor]]:
    """Note what the modules hand out, in the order in which they finish, and build the graph wherever it is turned off.

    Args:
        model: The model.
        calls: The list to fill.

    Yields:
        A list that holds in the end what the last module with parameters of its own has read.
    """
    names = names_of_modules(model)
    head: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        torch.set_grad_enabled(True)
        has_weights = any(True for _ in module.parameters(recurse=False))
        if has_weights and args and isinstance(args[0], Tensor) and args[0].requires_grad:
            head[:] = [args[0]]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        output = first_tensor(output)
        if isinstance(output, Tensor):
            source = (output.grad_fn, output.output_nr)
            calls.append(_ModuleCall(names[id(module)][0], module, tuple(output.shape), source))

    handles = []
    try:
        for _, module in names.values():
            if not isinstance(module, torch.jit.ScriptModule):
                handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        yield head
    finally:
        for handle in handles:
            handle.remove()


def _find_layouts(
    calls: Iterable[tuple[nn.Module, Sequence[int]]], batch: Batch, wanted: Collection[int] | None = None
) -> Iterator[tuple[Layout, Grid] | None]:
    """The layout and the grid of every tensor that was handed out, or of those of the modules with these ids."""
    samples = len(batch.images)
    seen: dict[Grid, None] = {}
    for module, shape in calls:
        if len(shape) == 4 and (shape[2], shape[3]) not in seen and _is_spatial(module):
            seen[shape[2], shape[3]] = None
        if wanted is not None and len(shape) == 4 and id(module) not in wanted:
            yield None
            continue
        found = infer_layout(shape, samples, batch.size, seen)
        if found:
            layout, grid = found
            if isinstance(layout, Tokens) and math.prod(grid) == shape[1 - layout.batch_axis]:
                seen[grid] = None
        yield found


def _is_spatial(module: nn.Module) -> bool:
    """Whether the module is a pooling or has a convolution's weights, maybe to call a function with them."""
    has_kernel = any(one is not None and one.ndim == 4 for one in module._parameters.values())
    return has_kernel or isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.Conv2d))


def _candidates(calls: Sequence[_ModuleCall]) -> list[_ModuleCall]:
    """Of the modules that handed out one tensor on a grid, the outermost that was called once."""
    times = Counter(id(call.module) for call in calls)
    handed: dict[tuple[Node | None, int], list[_ModuleCall]] = {}
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
            if f"{maker.name}.".startswith(f"{call.name}.") and times[id(call.module)] == 1 and call.cells
        ]
        if node is not None and outer and not isinstance(maker.module, _ADAPTIVE_POOLS):
            found.append(outer[-1])
    return found


def _nodes_on_every_path(score: Node | None, leaves: Sequence[Tensor]) -> set[Node]:
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


def _is_alive(call: _ModuleCall, root: Tensor) -> bool:
    """Whether the gradient is finite and in some sample reaches more than one cell and more than one channel."""
    node, output = call.source
    gradient = _gradient(root, GradientEdge(node, output)) if node else torch.zeros(())
    if gradient.shape != call.shape:
        return False
    gradient = call.layout(gradient).flatten(2)
    channels, cells = ((gradient != 0).any(axis).sum(1) for axis in (2, 1))
    return bool(gradient.isfinite().all() and ((channels > 1) & (cells > 1)).any())
