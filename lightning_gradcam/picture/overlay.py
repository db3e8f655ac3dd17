"""A map over its photo."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_OPACITY = 0.75  # of the colour where the map is at its maximum; where it is zero the photo is untouched

# 33 evenly spaced colours of each map, between which colours are linear. Within 2 of 255 of the originals:
# turbo by A. Mikhailov, 2019 (Apache-2.0), inferno by S. van der Walt and N. Smith, 2015 (CC0).
COLORMAPS = {
    "turbo": "30123b392a734040a14456c7466be3467ff64293ff37a7fa29bbec1dcdd818dcc31ee8b031f2994cf97e6bfd648aff4da3fd3c"
    "b8f735cced34dee037edd03af8c03afdae35fe982cfb8022f56817ec520fe04009d23105c02302ac1701950d017a0403",
    "inferno": "0000040403120b0724150b37210c4a2e0a5a3c09654a0c6b57106d63146e70196e7d1e6d89226a962766a32b61af315cbb37"
    "55c63e4dd14644db4f3be35932eb6528f1711ef67f14f98d0afb9c06fcab0ffbba1ff9ca32f5d949f2e865f3f586fcffa4",
}
_CONTOUR = {"inferno"}


def colors(values: Tensor, colormap: str) -> Tensor:
    """Values ``(...)`` in [0, 1] to colours ``(..., 3)`` in [0, 1]."""
    table = torch.tensor(list(bytes.fromhex(COLORMAPS[colormap]))).reshape(-1, 3) / 255
    position = values.clamp(0, 1) * (len(table) - 1)
    below = position.long().clamp_max(len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (position - below)[..., None])


def strongest(maps: Tensor) -> Tensor:
    """The largest positive value of each map ``(n, h, w)``, ``(n,)``; 0 where a map has no positive cell."""
    return maps.relu().amax((1, 2))


def overlay(
    photos: Tensor, maps: Tensor, size: tuple[int, int], colormap: str, maximum: Tensor | None = None
) -> Tensor:
    """Draw maps over photos.

    A pixel's opacity grows with its value, so places without evidence stay visible; a map that is empty or not
    finite leaves its photo untouched.

    Args:
        photos: Grey, ``(n, H, W)`` in [0, 1].
        maps: Signed maps ``(n, h, w)``; what is not positive is not drawn.
        size: Height and width of the result in pixels.
        colormap: A key of :data:`COLORMAPS`.
        maximum: ``(n,)``, the value of each map that is drawn strongest; ``None``: its own largest one.

    Returns:
        Pictures ``(n, height, width, 3)``, uint8.
    """
    grey = F.interpolate(photos[:, None], size, mode="bilinear", antialias=True)[:, 0]
    own = strongest(maps)
    drawn = (own > 0) & own.isfinite()
    values = maps.relu() / (own if maximum is None else maximum)[:, None, None]
    values = torch.where(drawn[:, None, None], values, 0).clamp_max(1)
    values = F.interpolate(values[:, None], size, mode="bilinear")[:, 0]
    level = (values * 255).round().int().flatten()
    clear, paint = _blend(colormap)
    picture = torch.addcmul(paint.index_select(0, level), grey.reshape(-1, 1), clear.index_select(0, level)[:, None])
    picture = picture.round_().to(torch.uint8).reshape(*values.shape, 3)
    if colormap in _CONTOUR:
        inside = (values >= 0.5).float()[:, None]
        edge = inside - (1 - F.max_pool2d(1 - inside, 3, 1, 1))  # the outermost ring of the inside
        picture[edge[:, 0] > 0] = 255
    return picture


@cache
def _blend(colormap: str) -> tuple[Tensor, Tensor]:
    """For 256 levels of a map, what is left of the photo ``(256,)`` and what is added to it ``(256, 3)``, up to 255."""
    values = torch.linspace(0, 1, 256)
    opacity = _OPACITY * values
    return 255 * (1 - opacity), 255 * opacity[:, None] * colors(values, colormap)
