"""A layer's output to maps: which of its axes are cells of a grid on the image, and which are channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from numbers import Integral
from typing import Any

from torch import Tensor

from lightning_gradcam.attribution.sequences import as_list

Layout = Callable[[Tensor], Tensor]
Grid = tuple[int, int]
_FEWEST = 16  # cells; fewer are found by chance among many tokens


class NoMapError(ValueError):
    """The model has no map of this score to give: none of its layers lies on a grid, or the score has no gradient."""


def first_tensor(output: Any) -> Any:
    """What a module's output is about: the first item of a tuple, as of a block that also returns its attention."""
    return output[0] if type(output) is tuple and output else output


def channels_first(output: Tensor) -> Tensor:
    """``(n, c, h, w)`` as it is."""
    return output


def channels_last(output: Tensor) -> Tensor:
    """``(n, h, w, c)`` to ``(n, c, h, w)``."""
    return output.movedim(3, 1)


@dataclass(frozen=True)
class Tokens:
    """``(n, prefix + h * w, c)`` to ``(n, c, h, w)``; class, distillation and register tokens come first.

    With ``batch_axis`` 1 it is ``(prefix + h * w, n, c)``, as PyTorch's own transformers have it by default. ``after``
    counts the tokens that follow the cells, such as a detector's or the words of a question.
    """

    h: int
    w: int
    batch_axis: int = 0
    after: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        tokens = output.movedim(self.batch_axis, 0)
        end = tokens.shape[1] - self.after
        return tokens[:, end - self.h * self.w : end].transpose(1, 2).unflatten(2, (self.h, self.w))


@dataclass(frozen=True)
class Flattened:
    """``(n, c, h * w)`` to ``(n, c, h, w)``, as ``nn.Flatten(2)`` hands out behind a convolution."""

    h: int
    w: int

    def __call__(self, output: Tensor) -> Tensor:
        return output.unflatten(2, (self.h, self.w))


def infer_layout(shape: Sequence[int], samples: int, image: Grid, seen: Collection[Grid]) -> tuple[Layout, Grid] | None:
    """Find the layout of an output from its shape alone.

    A grid is one that the model has handed out before, or such a one or the image in square patches. Only the former
    tells how many tokens are prefix.

    Args:
        shape: Of the output.
        samples: Their number ``n``.
        image: Its height and width.
        seen: The grids of what convolutions and poolings have handed out, and of tokens without a prefix.

    Returns:
        The layout and the grid; ``None`` where there is no grid of more than one cell.
    """
    if len(shape) == 4 and shape[0] == samples:
        options = [(channels_first, (shape[2], shape[3])), (channels_last, (shape[1], shape[2]))]
        for grids in (seen, _patches(image)):
            for layout, grid in options:
                if grid in grids and math.prod(grid) > 1:
                    return layout, grid
    if len(shape) == 3 and samples in shape[:2]:
        axis = 0 if shape[0] == samples else 1
        grid = _grid_of_tokens(shape[1 - axis], image, seen)
        if math.prod(grid) > 1:
            return Tokens(*grid, axis), grid
    return None


def other_layouts(shape: Sequence[int], samples: int, seen: Collection[Grid]) -> list[tuple[Layout, Grid]]:
    """What else an output of three axes may be, to be tried: a flattened map, or cells among many other tokens."""
    found: list[tuple[Layout, Grid]] = []
    if len(shape) == 3 and samples in shape[:2]:
        axis = 0 if shape[0] == samples else 1
        if axis == 0:
            found += [(Flattened(*grid), grid) for grid in seen if 1 < math.prod(grid) == shape[2]]
        few_enough = [grid for grid in seen if _FEWEST <= math.prod(grid) <= shape[1 - axis]]
        found += [(Tokens(*grid, axis), grid) for grid in sorted(few_enough, key=math.prod, reverse=True)]
    return found


def _grid_of_tokens(number: int, image: Grid, seen: Collection[Grid]) -> Grid:
    """The grid of so many tokens; (1, 1) where there is none.

    In this order: a seen grid; one with a short prefix; a seen one after merging by two, or the image in patches where
    nothing was seen; a seen grid with a prefix that is longer, but not by far longer than the grid.
    """
    parts = {part for grid in seen for part in _patches(grid, (2, 4, 8))} if seen else _patches(image)
    for grids, shortest, longest in ((seen, 0, 0), (seen, 1, 8), (parts, 0, 0), (seen, 9, math.inf)):
        fits = [grid for grid in grids if shortest <= number - math.prod(grid) <= min(longest, math.prod(grid) + 8)]
        if fits:
            return max(fits, key=math.prod)
    return 1, 1


@cache
def _patches(whole: Grid, sides: tuple[int, ...] = ()) -> set[Grid]:
    """The grids of an image in square patches of these sides or any, with and without a last patch filled in part."""
    height, width = whole
    sides = sides or tuple(range(1, max(whole) + 1))
    return {(height // k, width // k) for k in sides} | {(-(-height // k), -(-width // k)) for k in sides}


def as_layout(grid: Grid | Layout) -> Layout:
    """Turn the ``grid`` argument into a layout; raise a ``ValueError`` where it is none."""
    if callable(grid):
        return grid
    sides: Any = as_list(grid)
    if not isinstance(sides, list) or len(sides) != 2 or not all(map(_is_length, sides)):
        raise ValueError(f"`grid` must be (h, w) in cells or a function `output -> (n, c, h, w)`, got {grid!r}")
    return partial(_with_grid, h=int(sides[0]), w=int(sides[1]))


def _is_length(side: Any) -> bool:
    return isinstance(side, Integral) and not isinstance(side, bool) and int(side) > 0


def _with_grid(output: Tensor, *, h: int, w: int) -> Tensor:
    """The map of an output whose grid the user gave."""
    shape = tuple(output.shape)
    if shape[2:] == (h, w):
        return output
    if len(shape) == 4 and shape[1:3] == (h, w):
        return channels_last(output)
    if len(shape) == 3 and shape[1] >= h * w == shape[2]:
        raise ValueError(
            f"`grid` {(h, w)} fits the layer's output {shape} in two ways, as (n, tokens, c) and as (n, c, {h * w}); "
            "give a function `output -> (n, c, h, w)`"
        )
    if len(shape) == 3 and shape[1] >= h * w:
        return Tokens(h, w)(output)
    if len(shape) == 3 and shape[2] == h * w:
        return Flattened(h, w)(output)
    raise ValueError(
        f"`grid` {(h, w)} does not fit the layer's output {shape}; expected (n, c, {h}, {w}), (n, {h}, {w}, c), "
        f"(n, prefix + {h * w}, c) or (n, c, {h * w})"
    )


def to_map(name: str, output: Tensor, layout: Layout, samples: int) -> Tensor:
    """Bring the output of a layer into the form ``(n, c, h, w)``.

    Raises:
        ValueError: If it has no grid of more than one cell; the message names the layer and shows the shapes.
    """
    shape: Any = tuple(output.shape)
    cells = layout(output)
    got: Any = tuple(cells.shape) if isinstance(cells, Tensor) else type(cells).__name__
    if not isinstance(cells, Tensor) or len(got) != 4 or got[0] != samples or got[2] * got[3] < 2:
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
