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


def explain_empty_maps(maps: Tensor) -> dict[str, str]:
    """Why some of the maps ``(n, h, w)`` cannot be read, and what the likely reason is, by kind."""
    flat = maps.flatten(1)
    finite = flat.isfinite().all(1)
    zero = (flat == 0).all(1)
    kinds = {
        "not finite": (~finite, "NaN or infinite: activations or gradients overflow; try another precision"),
        "zero": (
            zero,
            "zero everywhere: no gradient reaches the layer, as behind dead units or a target without effect",
        ),
        "negative": (
            finite & ~zero & (flat <= 0).all(1),
            "empty: all of the layer's evidence is against the target, as is common before and early in training",
        ),
        "constant": (
            finite & (flat > 0).all(1) & (flat == flat[:, :1]).all(1),
            "constant: the layer's output does not vary over the image, so another layer may tell more",
        ),
    }
    return {
        kind: f"the maps of {int(which.sum())} of {len(maps)} samples are {reason}."
        for kind, (which, reason) in kinds.items()
        if which.any()
    }
