"""Which layer to look at where none is named."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.modules import padding

from lightning_gradcam.attribution.batch import Batch, few_of
from lightning_gradcam.attribution.grids import numbered, readings, settled
from lightning_gradcam.attribution.layers import Layer, find_layer, names_of_modules
from lightning_gradcam.attribution.layout import (
    FEW_CELLS,
    Grid,
    Layout,
    NoMapError,
    Tokens,
    channels_first,
    fewest_cells,
    first_tensor,
)
from lightning_gradcam.attribution.spatial import in_words
from lightning_gradcam.attribution.targets import Target, score

# What hands out a grid on which nothing is looked at: of other cells than the features have, or with a frame of none.
_OTHER_GRIDS = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    *(getattr(padding, name) for name in padding.__all__),
)
# Nodes of the autograd graph that hand on the same values in another order or shape.
_REORDERINGS = ("PermuteBackward0", "TransposeBackward0", "ViewBackward0", "UnsafeViewBackward0", "CloneBackward0")


@dataclass(eq=False)
class _ModuleCall:
    """A module has been called.

    Attributes:
        name: Of the module, with the number of the call where there are several.
        module: The module.
        shape: Of the tensor that it handed out; empty where it handed out something else.
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


@dataclass(frozen=True)
class Located:
    """Layers that have been found or chosen.

    Attributes:
        layouts: How the output of each lies on a grid, by its full dotted name, as far as that is known.
        reason: Why a layer was chosen; empty where they were named.
        notes: What the user should know of the choice, in sentences.
    """

    layouts: Mapping[str, Layout | None]
    reason: str = ""
    notes: tuple[str, ...] = ()


def locate_layers(
    model: nn.Module,
    layers: Sequence[Layer],
    grid: Layout | None,
    batch: Batch,
    forward: Callable[[Batch], Any],
    target: Target,
) -> Located:
    """Find the layers, or choose one.

    Args:
        model: A stand-in.
        layers: Names or modules of it; none: one is chosen.
        grid: The layout of all named layers; ``None``: the forward that captures them will tell.
        batch: The samples, of which one or two are run to choose a layer.
        forward: Runs the model on a batch.
        target: ``(output, batch) -> scores (n,)``, for the choice.

    Raises:
        ValueError: If a name is wrong or no layer can be chosen.
    """
    if not layers:
        return choose_layer(model, few_of(batch), forward, target)
    found = dict(find_layer(model, layer) for layer in layers)
    if len(found) < len(layers):
        raise ValueError(f"`target_layer` {list(layers)} names a layer twice, {list(found)}")
    return Located(dict.fromkeys(found, grid))


