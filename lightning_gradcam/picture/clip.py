"""Clips that play: the frames of an animation, each a tile a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from lightning_gradcam.picture.draw import GUTTER, LINE, PAPER, TEXT, VERDICT, draw_foot, draw_note
from lightning_gradcam.picture.grid import Caption
from lightning_gradcam.picture.panels import draw_regions, map_tiles, region_boxes
from lightning_gradcam.picture.text import load_font, write
from lightning_gradcam.picture.view import View, frame_views

SAMPLES = 8  # in an animation: the first ones of the fixed batch
_COLUMNS = 4
_FRAMES = 16
_BAR = 14  # under a tile, the sample's name
_SMALL = 11


def clip(
    photos: Tensor,
    maps: Tensor,
    captions: Sequence[Caption],
    regions: Mapping[str, Tensor],
    key: str,
    time: int,
    *,
    peak: Tensor | None = None,
    tile: int = 112,
    colormap: str = "turbo",
    font: str | Path | None = None,
    counterfactual: bool = False,
) -> list[Image.Image]:
    """Draw the maps of clips over their frames, up to 16 of them evenly spaced; maps are linear in time.

    Args:
        photos: Grey, ``(n, *spatial)`` in [0, 1], one of the axes time.
        maps: Signed maps ``(n, *grid)``.
        captions: One a sample.
        regions: As in :class:`~lightning_gradcam.attribution.batch.Batch`, outlined where a frame cuts them.
        key: The line at the foot.
        time: Which spatial axis is time.
        peak: ``(n,)``, by what each map is drawn; ``None``: by its own maximum over all frames.
        tile: Longer side of a tile in pixels.
        colormap: A key of :data:`~lightning_gradcam.picture.overlay.COLORMAPS`.
        font: A TrueType file; ``None`` for the package's own.
        counterfactual: See :func:`~lightning_gradcam.picture.overlay.overlay`.
    """
    letters, foot = load_font(font, _SMALL), load_font(font, TEXT)

    def frame(view: View) -> Image.Image:
        height, width = view.size
        columns, cell = min(len(photos), _COLUMNS), max(width, tile // 2)
        across, down = cell + GUTTER, height + _BAR + GUTTER
        rows = -(-len(photos) // columns)
        canvas = Image.new("RGB", (GUTTER + columns * across, GUTTER + rows * down + LINE), PAPER)
        draw, boxes = ImageDraw.Draw(canvas), region_boxes(view, regions)
        for i, picture in enumerate(map_tiles(view, photos, maps, colormap, peak, counterfactual)):
            left, top, caption = GUTTER + i % columns * across, GUTTER + i // columns * down, captions[i]
            canvas.paste(picture, (left, top))
            draw_regions(draw, boxes, i, (left, top))
            if caption.note:
                draw_note(draw, letters, caption.note, (left, top), (width, height))
            bar = top + height
            draw.rectangle((left, bar, left + cell - 1, bar + _BAR - 1), fill=VERDICT[caption.right])
            write(draw, (left + 2, bar + _BAR // 2), caption.sample[0], "white", letters, cell - 4)
        draw_foot(canvas, draw, foot, key, colormap, counterfactual)
        return canvas

    return [frame(view) for view in frame_views(photos, tile, time, _FRAMES)]
