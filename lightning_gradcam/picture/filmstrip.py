"""The filmstrip: a row a sample, a column an observation, from the first of the run to the last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont
from torch import Tensor

from lightning_gradcam.history import COLUMNS, Frame
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
    note_on,
    tile_size,
)
from lightning_gradcam.picture.overlay import overlay, strongest
from lightning_gradcam.picture.text import fit, load_font

_TILE = 80
_BAR = 14  # under a tile, what the model said
_SMALL = 11
_SPARK = 130
_MARKED = 3
_MARK = "#b45309"  # the samples that moved most


def columns(frames: Sequence[Frame]) -> list[int]:
    """Which frames to show: the first, the last, and others evenly spaced between, at most :data:`COLUMNS`."""
    return torch.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).round().int().unique().tolist()


def filmstrip(
    photos: Tensor,
    frames: Sequence[Frame],
    moved: Tensor,
    titles: Sequence[str],
    class_names: Sequence[str],
    regions: Mapping[str, Tensor],
    peak: Tensor,
    key: str,
    beside: tuple[str, Frame] | None = None,
    *,
    scale: str = "sample",
    colormap: str = "turbo",
    font: str | Path | None = None,
) -> Image.Image:
    """Draw the run so far.

    Args:
        photos: Grey, ``(r, H, W)`` in [0, 1].
        frames: The observations that the run has kept.
        moved: ``(r,)``, how far each sample is from its reference; of more than three the largest three are marked.
        titles: What each sample is called.
        class_names: The name of each class; indices are shown where there are none.
        regions: As in :class:`~lightning_gradcam.batch.Batch`, outlined on the photo at the left.
        peak: ``(r,)``, the largest value of each sample's maps in the run.
        key: The line at the foot.
        beside: What another run saw last, and what it is called: the last column.
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
    shown = [frames[i] for i in columns(frames)]
    heads = ["start" if frame.epoch < 0 else f"epoch {frame.epoch}" for frame in shown]
    if beside is not None:
        heads.append(beside[0])
        shown.append(beside[1])
    across, down = max(size[0], _TILE // 2) + GUTTER, size[1] + _BAR + GUTTER
    spark = GUTTER + (1 + len(shown)) * across
    canvas = Image.new("RGB", (spark + _SPARK + GUTTER, LINE + r * down + LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    letters = load_font(font, _SMALL)

    for column, head in enumerate(["", *heads, "drift, from 0 to 1"]):
        room = across - GUTTER if column <= len(shown) else _SPARK
        draw.text((GUTTER + column * across, LINE // 2), fit(head, letters, room), INK, letters, "lm")
    marked = moved.nan_to_num(0).topk(_MARKED).indices.tolist() if r > _MARKED else []

    # The photo, then the columns: uint8 (1 + columns, r, height, width, 3).
    bare = torch.zeros(r, 1, 1)
    strips = [overlay(photos, bare, rows_columns, colormap)]
    own = [frame is not (beside or (None, None))[1] for frame in shown]  # another run's maps have another scale
    strips += [
        overlay(photos, frame.maps, rows_columns, colormap, peak if scale == "run" and ours else None)
        for frame, ours in zip(shown, own, strict=True)
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
        for column, (frame, ours) in enumerate(zip(shown, own, strict=True), 1):
            corner = GUTTER + column * across, top
            note = note_on(frame.maps[row])
            if note:
                draw_note(draw, letters, note, corner, size)
            elif scale == "sample" and ours:
                draw_gauge(draw, float(strongest(frame.maps[row : row + 1]) / peak[row]), corner, size)
            said = int(frame.classes[row])
            name = "" if said < 0 else class_names[said] if said < len(class_names) else str(said)
            verdict = VERDICT[{1: True, 0: False}.get(int(frame.right[row]))]
            _draw_bar(draw, letters, name, verdict, (corner[0], top + size[1]), across - GUTTER)
        _draw_spark(draw, drifts[row], color, (spark, top), (_SPARK - GUTTER, size[1]))
        if not moved[row].isnan():
            text = f"{moved[row]:.2f} from reference"
            draw.text((spark, top + size[1] + _BAR // 2), text, color, letters, "lm")
    draw_foot(canvas, draw, load_font(font, TEXT), key, colormap)
    return canvas


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
