"""What is drawn on the panels of tiles: maps, gradients, curves with their axes, cross-hairs, names, regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_gradcam.attribution.regions import cut_region, outline_boxes
from lightning_gradcam.picture.draw import INK, PAPER, draw_box
from lightning_gradcam.picture.overlay import gradient_pictures, overlay
from lightning_gradcam.picture.text import load_font, write
from lightning_gradcam.picture.view import Panel, View

_TEXT = 10
_LINE = "#b8b8b8"  # of cross-hairs, less bright than the outlines of regions
_OPEN = 8  # pixels around the middle of a cross-hair, where the map is to be seen
_LOW = 48  # pixels of a panel, in which a curve takes only the middle half, so that the band behind it is seen
_MARGIN = 4  # pixels above and below a curve in a higher one


def map_tiles(
    view: View,
    photos: Tensor,
    maps: Tensor,
    colormap: str,
    maximum: Tensor | None = None,
    counterfactual: bool = False,
) -> list[Image.Image]:
    """A tile of each sample: maps ``(n, *grid)`` over photos ``(n, *spatial)``, or behind the curves of signals.

    See :func:`~lightning_gradcam.picture.overlay.overlay`. All panels of a sample are on the scale of its whole map.
    """
    behind = photos if photos.ndim > 2 else torch.ones_like(photos)
    pictures = [
        overlay(behind, maps, panel.size, colormap, maximum, counterfactual, panel.cut) for panel in view.panels
    ]
    return _composed(view, photos, pictures, "black")


def gradient_tiles(view: View, photos: Tensor, gradients: Tensor) -> list[Image.Image]:
    """A tile of each sample's gradients ``(n, c, *spatial)``, all panels of it on one scale."""
    pictures = [gradient_pictures(gradients, panel.size, panel.cut) for panel in view.panels]
    return _composed(view, photos, pictures, "#b3261e")  # a curve that is seen on any grey


def region_boxes(view: View, regions: Mapping[str, Tensor]) -> list[tuple[Panel, Tensor]]:
    """Boxes ``(n, m, 4)`` around each region's cut, in pixels of its panel; without area where the cut misses them."""
    return [(panel, _boxes(panel, region, view.spatial)) for region in regions.values() for panel in view.panels]


def draw_regions(
    draw: ImageDraw.ImageDraw, boxes: Sequence[tuple[Panel, Tensor]], sample: int, corner: tuple[int, int]
) -> None:
    """Outline the regions of a sample, whose tile has its upper left at ``corner``."""
    for panel, of_samples in boxes:
        for box in of_samples[sample].tolist():
            draw_box(draw, box, (corner[0] + panel.corner[0], corner[1] + panel.corner[1]))


def _boxes(panel: Panel, region: Tensor, size: tuple[int, ...]) -> Tensor:
    if panel.axis is not None and panel.positions is not None:
        region = cut_region(region, size, panel.axis, panel.positions)
        size = tuple(side for axis, side in enumerate(size) if axis != panel.axis)
    elif len(size) == 1:
        start, end = outline_boxes(region, size).unbind(-1)
        region, size = torch.stack([start, torch.zeros_like(start), end, (end > start).to(end)], -1), (1, *size)
    (height, width), (tall, wide) = size, panel.size
    return outline_boxes(region, (height, width)) * torch.tensor([wide / width, tall / height] * 2)


def _composed(view: View, photos: Tensor, pictures: Sequence[Tensor], ink: str) -> list[Image.Image]:
    """Tiles of pictures ``(n, height, width, 3)`` of their panels, with curves in this ink."""
    height, width = view.size
    tiles = [Image.new("RGB", (width, height), PAPER) for _ in photos]
    for panel, of_samples in zip(view.panels, pictures, strict=True):
        for i, (tile, picture) in enumerate(zip(tiles, of_samples.numpy(), strict=True)):
            tile.paste(Image.fromarray(picture), panel.corner)
            draw = ImageDraw.Draw(tile)
            if photos.ndim == 2:
                _draw_curve(draw, photos[i], panel, ink)
            if panel.cross is not None:
                _draw_cross(draw, panel, *panel.cross[i].tolist())
            if panel.names:
                _draw_name(draw, panel.names[i], panel)
    if view.limits is not None:
        for tile in tiles:
            _draw_axes(ImageDraw.Draw(tile), view.panels[0], view.spatial[0], view.limits)
    return tiles


def _draw_name(draw: ImageDraw.ImageDraw, name: str, panel: Panel) -> None:
    """In a panel's corner, on black: colons and brackets would drown in an outline."""
    (left, top), letters = panel.corner, load_font(None, _TEXT)
    room = min(letters.getlength(name), panel.size[1] - 4)
    draw.rectangle((left, top, left + round(room) + 3, top + _TEXT + 2), fill="black")
    write(draw, (left + 2, top + _TEXT // 2 + 1), name, "white", letters, room)


def _draw_cross(draw: ImageDraw.ImageDraw, panel: Panel, x: float, y: float) -> None:
    """Lines across a panel, open around where they meet."""
    (left, top), (height, width) = panel.corner, panel.size
    for start, end in ((0, x - _OPEN), (x + _OPEN, width - 1)):
        if start < end:
            draw.line((left + round(start), top + int(y), left + round(end), top + int(y)), fill=_LINE)
    for start, end in ((0, y - _OPEN), (y + _OPEN, height - 1)):
        if start < end:
            draw.line((left + int(x), top + round(start), left + int(x), top + round(end)), fill=_LINE)


def _draw_curve(draw: ImageDraw.ImageDraw, values: Tensor, panel: Panel, ink: str) -> None:
    """Values ``(length,)`` in [0, 1] as a line; of many in a pixel the lowest and the highest."""
    (left, top), (height, width) = panel.corner, panel.size
    if len(values) > 4 * width:
        highest, lowest = (sign * F.adaptive_max_pool1d(sign * values[None, None], width)[0, 0] for sign in (1, -1))
        values = torch.stack([lowest, highest], 1).flatten()
    margin = _margin(panel)
    step, room = width / len(values), height - 1 - 2 * margin
    points = [(left + (i + 0.5) * step, top + margin + (1 - value) * room) for i, value in enumerate(values.tolist())]
    for start, end in pairwise(points):
        draw.line((*start, *end), fill=ink)
    if len(points) == 1:
        draw.point(points, fill=ink)


def _margin(panel: Panel) -> int:
    return panel.size[0] // 4 if panel.size[0] < _LOW else _MARGIN


def _draw_axes(draw: ImageDraw.ImageDraw, panel: Panel, length: int, limits: tuple[float, float]) -> None:
    """The first, middle and last index below a curve, the lowest and highest value beside it."""
    (left, top), (height, width), letters = panel.corner, panel.size, load_font(None, _TEXT)
    bottom, margin = top + height, _margin(panel)
    draw.rectangle((left - 1, top, left + width - 1, bottom), outline="#c8c8c8")
    for index, anchor in zip(sorted({0, length // 2, length - 1}), "lmr", strict=False):
        x = left + (index + 0.5) / length * width
        draw.line((x, bottom, x, bottom + 2), fill=INK)
        place = {"l": left, "m": x, "r": left + width}[anchor], bottom + 7
        write(draw, place, str(index), INK, letters, width / 3, anchor)
    for value, y in ((limits[1], top + margin), (limits[0], bottom - 1 - margin)):
        draw.line((left - 3, y, left - 1, y), fill=INK)
        write(draw, (left - 5, y), f"{value:.3g}", INK, letters, left - 6, "r")
