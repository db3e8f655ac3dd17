"""A layer's output to maps: which of its axes are cells of a grid on the image, and which are channels.

A grid has as many axes as the images have spatial ones: ``(h, w)`` on images, ``(d, h, w)`` on volumes, ``(t, h, w)``
on clips, ``(length,)`` on signals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from numbers import Integral
from typing import Any

from torch import Tensor

from lightning_gradcam.attribution.sequences import as_list
from lightning_gradcam.attribution.spatial import Size

Layout = Callable[[Tensor], Tensor]
Grid = Size
FEW_CELLS = 4  # cells a side; fewer tell little about places
_FEWEST = 16  # cells; fewer are found by chance among many tokens


def fewest_cells(grid: Grid, time: int | None) -> int:
    """The number of cells along the side that has fewest, but for the axis of clips that is time."""
    return min(side for axis, side in enumerate(grid) if axis != time)


class NoMapError(ValueError):
    """The model has no map of this score to give: none of its layers lies on a grid, or the score has no gradient."""


def first_tensor(output: Any) -> Any:
    """What a module's output is about: the first item of a tuple, as of a block that also returns its attention."""
    return output[0] if type(output) is tuple and output else output


def channels_first(output: Tensor) -> Tensor:
    """``(n, c, *grid)`` as it is."""
    return output


def channels_last(output: Tensor) -> Tensor:
    """``(n, *grid, c)`` to ``(n, c, *grid)``."""
    return output.movedim(-1, 1)


@dataclass(frozen=True)
class Tokens:
    """``(n, prefix + cells, c)`` to ``(n, c, *grid)``; class, distillation and register tokens come first.

    With ``batch_axis`` 1 it is ``(prefix + cells, n, c)``, as PyTorch's own transformers have it by default. ``after``
    counts the tokens that follow the cells, such as a detector's or the words of a question. With ``time_last`` the
    frames of a cell of clips follow one another, as in TimeSformer, and the grid is ``(t, h, w)`` still.
    """

    grid: Grid
    batch_axis: int = 0
    after: int = 0
    time_last: bool = False

    def __call__(self, output: Tensor) -> Tensor:
        tokens = output.movedim(self.batch_axis, 0)
        end = tokens.shape[1] - self.after
        cells = tokens[:, end - math.prod(self.grid) : end].transpose(1, 2)
        if self.time_last:
            return cells.unflatten(2, (*self.grid[1:], self.grid[0])).movedim(-1, 2)
        return cells.unflatten(2, self.grid)


@dataclass(frozen=True)
class Flattened:
    """``(n, c, cells)`` to ``(n, c, *grid)``, as ``nn.Flatten(2)`` hands out behind a convolution."""

    grid: Grid

    def __call__(self, output: Tensor) -> Tensor:
        return output.unflatten(2, self.grid)


@dataclass(frozen=True)
class Frames:
    """What a network for images hands out of ``t`` frames of each clip to ``(n, c, t, *grid)``.

    Attributes:
        t: The number of frames.
        of_frame: The layout of a frame's output.
        batch_axis: 0: the rows are ``n t``, those of a clip one after another; 1: they are ``t n``.
    """

    t: int
    of_frame: Layout = channels_first
    batch_axis: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        rows = self.of_frame(output)
        if self.batch_axis:
            return rows.unflatten(0, (self.t, -1)).movedim(0, 2)
        return rows.unflatten(0, (-1, self.t)).movedim(1, 2)


