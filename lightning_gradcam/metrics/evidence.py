"""How much evidence a map holds."""

from __future__ import annotations

from torch import Tensor


def strength(maps: Tensor) -> Tensor:
    """The sum of each signed map: its evidence for the target's score, in the score's own unit.

    For a network that ends in global average pooling and one linear layer, Grad-CAM's map sums to the score less
    the bias. Only methods with a sign have it.

    Args:
        maps: Signed maps ``(n, h, w)``.

    Returns:
        ``(n,)``, any real number; larger is more evidence for the target.
    """
    return maps.sum((1, 2))


def empty(maps: Tensor) -> Tensor:
    """Whether each map ``(n, h, w)`` has no positive cell, ``(n,)`` bool. A map that is not finite is not empty."""
    return (maps <= 0).all(2).all(1)
