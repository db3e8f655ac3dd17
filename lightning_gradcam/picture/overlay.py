"""A map over its photo."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gradcam.attribution.spatial import along_cells, cell_axes
from lightning_gradcam.picture.colormaps import AGAINST, COLORMAPS

_OPACITY = 0.75  # of the colour where the map is at its maximum; where it is zero the photo is untouched

_CONTOUR = {"inferno"}


def colors(values: Tensor, colormap: str) -> Tensor:
    """Values ``(...)`` in [0, 1] to colours ``(..., 3)`` in [0, 1]."""
    table = torch.tensor(list(bytes.fromhex(COLORMAPS[colormap]))).reshape(-1, 3) / 255
    position = values.clamp(0, 1) * (len(table) - 1)
    below = position.long().clamp_max(len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (position - below)[..., None])


def strongest(maps: Tensor) -> Tensor:
    """The largest positive value of each map ``(n, *grid)``, ``(n,)``; 0 where a map has no positive cell."""
    return maps.relu().amax(cell_axes(maps))


def _whole(values: Tensor) -> Tensor:
    return values


def overlay(
    photos: Tensor,
    maps: Tensor,
    size: tuple[int, int],
    colormap: str,
    maximum: Tensor | None = None,
    counterfactual: bool = False,
    cut: Callable[[Tensor], Tensor] = _whole,
) -> Tensor:
    """Draw maps over photos.

    A pixel's opacity grows with its value, so places without evidence stay visible; a map that is empty or not
    finite leaves its photo untouched.

    Args:
        photos: Grey, ``(n, H, W)`` in [0, 1], or with other axes, see ``cut``.
        maps: Signed maps ``(n, h, w)``, likewise.
        size: Height and width of the result in pixels.
        colormap: A key of :data:`COLORMAPS`.
        maximum: ``(n,)``, the value of each map that is drawn strongest, as are larger ones; ``None`` or 0: its own
            largest one.
        counterfactual: Whether to draw what is negative as well, in a colour of its own on the same scale; each map's
            own largest value is then that of either side.
        cut: Brings photos and maps of other than two axes to ``(n, h, w)``, see
            :meth:`~lightning_gradcam.picture.view.Panel.cut`; all else is of the whole maps.

    Returns:
        Pictures ``(n, height, width, 3)``, uint8.
    """
    grey = _resized(cut(photos), size)
    own = torch.maximum(strongest(maps), strongest(-maps)) if counterfactual else strongest(maps)
    drawn = (own > 0) & own.isfinite()
    unit = own if maximum is None else torch.where(maximum > 0, maximum, own)

    def levels(side: Tensor) -> Tensor:
        shares = torch.where(along_cells(drawn, maps), side.relu() / along_cells(unit, maps), 0).clamp_max(1)
        return F.interpolate(cut(shares)[:, None], size, mode="bilinear")[:, 0]

    values = levels(maps)
    place = (values * 255).round_().int().mul_(256).add_(grey)
    picture = _blend(colormap).index_select(0, place.flatten()).reshape(*values.shape, 3)
    if counterfactual:
        against = torch.tensor(AGAINST[colormap]).float()
        picture = picture.float().lerp_(against, _OPACITY * levels(-maps)[..., None]).round_().to(torch.uint8)
    if colormap in _CONTOUR:
        inside = (values >= 0.5).float()[:, None]
        edge = inside - (1 - F.max_pool2d(1 - inside, 3, 1, 1))  # the outermost ring of the inside
        picture[edge[:, 0] > 0] = 255
    return picture


def gradient_pictures(gradients: Tensor, size: tuple[int, int], cut: Callable[[Tensor], Tensor] = _whole) -> Tensor:
    """Draw gradients: grey where there is none, darker and lighter, or in colour, to either side.

    Args:
        gradients: ``(n, c, *spatial)``; three channels are drawn as red, green and blue, others as their mean.
        size: Height and width of the result in pixels.
        cut: As in :func:`overlay`, of each channel; the range of colours is that of the whole sample.

    Returns:
        Pictures ``(n, height, width, 3)``, uint8. In each of them all but the strongest half percent of the values lie
        within the range of colours; one that is not finite is grey.
    """
    values = gradients if gradients.shape[1] == 3 else torch.stack([gradients.mean(1)] * 3, 1)
    values = torch.where(along_cells(values.isfinite().flatten(1).all(1), values), values, 0)
    sizes = values.abs().flatten(1)
    most = sizes.kthvalue(max(1, round(0.995 * sizes.shape[1])), 1).values
    most = torch.where(most > 0, most, sizes.amax(1).clamp_min(torch.finfo(most.dtype).tiny))
    shares = (values / along_cells(most, values)).clamp(-1, 1)
    shares = torch.stack([cut(channel) for channel in shares.unbind(1)], 1)
    shares = F.interpolate(shares, size, mode="bilinear", antialias=True)
    return (127.5 * (1 + shares)).round().to(torch.uint8).movedim(1, 3)


@lru_cache(8)
def _resized(photos: Tensor, size: tuple[int, int]) -> Tensor:
    """Photos ``(n, H, W)`` at this height and width, int in [0, 255].

    A tensor is its own key: the photos of a run stay the same.
    """
    return (255 * F.interpolate(photos[:, None], size, mode="bilinear", antialias=True)[:, 0]).round_().int()


@cache
def _blend(colormap: str) -> Tensor:
    """The colour of each of 256 levels of a map over each of 256 greys, ``(256 * 256, 3)`` uint8."""
    values = torch.linspace(0, 1, 256)
    opacity = _OPACITY * values[:, None, None]
    picture = (1 - opacity) * values[None, :, None] + opacity * colors(values, colormap)[:, None]
    return (255 * picture).round().to(torch.uint8).flatten(0, 1)
