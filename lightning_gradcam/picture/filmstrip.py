"""The filmstrip: a row a sample, a column an observation, from the first of the run to the last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont
from torch import Tensor

from lightning_gradcam.picture.draw import (
    GUTTER,
    INK,
    LINE,
    PAPER,
    TEXT,
    VERDICT,
    boxes_on_tiles,
    draw_box,
    draw_foot,
    draw_gauge,
    draw_note,
    tile_size,
    why_unreadable,
)
from lightning_gradcam.picture.overlay import overlay, strongest
from lightning_gradcam.picture.text import fit, load_font

ROWS = 8  # samples in a filmstrip: the first ones of the fixed batch, so that the rows never change
COLUMNS = 8  # observations in a filmstrip
_GRID = 28  # longer side of the maps that a frame keeps
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
        maps: ``(r, h, w)``, at most 28 cells a side.
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
    """The maps ``(r, h, w)`` of the filmstrip's samples, averaged down to at most 28 cells a side."""
    maps = maps[:ROWS]
    factor = _GRID / max(maps.shape[1:])
    if factor >= 1:
        return maps.clone()  # a checkpoint would hold the whole of what a part is a view of
    h, w = (max(1, round(side * factor)) for side in maps.shape[1:])
    return F.adaptive_avg_pool2d(maps[:, None], (h, w))[:, 0]


def shown_frames(frames: Sequence[Frame]) -> list[int]:
    """Which frames to show: the first, the last, and others evenly spaced between, at most :data:`COLUMNS`."""
    return torch.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).round().int().unique().tolist()


def filmstrip(
    photos: Tensor,
    frames: Sequence[Frame],
    drift_from_reference: Tensor,
    titles: Sequence[str],
    class_names: Sequence[str],
    regions: Mapping[str, Tensor],
    peak: Tensor,
    key: str,
    reference_run: tuple[str, Frame] | None = None,
    *,
    scale: str = "sample",
    colormap: str = "turbo",
    font: str | Path | None = None,
) -> Image.Image:
    """Draw the run so far.

    Args:
        photos: Grey, ``(r, H, W)`` in [0, 1].
        frames: The observations that the run has kept.
        drift_from_reference: ``(r,)``, how far each sample has moved; of more than three the largest three are marked.
        titles: What each sample is called.
        class_names: The name of each class; indices are shown where there are none.
        regions: As in :class:`~lightning_gradcam.attribution.batch.Batch`, outlined on the photo at the left.
        peak: ``(r,)``, the largest value of each sample's maps in the run.
        key: The line at the foot.
        reference_run: What another run is called and saw last: the last column.
        scale: ``"sample"``: each map by its own maximum, with a gauge of that against the peak at the tile's edge;
            ``"run"``: each by the sample's peak.
        colormap: A key of :data:`~lightning_gradcam.picture.overlay.COLORMAPS`.
        font: A TrueType file; ``None`` for the package's own.

    Returns:
        A picture of at most 1,000 pixels in width, whatever the number of observations.
    """
    r = len(photos)
    rows_columns = tile_size(photos, _TILE, least=8)
    size = rows_columns[1], rows_columns[0]
    # The head of each column, its frame, and the scale of its maps, which in another run is another.
    shown: list[tuple[str, Frame, Tensor | None]] = []
    for frame in (frames[i] for i in shown_frames(frames)):
        shown.append(("start" if frame.epoch < 0 else f"epoch {frame.epoch}", frame, peak))
    if reference_run is not None:
        shown.append((*reference_run, None))
    across, down = max(size[0], _TILE // 2) + GUTTER, size[1] + _BAR + GUTTER
    spark = GUTTER + (1 + len(shown)) * across
    canvas = Image.new("RGB", (spark + _SPARK + GUTTER, LINE + r * down + LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    letters = load_font(font, _SMALL)

    for column, head in enumerate(["", *(head for head, *_ in shown), "drift, from 0 to 1"]):
        room = across - GUTTER if column <= len(shown) else _SPARK
        draw.text((GUTTER + column * across, LINE // 2), fit(head, letters, room), INK, letters, "lm")
    marked = drift_from_reference.nan_to_num(0).topk(_MARKED).indices.tolist() if r > _MARKED else []

    # The photo, then the columns: uint8 (1 + columns, r, height, width, 3).
    bare = torch.zeros(r, 1, 1)
    strips = [overlay(photos, bare, rows_columns, colormap)]
    strips += [
        overlay(photos, frame.maps, rows_columns, colormap, unit if scale == "run" else None)
        for _, frame, unit in shown
    ]
    boxes = boxes_on_tiles(regions, photos, rows_columns)
    drifts = torch.stack([frame.drift for frame in frames], 1)
    for row in range(r):
        top = LINE + row * down
        color = _MARK if row in marked else INK
        for column, strip in enumerate(strips):
            canvas.paste(Image.fromarray(strip[row].numpy()), (GUTTER + column * across, top))
        for box in boxes:
            draw_box(draw, box[row].tolist(), (GUTTER, top))
        _draw_bar(draw, letters, titles[row], color, (GUTTER, top + size[1]), across - GUTTER)
        for column, (_, frame, unit) in enumerate(shown, 1):
            corner = GUTTER + column * across, top
            note = why_unreadable(frame.maps[row])
            if note:
                draw_note(draw, letters, note, corner, size)
            elif scale == "sample" and unit is not None:
                draw_gauge(draw, float(strongest(frame.maps[row : row + 1]) / unit[row]), corner, size)
            name, verdict = _verdict(frame, row, class_names)
            _draw_bar(draw, letters, name, verdict, (corner[0], top + size[1]), across - GUTTER)
        _draw_spark(draw, drifts[row], color, (spark, top), (_SPARK - GUTTER, size[1]))
        if not drift_from_reference[row].isnan():
            text = f"{drift_from_reference[row]:.2f} from reference"
            draw.text((spark, top + size[1] + _BAR // 2), text, color, letters, "lm")
    draw_foot(canvas, draw, load_font(font, TEXT), key, colormap)
    return canvas


def _verdict(frame: Frame, row: int, class_names: Sequence[str]) -> tuple[str, str]:
    """The name of a sample's class, and the colour that says whether it is right."""
    index = int(frame.classes[row])
    name = "" if index < 0 else class_names[index] if index < len(class_names) else str(index)
    return name, VERDICT[{1: True, 0: False}.get(int(frame.right[row]))]


def _draw_bar(
    draw: ImageDraw.ImageDraw, letters: FreeTypeFont, text: str, color: str, corner: tuple[int, int], width: int
) -> None:
    left, top = corner
    draw.rectangle((left, top, left + width - 1, top + _BAR - 1), fill=color)
    draw.text((left + 2, top + _BAR // 2), fit(text, letters, width - 4), "white", letters, "lm")


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