def infer_layout(shape: Sequence[int], samples: int, image: Size, seen: Collection[Grid]) -> tuple[Layout, Grid] | None:
    """Find the layout of an output from its shape alone.

    A grid is one that the model has handed out before, or such a one or the image in square patches. Only the former
    tells how many tokens are prefix.

    Args:
        shape: Of the output.
        samples: Their number ``n``.
        image: The length of each of its spatial axes.
        seen: The grids of what convolutions and poolings have handed out, and of tokens without a prefix.

    Returns:
        The layout and the grid; ``None`` where there is no grid of more than one cell.
    """
    signal = len(image) == 1  # of which `(n, length, c)` are tokens, and any number is one of patches
    if len(shape) == len(image) + 2 and shape[0] == samples:
        options = [(channels_first, tuple(shape[2:])), (channels_last, tuple(shape[1:-1]))]
        for grids in (seen,) if signal else (seen, _patches(image)):
            for layout, grid in options[: 1 if signal else 2]:
                if grid in grids and math.prod(grid) > 1:
                    return layout, grid
    if len(shape) == 3 and samples in shape[:2]:
        axis = 0 if shape[0] == samples else 1
        grid = _grid_of_tokens(shape[1 - axis], image, seen)
        if math.prod(grid) > 1:
            return Tokens(grid, axis), grid
    return None


def other_layouts(shape: Sequence[int], samples: int, image: Size, seen: Collection[Grid]) -> list[tuple[Layout, Grid]]:
    """What else an output of three axes may be, to be tried: a flattened map, or cells among many other tokens.

    Args:
        shape: See :func:`infer_layout`, as all others.
        samples: Their number.
        image: Its size.
        seen: The grids.
    """
    found: list[tuple[Layout, Grid]] = []
    if len(shape) == 3 and samples in shape[:2]:
        axis = 0 if shape[0] == samples else 1
        if axis == 0:
            found += [(Flattened(grid), grid) for grid in seen if 1 < math.prod(grid) == shape[2]]
        few_enough = [grid for grid in seen if _FEWEST <= math.prod(grid) <= shape[1 - axis]]
        few_enough.sort(key=math.prod, reverse=True)
        found += [(Tokens(grid, axis), grid) for grid in few_enough]
        if len(image) == 3:
            found += [(Tokens(grid, axis, time_last=True), grid) for grid in few_enough]
    return found


def frame_layouts(
    shape: Sequence[int], samples: int, clip: Size, seen: Collection[Grid], once: bool
) -> list[tuple[Layout, Grid]]:
    """What an output may be of which the frames of clips, or the slices of volumes, are rows; to be tried.

    Args:
        shape: Of the output.
        samples: The number of clips.
        clip: The length of their spatial axes, the frames first.
        seen: The grids ``(h, w)`` of what convolutions and poolings have handed out of frames.
        once: Whether the module was called once, so that what has a row a clip is of all its frames.
    """
    t = _number_of_frames(shape, samples, clip)
    if t is None or (t == 1 and not (once and len(shape) == 4)):
        return []
    of_frame = infer_layout(shape, samples * t, clip[1:], seen)
    if of_frame is None:
        return []
    layout, grid = of_frame
    return [(Frames(t, layout, axis), (t, *grid)) for axis in ((0, 1) if t > 1 < samples else (0,))]


def _number_of_frames(shape: Sequence[int], samples: int, clip: Size) -> int | None:
    """How many rows a clip has, if that may be frames: all of them, or one of every so many."""
    if len(shape) not in (3, 4) or shape[0] % samples:
        return None
    t = shape[0] // samples
    return t if 1 <= t <= clip[0] and clip[0] % t == 0 else None


def _grid_of_tokens(number: int, image: Size, seen: Collection[Grid]) -> Grid:
    """The grid of so many tokens; one of a single cell where there is none.

    In this order: a seen grid; one with a short prefix; a seen one after merging by two, or the image in patches where
    nothing was seen; a seen grid with a prefix that is longer, but not by far longer than the grid.
    """
    parts = {part for grid in seen for part in _patches(grid, (2, 4, 8))} if seen else _patches(image)
    for grids, shortest, longest in ((seen, 0, 0), (seen, 1, 8), (parts, 0, 0), (seen, 9, math.inf)):
        fits = [grid for grid in grids if shortest <= number - math.prod(grid) <= min(longest, math.prod(grid) + 8)]
        if fits:
            return max(fits, key=math.prod)
    return (1,) * len(image)