def choose_layer(model: nn.Module, batch: Batch, forward: Callable[[Batch], Any], target: Target) -> Located:
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
        The layer. Of modules that hand out the same tensor, such as a block and its last layer, it is the outermost;
        of a module that the forward calls several times it is one of the calls.

    Raises:
        NoMapError: If there is none.
        ValueError: If the target fails, or a re-entrant checkpoint hides the graph.
    """
    calls: list[_ModuleCall] = []
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a re-entrant checkpoint complains of inputs without gradients
        batch = batch.apply(lambda tensor: tensor.clone().requires_grad_(tensor.is_floating_point()))
        leaves = [batch.images]
        with _recording_calls(model, calls, leaves) as heads:
            output = forward(batch)
        candidates = _on_a_grid(calls, batch, forward)
        try:
            root = score(target, output, batch).sum()
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"`target` failed on the {len(batch.images)} samples with which a layer is chosen; it must take any "
                "number of them, and read labels from `batch.labels`"
            ) from error
        inputs: list[Tensor] = []
        apply_to_collection(batch.inputs, Tensor, inputs.append)
        crossed = _nodes_on_every_path(root.grad_fn, leaves)
        if not crossed:
            leaves, crossed = inputs, _nodes_on_every_path(root.grad_fn, inputs)
        root = _before_a_silent_head(root, heads)
        through = [call for call in candidates if call.source[0] in crossed]
        best, reason = _select(candidates, through, root, leaves)
        if best is None:
            problem = _why_none(model, calls, candidates, root)
            advice = 'name one by `target_layer="..."`'
            if not root.requires_grad:
                advice = "let it pass there, without `.detach()` or `no_grad`"
            elif not candidates:
                advice = "Grad-CAM needs one, so there is nothing for `target_layer` to name"
            raise NoMapError(f"no layer of {type(model).__name__} can be chosen, since {problem}; {advice}")
        notes = _note_few_cells(best, through, root, batch.time)
    return Located({best.name: best.layout}, f"{in_words(best.grid)} cells, {reason}", notes)


def _before_a_silent_head(root: Tensor, heads: Mapping[int, Sequence[Tensor]]) -> Tensor:
    """The root, or where the last module that it depends on hides all that is before it, what this module reads.

    That is a head whose weights start at zero, or one whose boxes are too faint to count.
    """
    for read in reversed([*heads.values()]) if root.requires_grad else ():
        known = [gradient for gradient in _gradients(root, read) if gradient is not None]
        if any(gradient.any() for gradient in known):
            break
        if known:
            return sum(((one * torch.randn_like(one)).sum() for one in read), root.new_zeros(()))
    return root


def _select(
    candidates: Sequence[_ModuleCall], through: Sequence[_ModuleCall], root: Tensor, leaves: Sequence[Tensor]
) -> tuple[_ModuleCall | None, str]:
    """Of the candidates, of which all paths from the leaves cross those in ``through``, the best, and why it is."""
    best = next((call for call in reversed(through) if _is_alive(call, root)), None)
    after = candidates if best is None else candidates[candidates.index(best) + 1 :]
    alike = [call for call in after if best is not None and call.shape == best.shape]
    if any(call in through and isinstance(call.layout, Tokens) for call in alike):  # no patch is alive there
        last = next((call for call in reversed(alike) if _is_alive(call, root)), None)
        if last is not None:
            # Where blocks are no modules, all of them come after the best, and the last counts. What is alive last may
            # be the values of its attention; then the norm is taken behind which they, the keys and queries lie.
            read = _nodes_on_every_path(last.source[0], leaves)
            reader = next(call for call in alike if call.source[0] in read and _is_alive(call, root))
            return reader, "through which the class token reads the patches for the last time"
    else:
        smaller = [call for call in after if best is None or call.cells < best.cells]
        smaller.sort(key=lambda call: -call.cells)
        branch = next((call for call in reversed(smaller) if _is_alive(call, root)), None)
        if branch is not None:
            return branch, "the last layer of the smallest grid, since branches run side by side"
    return best, "the last layer that all paths from the image to the score cross"


def _note_few_cells(
    best: _ModuleCall, through: Sequence[_ModuleCall], root: Tensor, time: int | None
) -> tuple[str, ...]:
    """A sentence where a layer has few cells, with the layer before it that has more."""
    few, frames = fewest_cells(best.grid, time), None if time is None else best.grid[time]
    if few >= FEW_CELLS and frames != 1:
        return ()

    def is_finer(call: _ModuleCall) -> bool:
        return fewest_cells(call.grid, time) > few if few < FEW_CELLS else call.grid[time or 0] > 1

    before = through[: through.index(best)] if best in through else through
    other = next((call for call in reversed(before) if is_finer(call) and _is_alive(call, root)), None)
    advice = (
        "" if other is None else f"; `{other.name}` before it has {in_words(other.grid)}, give it as `target_layer`"
    )
    what = "little about places" if few < FEW_CELLS else "nothing of when"
    return (f"the {in_words(best.grid)} cells of `{best.name}` tell {what}{advice}",)


def _why_none(model: nn.Module, calls: Sequence[_ModuleCall], candidates: Sequence[_ModuleCall], root: Tensor) -> str:
    """Why no layer can be chosen."""
    if not root.requires_grad:
        last = next((call.name for call in reversed(calls) if call.source[0] is not None), None)
        if last is not None:
            return f"the score has no gradient: it ends behind `{last}`, the last module whose output has one"
        return "the score has no gradient: the forward detaches it, runs in inference mode or on integers"
    if candidates:
        return f"the score's gradient is zero or not finite in all {len(candidates)} layers on a grid"
    named = names_of_modules(model)
    scripted = [name for name, module in named.values() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        return f"`{scripted[0]}` is a scripted or traced module, which runs no hooks, so look at the plain model"
    hidden = next(_plain_containers(model), None)
    if hidden is not None:
        return (
            f"`{hidden}` holds modules in a plain list, tuple or dict, so that PyTorch gives them no names; make it an "
            "`nn.ModuleList` or an `nn.ModuleDict`"
        )
    return "none of its modules hands out maps or tokens on a grid"


def _plain_containers(model: nn.Module) -> Iterator[str]:
    """The names of attributes that hold modules in plain containers."""
    names = {id(model): "", **{key: f"{name}." for key, (name, _) in names_of_modules(model).items()}}
    for module in model.modules():
        for attribute, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if attribute != "_modules" and any(isinstance(one, nn.Module) and id(one) not in names for one in items):
                yield names.get(id(module), "") + attribute


@contextmanager
def _recording_calls(
    model: nn.Module, calls: list[_ModuleCall], leaves: list[Tensor]
) -> Iterator[dict[int, list[Tensor]]]:
    """Note the calls of modules, in the order in which they finish, and build the graph wherever it is turned off.

    Args:
        model: The model.
        calls: The list to fill.
        leaves: The images. Those of whole numbers, which carry no gradient, are replaced by what the first module with
            parameters makes of them.

    Yields:
        A dict that holds in the end what each module with parameters of its own has read, the last one at its end.
    """
    names = names_of_modules(model)
    heads: dict[int, list[Tensor]] = {}

    def enter(module: nn.Module, args: tuple[Any, ...]) -> Any:
        torch.set_grad_enabled(True)
        if not any(True for _ in module.parameters(recurse=False)) or not args or not isinstance(args[0], Tensor):
            return None
        if not leaves[0].is_floating_point() and args[0].is_floating_point():
            leaves[0] = args[0].detach().requires_grad_()
            args = (leaves[0], *args[1:])
        if args[0].requires_grad:
            heads[id(module)] = [*heads.pop(id(module), []), args[0]]
        return args

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        output = first_tensor(output)
        shape, source = ((), (None, 0))
        if isinstance(output, Tensor):
            shape, source = tuple(output.shape), (output.grad_fn, output.output_nr)
        calls.append(_ModuleCall(names[id(module)][0], module, shape, source))

    handles = []
    try:
        for _, module in names.values():
            if not isinstance(module, torch.jit.ScriptModule):
                handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        yield heads
    finally:
        for handle in handles:
            handle.remove()


def _on_a_grid(calls: Sequence[_ModuleCall], batch: Batch, forward: Callable[[Batch], Any]) -> list[_ModuleCall]:
    """The calls to choose from: :func:`_candidates`, without those whose tokens turn out to lie on no grid."""
    times = Counter(id(call.module) for call in calls)
    keys = numbered(call.module for call in calls)
    found = readings([(call.module, call.shape) for call in calls], batch)
    for call, key in zip(calls, keys, strict=True):
        if times[id(call.module)] > 1:
            call.name = f"{call.name}#{key[1]}"
        if found[key]:
            call.layout, call.grid = found[key][0]
    candidates = _candidates(calls, times)
    key_of = dict(zip(map(id, calls), keys, strict=True))
    right = settled({key_of[id(call)]: found[key_of[id(call)]] for call in candidates}, batch, forward)
    candidates = [call for call in candidates if key_of[id(call)] in right]
    for call in candidates:
        call.layout, call.grid = right[key_of[id(call)]]
    return candidates


def _candidates(calls: Sequence[_ModuleCall], times: Mapping[int, int]) -> list[_ModuleCall]:
    """Of the modules that handed out one tensor on a grid, the outermost; if it can be, one that was called once."""
    handed: dict[tuple[Node | None, int], list[_ModuleCall]] = {}
    for call in calls:
        node, output = call.source
        while node is not None and node.name() in _REORDERINGS:
            node, output = node.next_functions[0]
        handed.setdefault((node, output), []).append(call)
    found = []
    for (node, _), same in handed.items():
        maker = same[0].module
        outer = [call for call in same if call.cells and any(part is maker for part in call.module.modules())]
        once = [call for call in outer if times[id(call.module)] == 1]
        if node is not None and outer and not isinstance(maker, _OTHER_GRIDS):
            found.append((once or outer)[-1])
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
    (gradient,) = _gradients(root, [of])
    return torch.zeros(()) if gradient is None else gradient


def _gradients(root: Tensor, of: Sequence[Any]) -> Sequence[Tensor | None]:
    """The gradients of ``root``; ``None`` where it does not depend on the tensor."""
    if not root.requires_grad:
        return [None] * len(of)
    try:
        return torch.autograd.grad(root, list(of), retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise ValueError(
            'a re-entrant checkpoint hides what the score depends on; name a layer by `target_layer="..."`, or use '
            "`checkpoint(..., use_reentrant=False)`"
        ) from error


def _is_alive(call: _ModuleCall, root: Tensor) -> bool:
    """Whether the gradient is finite and in some sample reaches more than one cell and more than one channel."""
    node, output = call.source
    gradient = _gradient(root, GradientEdge(node, output)) if node else torch.zeros(())
    if gradient.shape != call.shape:
        return False
    gradient = call.layout(gradient).flatten(2)
    channels, cells = ((gradient != 0).any(axis).sum(1) for axis in (2, 1))
    return bool(gradient.isfinite().all() and ((channels > 1) & (cells > 1)).any())
