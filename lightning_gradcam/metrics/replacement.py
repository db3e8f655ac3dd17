"""What takes the place of an image's pixels where they are taken away, and the patches that are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch

Baseline = float | Sequence[float] | Tensor | Callable[[Tensor], Tensor]


def baseline_images(batch: Batch, baseline: Baseline) -> Tensor:
    """What replaces pixels, in a shape that goes with the images."""
    images = batch.images
    if callable(baseline):
        blank = baseline(images.clone())
        if not isinstance(blank, Tensor) or blank.shape != images.shape:
            got = tuple(blank.shape) if isinstance(blank, Tensor) else type(blank).__name__
            raise ValueError(f"`baseline` must give images {tuple(images.shape)}, got {got}")
        return blank.to(images)
    c = images.shape[batch.channel_axis]
    try:
        blank = torch.as_tensor(baseline, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):  # what cannot be read at all is refused below
        blank = torch.empty(0)
    if blank.ndim > 1 or blank.numel() not in (1, c) or not blank.isfinite().all():
        raise ValueError(
            f"`baseline` must be a number, one per channel, that is {c}, or a function `images -> images`, "
            f"got {baseline!r}"
        )
    axes = [1] * images.ndim
    axes[batch.channel_axis] = -1
    return blank.reshape(axes).to(images.dtype).to(images.device)


def patch_windows(batch: Batch, patch: int | None, stride: int | None) -> list[Tensor]:
    """Which pixels of each side a patch covers at each position, such as ``(rows, H)`` and ``(columns, W)``, bool."""
    side = sorted(batch.size)[-2:][0]  # a few frames or slices do not make the patches small, and many
    patch = -(-side // 8) if patch is None else patch
    check_number("patch", patch, 1, side)
    stride = patch if stride is None else stride
    check_number("stride", stride, 1, patch)

    def windows(side: int) -> Tensor:
        last = max(side - patch, 0)
        starts = torch.tensor([*range(0, last, stride), last], device="cpu")[:, None]
        pixels = torch.arange(side, device="cpu")
        return (pixels >= starts) & (pixels < starts + patch)

    return [windows(side) for side in batch.size]


def check_number(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse what is no whole number within these bounds; raise a ``ValueError``."""
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"`{name}` must be a whole number, {bounds}, got {value!r}")
