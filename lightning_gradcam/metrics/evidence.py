"""How much evidence a map holds; of tensors or of numpy arrays."""

from __future__ import annotations

from collections import Counter
from math import isfinite

from lightning_gradcam.attribution.arrays import Array, namespace
from lightning_gradcam.attribution.spatial import cell_axes, cells_in_rows

_REASONS = {
    "not finite": "NaN or infinite: activations or gradients overflow; try another precision",
    "zero": "zero everywhere: no gradient reaches the layer, as behind dead units or a target without effect",
    "negative": "empty: all of the layer's evidence is against the target, as is common before and early in training",
    "constant": "constant: the layer's output does not vary over the image, so another layer may tell more",
}


def strength(maps: Array) -> Array:
    """The sum of each signed map: its evidence for the target's score, in the score's own unit.

    For a network that ends in global average pooling and one linear layer, Grad-CAM's map sums to the score less
    the bias. Only methods with a sign have it.

    Args:
        maps: Signed maps ``(n, *grid)``.

    Returns:
        ``(n,)``, any real number; larger is more evidence for the target.
    """
    return namespace(maps).sum(maps, cell_axes(maps))


def empty(maps: Array) -> Array:
    """Whether each map ``(n, *grid)`` has no positive cell, ``(n,)`` bool. A map that is not finite is not empty."""
    return namespace(maps).all(cells_in_rows(maps) <= 0, 1)


def unreadable(maps: Array) -> list[str]:
    """Why each map ``(n, *grid)`` cannot be read: not finite, zero, negative or constant; empty where it can."""
    xp, cells = namespace(maps), cells_in_rows(maps)
    lowest, highest = xp.amin(cells, 1), xp.amax(cells, 1)  # a NaN is both
    return [_why(least, most) for least, most in zip(lowest.tolist(), highest.tolist(), strict=True)]


def _why(least: float, most: float) -> str:
    if not (isfinite(least) and isfinite(most)):
        return "not finite"
    if most <= 0:
        return "negative" if least < 0 else "zero"
    return "constant" if least == most else ""


def explain_empty_maps(maps: Array) -> dict[str, str]:
    """Why some of the maps ``(n, *grid)`` cannot be read, and what the likely reason is, by kind."""
    found = Counter(unreadable(maps))
    return {
        kind: f"the maps of {found[kind]} of {len(maps)} samples are {reason}."
        for kind, reason in _REASONS.items()
        if found[kind]
    }
