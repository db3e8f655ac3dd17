"""On which grid of the image a layer's output lies: told by shapes, and where these leave a doubt by a trial."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lightning_gradcam.attribution.batch import Batch, of_rows
from lightning_gradcam.attribution.layers import names_of_modules, split_call
from lightning_gradcam.attribution.layout import (
    Flattened,
    Frames,
    Grid,
    Layout,
    NoMapError,
    Tokens,
    channels_first,
    first_tensor,
    frame_layouts,
    infer_layout,
    no_grid_message,
    other_layouts,
)

Reading = tuple[Layout, Grid]
Call = tuple[int, int]  # a module's id, and which of its calls in a forward, counted from 1
# Of what moves a token its own quarter of the image has 0.25 by chance: object queries of a DETR 0.25 to 0.26, patches
# of ViTs that were trained on digits 0.35 to 1. On clips the cells of an untrained MViTv2-S have 1.03 to 1.06 times
# what they have by chance, and no queries are known. By the number of axes, in units of chance:
_OWN_SHARE = {1: 1.08, 2: 1.08, 3: 1.02}
_KERNELS = {
    1: (nn.MaxPool1d, nn.AvgPool1d, nn.Conv1d),
    2: (nn.MaxPool2d, nn.AvgPool2d, nn.Conv2d),
    3: (nn.MaxPool3d, nn.AvgPool3d, nn.Conv3d),
}


@contextmanager
def recording_shapes() -> Iterator[list[tuple[nn.Module, Sequence[int]]]]:
    """Note the modules that are called, in the order in which they finish, and the shapes of what they hand out."""
    calls: list[tuple[nn.Module, Sequence[int]]] = []

    def note(module: nn.Module, output: Any) -> None:
        calls.append((module, output.shape if isinstance(output, Tensor) else ()))

    with _each_output(note):
        yield calls


@contextmanager
def _each_output(note: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Tell of every module that is called, and what it hands out."""
    handle = register_module_forward_hook(lambda module, args, output: note(module, first_tensor(output)))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _all_modules_called() -> Iterator[None]:
    """Let PyTorch's own transformers call their parts, and not one function for all of them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def numbered(modules: Iterable[nn.Module]) -> list[Call]:
    """Of modules in the order in which they were called, each with the number of this call of it."""
    times: dict[int, int] = {}
    found = []
    for key in map(id, modules):
        times[key] = times.get(key, 0) + 1
        found.append((key, times[key]))
    return found


def layouts_of(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calls: Sequence[tuple[nn.Module, Sequence[int]]],
    batch: Batch,
    forward: Callable[[Batch], Any],
) -> dict[str, Layout]:
    """How what the layers handed out lies on a grid.

    Args:
        model: A stand-in.
        layers: Modules of it by name, behind which ``#2`` asks for the second call.
        calls: What :func:`recording_shapes` has noted of a forward of the batch.
        batch: The samples.
        forward: Runs the model on a batch.

    Raises:
        ValueError: If a layer's output lies on no grid; the message names a layer whose output does.
        NoMapError: If there is no such layer either.
    """
    keys = {name: _call_of(name, module, calls) for name, module in layers.items()}
    options = readings(calls, batch, {key[0] for key in keys.values()})
    found = settled({key: options[key] for key in keys.values()}, batch, forward)
    for name, key in keys.items():
        shapes = [shape for module, shape in calls if id(module) == key[0]]
        shape = tuple(shapes[key[1] - 1])
        as_it_is = len(shape) == len(batch.size) + 2 > 3 and math.prod(shape[2:]) > 1
        if key not in found and not as_it_is:
            names, tried = names_of_modules(model), _try(readings(calls, batch), batch, forward)
            others = [names[one][0] for (one, _), right in tried.items() if right and one in names and one != key[0]]
            other = min(reversed(others), key=lambda other: other.count("."), default=None)
            message = no_grid_message(name, shape, len(batch.images), other)
            raise ValueError(message) if other else NoMapError(message)
    return {name: found[key][0] if key in found else channels_first for name, key in keys.items()}


def _call_of(name: str, module: nn.Module, calls: Sequence[tuple[nn.Module, Any]]) -> Call:
    """The call that a name means: the one it tells, or the only one."""
    return id(module), split_call(name)[1] or sum(one is module for one, _ in calls)


def readings(
    calls: Sequence[tuple[nn.Module, Sequence[int]]], batch: Batch, wanted: Collection[int] | None = None
) -> dict[Call, list[Reading]]:
    """How the shape of every tensor that was handed out, or by the modules with these ids, may be read; the best first.

    Of tokens and of flattened maps the shape alone does not tell: :func:`settled` does.
    """
    samples, size, axes = len(batch.images), batch.size, len(batch.size)
    seen: dict[Grid, None] = {}
    of_frames: dict[Grid, None] = {}
    found: dict[Call, list[Reading]] = {}
    times = Counter(id(module) for module, _ in calls)
    for call, (module, shape) in zip(numbered(module for module, _ in calls), calls, strict=True):
        if len(shape) == axes + 2 and tuple(shape[2:]) not in seen and _is_spatial(module, shape, axes):
            seen[tuple(shape[2:])] = None
        if axes == 3 and len(shape) == 4 and _is_spatial(module, shape, 2):
            of_frames[tuple(shape[2:])] = None
        found[call] = []
        if wanted is not None and len(shape) == axes + 2 > 3 and id(module) not in wanted:
            continue
        best = infer_layout(shape, samples, size, seen)
        found[call] = [*([best] if best else []), *other_layouts(shape, samples, size, seen)]
        if axes == 1 and _is_spatial(module, shape, 1):
            found[call] = found[call][:1]  # of three axes as tokens have, but never tokens
        if best and isinstance(best[0], Tokens) and math.prod(best[1]) == shape[1 - best[0].batch_axis]:
            seen[best[1]] = None
        if axes == 3:
            rows = frame_layouts(shape, samples, size, of_frames, times[id(module)] == 1)
            found[call] += rows
            seen |= {grid: None for _, grid in rows if len(shape) == 4 and _is_spatial(module, shape, 2)}
    return found


def _is_spatial(module: nn.Module, shape: Sequence[int], axes: int) -> bool:
    """Whether the module is a pooling or has a convolution's weights, maybe to call a function with them.

    Of three axes, as the kernels of signals have, are positions of tokens too: a kernel has one for each channel.
    """
    kernels = [one for one in module._parameters.values() if one is not None and one.ndim == axes + 2]
    if axes == 1:
        kernels = [one for one in kernels if len(shape) > 1 and one.shape[0] == shape[1]]
    return bool(kernels) or isinstance(module, _KERNELS[axes])


def settled(
    options: Mapping[Call, Sequence[Reading]], batch: Batch, forward: Callable[[Batch], Any]
) -> dict[Call, Reading]:
    """The reading of each call that is right, without those that have none.

    Object queries, words and channels may have the number of a grid's cells. So where there are tokens, flattened maps
    or frames, one more forward, of five images, runs a sample as it is and with each quarter of the image drawn anew,
    and cells are those that are moved most by the quarter in which they lie; of volumes and clips these are eight
    parts, of signals two.
    """
    of_doubt = Tokens | Flattened | Frames
    doubtful = {call: found for call, found in options.items() if any(isinstance(one, of_doubt) for one, _ in found)}
    right = {call: found[0] for call, found in options.items() if found and call not in doubtful}
    if doubtful:
        tried = _try(doubtful, batch, forward)
        right |= {call: found for call, found in tried.items() if found}
    return {call: right[call] for call in options if call in right}


@torch.no_grad()
def _try(
    options: Mapping[Call, Sequence[Reading]], batch: Batch, forward: Callable[[Batch], Any]
) -> dict[Call, Reading | None]:
    """The reading of each call that agrees best with what the quarters of the image move, if one does."""
    drawn = _with_parts_drawn_anew(batch)
    rows = len(drawn.images)
    times: Counter[int] = Counter()
    found: dict[Call, Reading | None] = {}
    reads_images = completed = False

    def note(module: nn.Module, output: Any) -> None:
        nonlocal reads_images
        times[id(module)] += 1
        call = id(module), times[id(module)]
        if isinstance(output, Tensor) and output.ndim > 1 and len(output) == rows:
            reads_images = reads_images or any(not torch.equal(output[0], one) for one in output[1:])
        if call in options and isinstance(output, Tensor) and output.ndim in (3, 4, 5):
            found[call] = _first_that_agrees(options[call], output, rows)

    # A forward that takes no other number of samples, or reads something else than the images, cannot be asked: then
    # the shape must do.
    with _each_output(note), _all_modules_called(), suppress(Exception):
        forward(drawn)
        completed = True
    return found if reads_images and completed else {call: one[0] for call, one in options.items() if one}


def _with_parts_drawn_anew(batch: Batch) -> Batch:
    """The first sample several times, but for the first time each with another quarter of the image drawn anew.

    The axes are halved, so that there are two to the power of their number of such parts.
    """
    size = batch.size
    times = 1 + 2 ** len(size)
    one = replace(batch.part(slice(1)), ids=(), groups=(), inputs=None)
    inputs = of_rows(
        batch.part(slice(1)).inputs,
        1,
        lambda row: torch.cat([row] * times) if isinstance(row, Tensor) else row * times,
    )
    whole = replace(one.apply(lambda tensor: tensor.repeat_interleave(times, 0)), inputs=inputs)
    generator = torch.Generator().manual_seed(0)

    def draw(images: Tensor) -> Tensor:
        if images.shape != whole.images.shape:
            return images
        low, high = images[0].float().aminmax()
        noise = torch.rand(images.shape[1:], generator=generator).to(images.device)
        drawn = (low + noise * torch.where(high > low, high - low, 1)).to(images.dtype)
        changed = images.clone()
        drawn, places = drawn.movedim(whole.channel_axis - 1, 0), changed.movedim(whole.channel_axis, 1)
        for part, halves in enumerate(itertools.product((0, 1), repeat=len(size))):
            where = (slice(None), *(_half(side, half) for side, half in zip(size, halves, strict=True)))
            places[1 + part][where] = drawn[where]
        return changed

    return whole.apply(draw)


def _half(side: int, which: int) -> slice:
    """One half of an axis; of a single row both are the whole."""
    return slice(None) if side == 1 else slice(side // 2, None) if which else slice(side // 2)


def _first_that_agrees(options: Sequence[Reading], output: Tensor, rows: int) -> Reading | None:
    """The first reading by which cells are moved by their own part of the image more than by the others.

    A map of a signal whose length a convolution has handed out before is one also where no other reading agrees.
    """
    parts = rows - 1
    least = _OWN_SHARE[parts.bit_length() - 1] / parts
    for layout, grid in options:
        if not isinstance(layout, Tokens) or layout.time_last:
            cells = layout(output).flatten(2).mT.float()
            (share,), (certain,) = _own_share(cells, grid) if len(cells) == rows else ([0], [False])
            if certain and share > least:
                return layout, grid
            continue
        tokens = output.movedim(layout.batch_axis, 0)
        shares, certain = (one.flip(0) for one in _own_share(tokens[:rows].float(), grid))
        # A place that is one token off costs about so much; where less tells them apart, what is not cells comes first.
        after = 0 if shares[0] >= shares.max() - 0.1 / grid[-1] else int(shares.argmax())
        if certain[after] and shares[after] > least:
            return replace(layout, after=after), grid
    return next((one for one in options[:1] if one[0] is channels_first and len(one[1]) == 1), None)


def _within_halves(side: int) -> list[int]:
    """The rows or columns of a grid that lie in one half of the image; of a single one that one."""
    return [i for i in range(side) if 2 * i + 1 != side or side == 1]


def _own_share(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """By the place at which the grid begins: how much of what moves its cells is due to the part they lie in.

    How far a part moves a cell is told in units of how far it moves all, since one may hold all that matters.

    Args:
        rows: ``(1 + parts, positions, c)``, of the image and of the same with another part changed each time.
        grid: Of as many cells as there are positions, or of fewer.

    Returns:
        The mean over cells, one over the number of parts by chance, and whether it is more by five standard errors.
    """
    moved = (rows[1:] - rows[0]).norm(dim=2)  # (parts, positions)
    moved = (moved / moved.mean(1, keepdim=True)).nan_to_num()
    shares = (moved / moved.sum(0)).nan_to_num().unfold(1, math.prod(grid), 1).unflatten(2, grid)
    parts = torch.zeros(grid, dtype=torch.long, device=rows.device)
    for axis, side in enumerate(grid):
        later = (2 * torch.arange(side, device=rows.device) + 1 > side).long()
        parts = 2 * parts + later.reshape(-1, *[1] * (len(grid) - 1 - axis))
    own = shares.gather(0, parts.expand(1, *shares.shape[1:]))[0]
    for axis, side in enumerate(grid, 1):
        own = own.index_select(axis, torch.tensor(_within_halves(side), device=own.device))
    own = own.flatten(1)
    error = own.std(1) / own.shape[1] ** 0.5
    return own.mean(1), own.mean(1) - 1 / len(moved) > 5 * error
