"""The grid: one tile a sample with its map, and what the model said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont
from torch import Tensor

from lightning_gradcam.batch import Batch
from lightning_gradcam.picture.overlay import colors, overlay
from lightning_gradcam.picture.text import fit, load_font
from lightning_gradcam.targets import Prediction

_COLUMNS = 6
_GUTTER = 4
_TEXT = 13
_LINE = 17
_PAD = 4
_RIGHT, _WRONG, _UNKNOWN = "#1b5e9b", "#b3261e", "#4a4a4a"
_PAPER, _INK = "#ffffff", "#303030"


@dataclass(frozen=True)
class Caption:
    """The strip under a tile: two lines, each with a left and a right part.

    Attributes:
        sample: The sample's id and label, and the probability of that label.
        prediction: The predicted class and its probability.
        right: Whether the prediction is right; ``None`` where that is not known.
        note: Why no map is drawn; empty where one is.
    """

    sample: tuple[str, str]
    prediction: tuple[str, str]
    right: bool | None
    note: str


def captions(
    batch: Batch, maps: Tensor, prediction: Prediction | None, class_names: Sequence[str] | None
) -> list[Caption]:
    """Say for each sample what it is, what the model predicts, and whether its map can be drawn.

    Args:
        batch: The samples.
        maps: Their maps ``(n, h, w)``.
        prediction: What the model predicts, if it is a classifier.
        class_names: The name of each class; indices are shown where there are none.
    """

    def name(index: int) -> str:
        return class_names[index] if class_names and index < len(class_names) else str(index)

    result = []
    for i, sample in enumerate(batch.ids or range(len(batch.images))):
        truths = [] if batch.labels is None else _classes(batch.labels[i])
        title = " ".join([f"#{sample}", "+".join(name(truth) for truth in truths)])
        probability = said = confidence = ""
        right = None
        if prediction is not None:
            row, chosen = prediction.probabilities[i], int(prediction.classes[i])
            probability = f"{row[truths[0]]:.2f}" if len(truths) == 1 and truths[0] < len(row) else ""
            right = None if prediction.right is None else bool(prediction.right[i])
            said = ("x " if right is False else "") + f"pred {name(chosen)}"
            confidence = f"{row[chosen]:.2f}"
        result.append(Caption((title, probability), (said, confidence), right, _note(maps[i])))
    return result


def _classes(label: Tensor) -> list[int]:
    if label.numel() == 1:
        return [int(label)]
    return [int(index) for index in label.nonzero()[:, 0]]


def _note(signed: Tensor) -> str:
    if not signed.isfinite().all():
        return "map not finite"
    return "" if (signed > 0).any() else "map empty"


def grid(
    photos: Tensor,
    maps: Tensor,
    captions: Sequence[Caption],
    regions: Mapping[str, Tensor],
    key: str,
    *,
    tile: int = 160,
    colormap: str = "turbo",
    font: str | Path | None = None,
) -> Image.Image:
    """Draw every sample's map over its photo, in rows of up to six, with a caption under each.

    Args:
        photos: Grey, ``(n, H, W)`` in [0, 1].
        maps: Signed maps ``(n, h, w)``.
        captions: One a sample.
        regions: As in :class:`~lightning_gradcam.batch.Batch`; drawn as outlines, white within black.
        key: The line at the foot: what was asked of which layer.
        tile: Longer side of a tile in pixels.
        colormap: A key of :data:`~lightning_gradcam.picture.overlay.COLORMAPS`.
        font: A TrueType file; ``None`` for the package's own.
    """
    n, height, width = photos.shape
    scale = tile / max(height, width)
    tile_height, tile_width = max(1, round(height * scale)), max(1, round(width * scale))
    cell_width = max(tile_width, tile // 2)  # the strip needs some width whatever the images' shape
    rows = -(-n // _COLUMNS)
    columns = -(-n // rows)
    across, down = cell_width + _GUTTER, tile_height + 2 * _LINE + _GUTTER
    canvas = Image.new("RGB", (columns * across + _GUTTER, rows * down + _GUTTER + _LINE), _PAPER)
    draw = ImageDraw.Draw(canvas)
    letters = load_font(font, _TEXT)

    boxes = [
        outline_boxes(region) * torch.tensor([tile_width / width, tile_height / height] * 2)
        for region in regions.values()
    ]
    pictures = overlay(photos, maps, (tile_height, tile_width), colormap).numpy()
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = _GUTTER + i % columns * across, _GUTTER + i // columns * down
        corner = left + (cell_width - tile_width) // 2, top
        canvas.paste(Image.fromarray(picture), corner)
        for box in boxes:
            _draw_box(draw, box[i].tolist(), corner)
        if caption.note:
            middle = corner[0] + tile_width // 2, top + tile_height // 2
            text = fit(caption.note, letters, tile_width)
            draw.text(middle, text, "white", letters, "mm", stroke_width=2, stroke_fill="black")
        _draw_strip(draw, letters, caption, (left, top + tile_height), cell_width)
    _draw_foot(canvas, draw, letters, key, colormap)
    return canvas


def outline_boxes(region: Tensor) -> Tensor:
    """Boxes ``(n, 4)`` around a region given as boxes or as masks ``(n, H, W)``; all zero around an empty mask."""
    if region.ndim == 2:
        return region.float()
    boxes = torch.zeros(len(region), 4)
    for box, mask in zip(boxes, region > 0, strict=True):
        if mask.any():
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            box[:] = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


def _draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], corner: tuple[int, int]) -> None:
    x0, y0, x1, y1 = (round(value + offset) for value, offset in zip(box, corner * 2, strict=True))
    if x1 - x0 > 4 and y1 - y0 > 4:
        # Three pixels in all: dashboards show the picture at a third, where thinner lines lose whole sides.
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline="black")
        draw.rectangle((x0 + 1, y0 + 1, x1 - 2, y1 - 2), outline="white", width=2)


def _draw_strip(
    draw: ImageDraw.ImageDraw, letters: FreeTypeFont, caption: Caption, corner: tuple[int, int], width: int
) -> None:
    left, top = corner
    color = {True: _RIGHT, False: _WRONG, None: _UNKNOWN}[caption.right]
    draw.rectangle((left, top, left + width - 1, top + 2 * _LINE - 1), fill=color)
    for line, (text, figure) in enumerate((caption.sample, caption.prediction)):
        middle = top + line * _LINE + _LINE // 2
        right = left + width - _PAD
        draw.text((right, middle), figure, "white", letters, "rm")
        room = width - 3 * _PAD - letters.getlength(figure)
        draw.text((left + _PAD, middle), fit(text, letters, room), "white", letters, "lm")


def _draw_foot(canvas: Image.Image, draw: ImageDraw.ImageDraw, letters: FreeTypeFont, key: str, colormap: str) -> None:
    """A colour bar from no evidence to each map's maximum, and the key."""
    middle = canvas.height - _LINE // 2 - 1
    bar = (colors(torch.linspace(0, 1, 48), colormap) * 255).round().to(torch.uint8)
    canvas.paste(Image.fromarray(bar.expand(9, -1, -1).numpy()), (_GUTTER, middle - 4))
    text = fit(f"0 to each map's maximum · {key}", letters, canvas.width - 48 - 4 * _GUTTER)
    draw.text((_GUTTER + 48 + 2 * _GUTTER, middle), text, _INK, letters, "lm")
