"""How samples are drawn as flat tiles: images whole, planes of volumes, frames of clips, signals as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_gradcam.attribution.spatial import Size

_GAP = 2  # pixels between panels
_LEAST = 8  # pixels of a panel's side
_FRAMES, _A_ROW, _FEW = 8, 4, 3  # frames of a clip in a wide tile and in one of its rows, and in a narrow tile
_LEFT, _RIGHT, _BELOW = 34, 6, 13  # pixels around a signal, for its axes and the gauge


@dataclass(frozen=True)
class Axes:
    """What the spatial axes of samples are, beside their length.

    Attributes:
        time: Which of them is time, counted from 0; ``None``: none is.
        spacing: The size of a voxel of volumes along each of them; ``None``: all 1.
        limits: The values of signals that are drawn lowest and highest; ``None``: they are not told.
    """

    time: int | None = None
    spacing: Sequence[float] | None = None
    limits: tuple[float, float] | None = None


PLAIN = Axes()


@dataclass(frozen=True)
class Panel:
    """A part of a tile: a cut through each sample, or the whole of it.

    Attributes:
        corner: Of its upper left, left and top within the tile.
        size: Its height and width.
        axis: The spatial axis that is cut; ``None``: none.
        length: Of this axis, in pixels of the photos.
        positions: ``(n,)``, where each sample is cut, in the same pixels.
        names: What each cut is called; empty where nothing is cut.
        cross: ``(n, 2)``, x and y within the panel where the other two planes of a volume cut this one.
    """

    corner: tuple[int, int]
    size: tuple[int, int]
    axis: int | None = None
    length: int = 1
    positions: Tensor | None = None
    names: Sequence[str] = ()
    cross: Tensor | None = None

    def cut(self, values: Tensor) -> Tensor:
        """The cut through values ``(n, *grid)`` of photos or maps, ``(n, h, w)``; linear between cells."""
        if self.axis is None or self.positions is None:
            return values if values.ndim == 3 else values[:, None]
        cells, axis = values.shape[1 + self.axis], 1 + self.axis
        place = ((self.positions + 0.5) * (cells / self.length) - 0.5).clamp(0, cells - 1)
        below = place.floor().long()

        def at(cell: Tensor) -> Tensor:
            return torch.take_along_dim(values, cell.reshape(-1, 1, 1, 1), axis).squeeze(axis)

        return torch.lerp(at(below), at((below + 1).clamp_max(cells - 1)), (place - below).reshape(-1, 1, 1))


@dataclass(frozen=True)
class View:
    """How the samples of a batch are drawn.

    Attributes:
        size: Height and width of a tile.
        panels: Of which it consists.
        spatial: The length of each axis of the photos.
        limits: See :class:`Axes`; ``None`` where the tile has no room for axes.
    """

    size: tuple[int, int]
    panels: tuple[Panel, ...]
    spatial: Size
    limits: tuple[float, float] | None = None


def wide_view(photos: Tensor, longer: int, axes: Axes, planes: Tensor | None = None) -> View:
    """The view of the grid: an image's longer side is so long, all else is up to twice as wide.

    Args:
        photos: ``(n, *spatial)``.
        longer: In pixels.
        axes: What the axes are.
        planes: ``(n, 3)``, the pixel of each volume through which its planes go; ``None``: the middle.
    """
    size = tuple(photos.shape[1:])
    if len(size) == 1:
        plot = max(_LEAST, longer // 2), max(_LEAST, 2 * longer - _LEFT - _RIGHT)
        return View((plot[0] + _BELOW, _LEFT + plot[1] + _RIGHT), (Panel((_LEFT, 0), plot),), size, axes.limits)
    if len(size) == 2:
        flat = tile_size(size, longer)
        return View(flat, (Panel((0, 0), flat),), size)
    if axes.time is not None:
        return _frames(photos, axes.time, _FRAMES, (2 * longer - (_A_ROW - 1) * _GAP) // _A_ROW, _A_ROW)
    d, h, w = _extents(size, axes)
    beside = min((2 * longer - 2 * _GAP) / (2 * w + h), longer / max(d, h))
    above = min(2 * longer / max(w, h), (longer - 2 * _GAP) / (h + 2 * d))
    return _planes(photos, axes, planes, max(beside, above), beside >= above)  # whichever is larger


def narrow_view(photos: Tensor, longer: int, axes: Axes, planes: Tensor | None = None) -> View:
    """The view of the filmstrip: no panel is longer than that on either side, and several stand one above the other."""
    size = tuple(photos.shape[1:])
    if len(size) < 3:
        flat = (longer // 2, longer) if len(size) == 1 else tile_size(size, longer, _LEAST)
        return View(flat, (Panel((0, 0), flat),), size)
    if axes.time is not None:
        return _frames(photos, axes.time, _FEW, longer, 1)
    return _planes(photos, axes, planes, longer / max(_extents(size, axes)), False)


def frame_views(photos: Tensor, longer: int, time: int, most: int) -> list[View]:
    """A view of each of up to so many frames of clips, evenly spaced."""
    frames = _frames(photos, time, most, longer, 1).panels
    return [View(one.size, (replace(one, corner=(0, 0)),), tuple(photos.shape[1:])) for one in frames]


def strongest_pixels(maps: Tensor, size: Size) -> Tensor:
    """The middle pixel of each map's strongest cell along each axis, ``(n, d)``; the middle of an empty map.

    Args:
        maps: Signed maps ``(n, *grid)``.
        size: Of the photos in pixels.
    """
    flat = maps.flatten(1)
    drawn = flat.isfinite().all(1) & (flat > 0).any(1)
    cells = torch.stack(torch.unravel_index(flat.argmax(1), tuple(maps.shape[1:])), 1)
    sides, grid = torch.tensor(size), torch.tensor(maps.shape[1:])
    return torch.where(drawn[:, None], (2 * cells + 1) * sides // (2 * grid), sides // 2)


def evenly(count: int, most: int) -> list[int]:
    """Up to so many of ``count`` indices evenly spaced, the first and the last among them."""
    gaps = min(count, most) - 1
    return [round(i * (count - 1) / gaps) for i in range(gaps + 1)] if gaps else [0]


def tile_size(size: Size, longer: int, least: int = 1) -> tuple[int, int]:
    """Height and width of the tiles of photos ``(H, W)``: so long the longer side, and no side below the least."""
    factor = longer / max(size)
    height, width = (max(least, round(side * factor)) for side in size)
    return height, width


def _extents(size: Size, axes: Axes) -> list[float]:
    return [side * one for side, one in zip(size, axes.spacing or (1,) * len(size), strict=True)]


def _planes(photos: Tensor, axes: Axes, planes: Tensor | None, factor: float, side_by_side: bool) -> View:
    """A plane of each volume across each of its axes, all on one scale: a factor from its units to pixels."""
    size = tuple(photos.shape[1:])
    places = torch.tensor(size).expand(len(photos), 3) // 2 if planes is None else planes
    pixels = [max(_LEAST, round(extent * factor)) for extent in _extents(size, axes)]
    panels: list[Panel] = []
    left = top = 0
    for axis in range(3):
        rows, columns = (other for other in range(3) if other != axis)
        flat = pixels[rows], pixels[columns]
        names = [f"[{', '.join(str(int(at)) if one == axis else ':' for one in range(3))}]" for at in places[:, axis]]
        cross = torch.stack([(places[:, one] + 0.5) / size[one] * pixels[one] for one in (columns, rows)], 1)
        panels.append(Panel((left, top), flat, axis, size[axis], places[:, axis], names, cross))
        left, top = (left + flat[1] + _GAP, 0) if side_by_side else (0, top + flat[0] + _GAP)
    return View(_around(panels), tuple(panels), size)


def _frames(photos: Tensor, time: int, most: int, longer: int, a_row: int) -> View:
    """Frames of each clip, evenly spaced, so many in a row."""
    n, *size = photos.shape
    count = size[time]
    flat = tile_size(tuple(side for axis, side in enumerate(size) if axis != time), longer, _LEAST)
    panels = [
        Panel(
            (i % a_row * (flat[1] + _GAP), i // a_row * (flat[0] + _GAP)),
            flat,
            time,
            count,
            torch.full((n,), frame),
            [f"t {frame}"] * n,
        )
        for i, frame in enumerate(evenly(count, most))
    ]
    return View(_around(panels), tuple(panels), tuple(size))


def _around(panels: Sequence[Panel]) -> tuple[int, int]:
    """Height and width of what holds the panels."""
    height = max(one.corner[1] + one.size[0] for one in panels)
    return height, max(one.corner[0] + one.size[1] for one in panels)
