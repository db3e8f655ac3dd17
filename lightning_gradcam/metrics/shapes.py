"""Whether the shapes of maps, masks and boxes fit one another; they must never go together by broadcasting alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def check_same_shape(maps: np.ndarray | Tensor, others: np.ndarray | Tensor) -> None:
    """Refuse maps of different shapes; raise a ``ValueError``."""
    if maps.shape != others.shape:
        shapes = f"{tuple(maps.shape)} and {tuple(others.shape)}"
        raise ValueError(f"`maps` and `others` must have the same shape, got {shapes}; bring both to one grid")


def check_shapes(size: Sequence[int] | None = None, **arguments: tuple[np.ndarray | Tensor, str]) -> None:
    """Raise a ``ValueError`` unless the shapes fit the letters; a letter means the same length everywhere.

    The last letter may stand for the axes of a grid, ``g``, or of the image, ``s``, or for the numbers of a box, ``b``.
    All have as many spatial axes as ``size``; where it is not given and they differ, images are taken to be meant.
    """
    found = [len(size)] if size is not None else [_axes(*argument) for argument in arguments.values()]
    d = 2 if 2 in found else found[0]
    spelled = {"g": grid_letters(d), "s": grid_letters(d).upper(), "b": str(2 * d)}
    lengths = {spelled["b"]: 2 * d}
    for name, (tensor, short) in arguments.items():
        shape, letters = tuple(tensor.shape), short[:-1] + spelled.get(short[-1], short[-1])
        known = {letter: lengths[letter] for letter in letters if letter in lengths and letter != spelled["b"]}
        if len(shape) != len(letters) or any(
            lengths.setdefault(letter, length) != length for letter, length in zip(letters, shape, strict=True)
        ):
            expected = f"({', '.join(letters)})" + "".join(f", {letter} = {known[letter]}" for letter in known)
            raise ValueError(
                f"`{name}` must have the shape {expected}, got {shape}; give one row for each sample, "
                "and all with the same spatial axes"
            )


def grid_letters(d: int) -> str:
    """What the axes of a grid are called, one letter each, as in ``(n, h, w)``."""
    return "dhw"[-d:]


def _axes(tensor: np.ndarray | Tensor, letters: str) -> int:
    """How many spatial axes a tensor of these letters has, 1 to 3."""
    axes = tensor.shape[-1] // 2 if letters[-1] == "b" else tensor.ndim - len(letters) + 1
    return min(max(axes, 1), 3)
