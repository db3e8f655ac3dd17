"""Grad-CAM's weights in words: which channels speak for a decision, and which against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Explanation:
    """The channels that matter most for one score; ``str()`` of it is a line.

    Attributes:
        strongest: The names of the channels with the largest weights and these, largest first.
        weakest: Of those with the smallest, most negative first.
    """

    strongest: list[tuple[str, float]]
    weakest: list[tuple[str, float]]

    def __str__(self) -> str:
        sides = zip(("strongest", "weakest"), (self.strongest, self.weakest), strict=True)
        return "; ".join(f"{side}: {', '.join(f'{name} {value:+.3g}' for name, value in own)}" for side, own in sides)


def explain(alpha: Tensor, names: Sequence[str] | None = None, k: int = 5) -> list[Explanation]:
    """List the strongest and the weakest channels of each sample.

    The paper names channels by the concept that each one detects (Network Dissection, Bau et al. 2017, arXiv
    1704.05796), and reads the names of the five largest weights as reasons for a decision, those of the five smallest
    as reasons against it.

    Source: Selvaraju et al., IJCV 2019, arXiv 1610.02391, section on textual explanations.

    Args:
        alpha: ``(n, channels)``, from :func:`~lightning_gradcam.neuron_importance`.
        names: What each channel stands for; several may share a name. ``None``: their numbers.
        k: How many of each, at least 1; no channel is listed on both sides.

    Raises:
        ValueError: If the shapes or numbers do not fit, or a weight is not finite.
    """
    if alpha.ndim != 2:
        raise ValueError(f"`alpha` must be (n, channels), got {tuple(alpha.shape)}")
    if not alpha.isfinite().all():
        raise ValueError("`alpha` holds NaN or infinite values; try another precision")
    channels = alpha.shape[1]
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"`k` must be a whole number of at least 1, got {k!r}")
    known = [f"channel {i}" for i in range(channels)] if names is None else list(names)
    if len(known) != channels:
        raise ValueError(f"`names` must name {channels} channels, got {len(known)}")
    most, least = min(k, -(-channels // 2)), min(k, channels // 2)
    result = []
    for weights in alpha:
        order = weights.argsort(descending=True, stable=True).tolist()
        listed = [(known[i], float(weights[i])) for i in order]
        result.append(Explanation(listed[:most], listed[::-1][:least]))
    return result
