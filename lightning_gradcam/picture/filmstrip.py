"""The filmstrip: a row a sample, a column an observation, from the first of the run to the last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_gradcam.attribution.spatial import at_most, averaged
from lightning_gradcam.picture.draw import (
    GUTTER,
    INK,
    LINE,
    PAPER,
    TEXT,
    VERDICT,
    draw_foot,
    draw_gauge,
    draw_note,
    notes,
)
from lightning_gradcam.picture.overlay import strongest
from lightning_gradcam.picture.panels import draw_regions, map_tiles, region_boxes
from lightning_gradcam.picture.text import load_font, write
from lightning_gradcam.picture.view import PLAIN, Axes, evenly, narrow_view

ROWS = 8  # samples in a filmstrip: the first ones of the fixed batch, so that the rows never change
COLUMNS = 8  # observations in a filmstrip
_GRID = {1: 256, 2: 28, 3: 16}  # longest side of the maps that a frame keeps, by their number of axes
_TILE = 80
_BAR = 14  # under a tile, what the model said
_SMALL = 11
_SPARK = 130
_MARKED = 3
_MARK = "#b45309"  # the samples that moved most


@dataclass
class Frame:
    """An observation that the filmstrip keeps: of its first :data:`ROWS` samples, ``r`` in number.

    Attributes:
        epoch: Counted from 0; -1 before training.
        maps: ``(r, *grid)``, with at most so many cells a side as :func:`frame_maps` keeps.
        classes: The classes that were asked for, else predicted, ``(r,)``, -1 where there are none.
        right: Whether these are predicted and right, ``(r,)``: 1, 0, or -1 where that is not known.
        drift: ``(r,)``, the largest drift since the frame before.
    """

    epoch: int
    maps: Tensor
    classes: Tensor
    right: Tensor
    drift: Tensor


def frame_maps(maps: Tensor) -> Tensor:
    """The maps ``(r, *grid)`` of the filmstrip's samples, averaged down.

    At most 28 cells a side of images, 16 of volumes and clips, 256 of signals.
    """
    maps = maps[:ROWS]
    grid = at_most(maps.shape[1:], _GRID[maps.ndim - 1])
    if grid == maps.shape[1:]:
        return maps.clone()  # a checkpoint would hold the whole of what a part is a view of
    return averaged(maps, grid)


def shown_frames(frames: Sequence[Frame]) -> list[int]:
    """Which frames to show: the first, the last, and others evenly spaced between, at most :data:`COLUMNS`."""
    return evenly(len(frames), COLUMNS)


@dataclass(frozen=True)
class _Column:
    """A column that has been drawn.

    Attributes:
        frame: What it shows.
        unit: By what each map is drawn; ``None``: by its own maximum.
        picture: The tiles, with what the model said under each.
        strongest: The largest positive value of each map; ``None`` where it cannot be read.
    """

    frame: Frame
    unit: list[float] | None
    picture: Image.Image
    strongest: list[float | None]


class Filmstrip:
    """Draws a run so far, as often as it goes on; a column is drawn once."""

    def __init__(
        self,
        photos: Tensor,
        titles: Sequence[str],
        class_names: Sequence[str],
        regions: Mapping[str, Tensor],
        key: str,
        *,
        scale: str = "sample",
        colormap: str = "turbo",
        font: str | Path | None = None,
        axes: Axes = PLAIN,
    ) -> None:
        """Draw what stays.

        Args:
            photos: Grey, ``(r, *spatial)`` in [0, 1].
            titles: What each sample is called.
            class_names: The name of each class; indices are shown where there are none.
            regions: As in :class:`~lightning_gradcam.attribution.batch.Batch`, outlined on the photo at the left.
            key: The line at the foot.
            scale: ``"sample"``: each map by its own maximum, with a gauge of that against the peak at the tile's edge;
                ``"run"``: each by the sample's peak.
            colormap: A key of :data:`~lightning_gradcam.picture.overlay.COLORMAPS`.
            font: A TrueType file; ``None`` for the package's own.
            axes: What the axes of the photos are.
        """
        self._photos, self._titles, self._class_names = photos, titles, class_names
        self._key, self._scale, self._colormap = key, scale, colormap
        self._letters, self._foot = load_font(font, _SMALL), load_font(font, TEXT)
        self._axes, self._regions = axes, regions
        self._look_through(None)

    def draw(
        self,
        frames: Sequence[Frame],
        drift_from_reference: Tensor,
        peak: Tensor,
        reference_run: tuple[str, Frame] | None = None,
        planes: Tensor | None = None,
    ) -> Image.Image:
        """Draw the run so far.

        Args:
            frames: The observations that the run has kept.
            drift_from_reference: ``(r,)``, how far each sample has moved; of more than three the largest three are
                marked.
            peak: ``(r,)``, the largest value of each sample's maps in the run.
            reference_run: What another run is called and saw last: the last column.
            planes: ``(r, 3)``, the pixel of each volume through which its planes go, in all columns; ``None``: as
                before, at first the middle.

        Returns:
            A picture of at most 1,000 pixels in width, whatever the number of observations.
        """
        if planes is not None and not (self._planes is not None and torch.equal(planes, self._planes)):
            self._look_through(planes)
        # The head of each column, its frame, and the scale of its maps, which in another run is another.
        shown: list[tuple[str, Frame, list[float] | None]] = []
        for frame in (frames[i] for i in shown_frames(frames)):
            shown.append(("start" if frame.epoch < 0 else f"epoch {frame.epoch}", frame, peak.tolist()))
        if reference_run is not None:
            shown.append((*reference_run, None))
        across = self._width + GUTTER
        spark = GUTTER + (1 + len(shown)) * across
        canvas = Image.new("RGB", (spark + _SPARK + GUTTER, LINE + len(self._photos) * self._down + LINE), PAPER)
        draw = ImageDraw.Draw(canvas)
        for column, head in enumerate(["", *(head for head, *_ in shown), "drift, from 0 to 1"]):
            room = self._width if column <= len(shown) else _SPARK
            write(draw, (GUTTER + column * across, LINE // 2), head, INK, self._letters, room)
        canvas.paste(self._samples, (GUTTER, LINE))
        for column, (_, frame, unit) in enumerate(shown, 1):
            self._paste(canvas, draw, GUTTER + column * across, self._column(frame, unit), unit)
        self._draw_drift(draw, spark, torch.stack([frame.drift for frame in frames], 1), drift_from_reference)
        draw_foot(canvas, draw, self._foot, self._key, self._colormap)
        kept = {id(frame) for frame in [*frames, *(frame for _, frame, _ in shown)]}
        self._drawn = {key: column for key, column in self._drawn.items() if key in kept}
        return canvas

    def _look_through(self, planes: Tensor | None) -> None:
        """Draw the samples as they are seen from now on; what was drawn of volumes goes, if their planes are others."""
        self._planes, self._view = planes, narrow_view(self._photos, _TILE, self._axes, planes)
        self._height, self._tile_width = self._view.size
        self._width = max(self._tile_width, _TILE // 2)
        self._down = self._height + _BAR + GUTTER
        self._drawn: dict[int, _Column] = {}
        self._samples, draw = self._tiles(torch.zeros(len(self._photos), *[1] * (self._photos.ndim - 1)))
        boxes = region_boxes(self._view, self._regions)
        for row in range(len(self._photos)):
            draw_regions(draw, boxes, row, (0, row * self._down))

    def _tiles(self, maps: Tensor, unit: Tensor | None = None) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """A column of maps over the photos."""
        column = Image.new("RGB", (self._width, len(maps) * self._down - GUTTER), PAPER)
        for row, tile in enumerate(map_tiles(self._view, self._photos, maps, self._colormap, unit)):
            column.paste(tile, (0, row * self._down))
        return column, ImageDraw.Draw(column)

    def _column(self, frame: Frame, unit: list[float] | None) -> _Column:
        by = unit if self._scale == "run" else None
        column = self._drawn.get(id(frame))
        if column is None or column.unit != by:
            picture, draw = self._tiles(frame.maps, None if by is None else torch.tensor(by))
            values: list[float | None] = strongest(frame.maps).tolist()
            for row, note in enumerate(notes(frame.maps)):
                top = row * self._down
                if note:
                    values[row] = None
                    draw_note(draw, self._letters, note, (0, top), (self._tile_width, self._height))
                name, verdict = _verdict(frame, row, self._class_names)
                self._draw_bar(draw, name, verdict, (0, top + self._height))
            column = self._drawn[id(frame)] = _Column(frame, by, picture, values)
        return column

    def _paste(
        self, canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, column: _Column, unit: list[float] | None
    ) -> None:
        """Put a column in its place, with the gauges, which change with the peak."""
        canvas.paste(column.picture, (left, LINE))
        for row, value in enumerate(column.strongest):
            if value is not None and unit is not None and self._scale == "sample":
                draw_gauge(draw, value / unit[row], (left, LINE + row * self._down), (self._tile_width, self._height))

    def _draw_drift(self, draw: ImageDraw.ImageDraw, left: int, drifts: Tensor, from_reference: Tensor) -> None:
        """The samples' names at the left, and at the right how each has moved; those that moved most in a colour."""
        moved = from_reference.nan_to_num(0).topk(_MARKED).indices.tolist() if len(drifts) > _MARKED else []
        for row, value in enumerate(from_reference.tolist()):
            top, color = LINE + row * self._down, _MARK if row in moved else INK
            self._draw_bar(draw, self._titles[row], color, (GUTTER, top + self._height))
            _draw_spark(draw, drifts[row], color, (left, top), (_SPARK - GUTTER, self._height))
            if not math.isnan(value):
                middle = left, top + self._height + _BAR // 2
                write(draw, middle, f"{value:.2f} from reference", color, self._letters, _SPARK)

    def _draw_bar(self, draw: ImageDraw.ImageDraw, text: str, color: str, corner: tuple[int, int]) -> None:
        left, top = corner
        draw.rectangle((left, top, left + self._width - 1, top + _BAR - 1), fill=color)
        write(draw, (left + 2, top + _BAR // 2), text, "white", self._letters, self._width - 4)


def _verdict(frame: Frame, row: int, class_names: Sequence[str]) -> tuple[str, str]:
    """The name of a sample's class, and the colour that says whether it is right."""
    index = int(frame.classes[row])
    name = "" if index < 0 else class_names[index] if index < len(class_names) else str(index)
    return name, VERDICT[{1: True, 0: False}.get(int(frame.right[row]))]


def _draw_spark(
    draw: ImageDraw.ImageDraw, values: Tensor, color: str, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    """A line of values in [0, 1] over the run, with a gap where there is none."""
    left, top = corner
    draw.line((left, top + size[1] - 1, left + size[0] - 1, top + size[1] - 1), fill="#c8c8c8")
    step = (size[0] - 4) / max(1, len(values) - 1)
    points = [(left + 1 + i * step, top + (1 - value) * (size[1] - 4) + 1) for i, value in enumerate(values.tolist())]
    for (x0, y0), (x1, y1) in pairwise(points):
        if not math.isnan(y0 + y1):
            draw.line((x0, y0, x1, y1), fill=color, width=2)
    x, y = points[-1]
    if not math.isnan(y):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