@cache
def _patches(whole: Grid, sides: tuple[int, ...] = ()) -> set[Grid]:
    """The grids of an image in square patches of these sides or any, with and without a last patch filled in part.

    Of three axes the first is cut by itself, since a patch of a clip has so many frames, and the grid has several cells
    in a frame: one cell each is what a network for sequences hands out of frames.
    """
    if len(whole) == 3:
        in_depth = {grid[0] for grid in _patches(whole[:1], (1, *sides) if sides else ())}
        return {
            (d, *flat)
            for d, flat in product(in_depth, _patches(whole[1:], (1, *sides) if sides else ()))
            if math.prod(flat) > 1
        }
    sides = sides or tuple(range(1, max(whole) + 1))
    down = {tuple(side // k for side in whole) for k in sides}
    return down | {tuple(-(-side // k) for side in whole) for k in sides}


def as_layout(grid: Grid | Layout) -> Layout:
    """Turn the ``grid`` argument into a layout; raise a ``ValueError`` where it is none."""
    if callable(grid):
        return grid
    sides: Any = as_list(grid)
    if not isinstance(sides, list) or len(sides) not in (1, 2, 3) or not all(map(_is_length, sides)):
        raise ValueError(
            "`grid` must be (h, w) in cells, of volumes and clips (d, h, w), of signals (length,), or a function "
            f"`output -> (n, c, h, w)`, got {grid!r}"
        )
    return partial(_with_grid, grid=tuple(map(int, sides)))


def _is_length(side: Any) -> bool:
    return isinstance(side, Integral) and not isinstance(side, bool) and int(side) > 0


def _with_grid(output: Tensor, *, grid: Grid) -> Tensor:
    """The map of an output whose grid the user gave."""
    shape, cells = tuple(output.shape), math.prod(grid)
    if shape[2:] == grid:
        return output
    if len(shape) == len(grid) + 2 > 3 and shape[1:-1] == grid:
        return channels_last(output)
    if len(shape) == 4 and len(grid) == 3 and shape[2:] == grid[1:] and shape[0] % grid[0] == 0:
        return Frames(grid[0])(output)
    if len(shape) == 3 and shape[1] >= cells == shape[2]:
        raise ValueError(
            f"`grid` {grid} fits the layer's output {shape} in two ways, as (n, tokens, c) and as (n, c, {cells}); "
            "give a function `output -> (n, c, h, w)`"
        )
    if len(shape) == 3 and shape[1] >= cells:
        return Tokens(grid)(output)
    if len(shape) == 3 and shape[2] == cells:
        return Flattened(grid)(output)
    sides = ", ".join(map(str, grid))
    raise ValueError(
        f"`grid` {grid} does not fit the layer's output {shape}; expected (n, c, {sides}), (n, {sides}, c), "
        f"(n, prefix + {cells}, c) or (n, c, {cells})"
    )


def to_map(name: str, output: Tensor, layout: Layout, samples: int, axes: int = 2) -> Tensor:
    """Bring the output of a layer into the form ``(n, c, *grid)``, with so many axes of the grid.

    Raises:
        ValueError: If it has no grid of more than one cell; the message names the layer and shows the shapes.
    """
    shape: Any = tuple(output.shape)
    cells = layout(output)
    got: Any = tuple(cells.shape) if isinstance(cells, Tensor) else type(cells).__name__
    if not isinstance(cells, Tensor) or len(got) != axes + 2 or got[0] != samples or math.prod(got[2:]) < 2:
        raise ValueError(no_grid_message(name, shape, samples, as_read=None if got == shape else got))
    return cells


def no_grid_message(name: str, shape: Any, samples: int, instead: str | None = None, as_read: Any = None) -> str:
    """What to say of a layer whose output lies on no grid of the image; ``instead`` is a layer whose output does."""
    turned = "" if as_read is None else f", which the grid turns into {as_read}"
    other = "Name another layer" if instead is None else f"Name another layer, such as {instead!r}"
    return (
        f"`target_layer` {name!r} hands out {shape}{turned}; expected maps or tokens of {samples} samples on a "
        f"grid of more than one cell, each where it lies in the image. {other}, or say by `grid=(h, w)` how its tokens "
        "lie"
    )
