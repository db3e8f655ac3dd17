"""The grid: one tile a sample with its map, and what the model said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont
from torch import Tensor

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.names import NO_LABEL, sample_name
from lightning_gradcam.attribution.prediction import Prediction, Words
from lightning_gradcam.picture.draw import (
    GUTTER,
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
from lightning_gradcam.picture.panels import draw_regions, gradient_tiles, map_tiles, region_boxes
from lightning_gradcam.picture.text import load_font, printable, write
from lightning_gradcam.picture.view import PLAIN, Axes, wide_view

_COLUMNS = 6  # of images; all else takes twice the width
_JPEG_LIMIT = 65_000
_PAD = 4


@dataclass(frozen=True)
class Caption:
    """The strip under a tile: two lines, each with a left and a right part.

    Attributes:
        sample: The sample's id and label, and the probability of that label, or what else is true of it.
        prediction: The predicted class, or of several maps a sample the class asked for, or what a model that is no
            classifier says; the class's probability, and behind a Δ the drift.
        right: Whether that class is right; ``None`` where that is not known, or it is another class that was asked for.
        note: Why no map is drawn; empty where one is.
    """

    sample: tuple[str, str]
    prediction: tuple[str, str]
    right: bool | None
    note: str


def captions(
    batch: Batch,
    maps: Tensor,
    prediction: Prediction | None,
    class_names: Sequence[str] | None,
    drift: Tensor | None = None,
    target_classes: Tensor | None = None,
    k: int = 1,
    words: Words | None = None,
) -> list[Caption]:
    """Say for each row what it is, what the model predicts or was asked for, and whether its map can be drawn.

    Args:
        batch: The samples.
        maps: Their maps ``(n, *grid)``.
        prediction: What the model predicts, if it is a classifier.
        class_names: The name of each class; indices are shown where there are none.
        drift: ``(n,)``, how far each map has moved since the observation before; NaN where that is not known.
        target_classes: ``(n,)``, the class that each map is of, where the target tells.
        k: How many rows a sample has.
        words: What a model says that is no classifier.
    """

    def name(index: float) -> str:
        return class_names[int(index)] if class_names and index in range(len(class_names)) else f"{index:g}"

    result, why = [], notes(maps)
    for i, sample in enumerate(batch.ids or range(len(batch.images))):
        truths = None if batch.labels is None else _classes_of_label(batch.labels[i])
        label = "no label" if truths == [] else "+".join(name(truth) for truth in truths or ())
        title, truths = f"{sample_name(sample)} {label}".strip(), truths or []
        probability = said = confidence = ""
        right = None
        if prediction is not None:
            row, chosen = prediction.probabilities[i], int(prediction.classes[i])
            known = len(truths) == 1 and truths[0] in range(len(row))
            probability = f"{row[int(truths[0])]:.2f}" if known else ""
            right = None if prediction.right is None or prediction.right[i] < 0 else bool(prediction.right[i])
            if k > 1 and target_classes is not None:
                target = int(target_classes[i])
                right = True if target in truths else right if target == chosen else None
                chosen = target
            said = ("x " if right is False else "") + f"{'pred' if k == 1 else 'for'} {name(chosen)}"
            confidence = f"{row[chosen]:.2f}" if chosen in range(len(row)) else ""
        elif words is not None:
            about = "" if target_classes is None or target_classes[i] < 0 else f"{name(int(target_classes[i]))} "
            probability, said = words.truth[i], f"{about}{words.said[i]}"
        if k > 1 and (target_classes is None or prediction is None):
            said, confidence, right = f"score {i % k + 1}", "", None
        if drift is not None and not drift[i].isnan():
            confidence = f"{confidence} Δ{drift[i]:.2f}".strip()
        result.append(Caption((title, probability), (said, confidence), right, why[i]))
    return result


def _classes_of_label(label: Tensor) -> list[float] | None:
    """The classes that a label names, or its value; empty where it is none, ``None`` where it is several values."""
    if label.numel() == 1:
        return [] if label.isnan() or label == NO_LABEL else [float(label)]
    parts = label[label > 0].float()
    if (parts > 1).any() or ((parts != 1).any() and abs(float(parts.sum()) - 1) > 0.1):
        return None
    return [int(index) for index in (label > 0.5).nonzero()[:, 0]]


def grid(
    photos: Tensor,
    maps: Tensor,
    captions: Sequence[Caption],
    regions: Mapping[str, Tensor],
    key: str,
    *,
    columns: int | None = None,
    peak: Tensor | None = None,
    scale: str = "sample",
    tile: int = 160,
    colormap: str = "turbo",
    font: str | Path | None = None,
    counterfactual: bool = False,
    gradients: Tensor | None = None,
    axes: Axes = PLAIN,
    planes: Tensor | None = None,
) -> Image.Image:
    """Draw every sample's map over its photo, or its gradient, with a caption under each.

    Args:
        photos: Grey, ``(n, *spatial)`` in [0, 1].
        maps: Signed maps ``(n, *grid)``.
        captions: One a sample.
        regions: As in :class:`~lightning_gradcam.attribution.batch.Batch`; drawn as outlines, white within black.
        key: The line at the foot: what was asked of which layer.
        columns: How many tiles stand side by side; ``None``: up to six images, or three of all else.
        peak: ``(n,)``, the largest value of each sample's maps in the run; ``None``: this is the first observation.
        scale: ``"sample"``: each map by its own maximum, beside it a gauge of that against the peak; ``"run"``: each
            by the sample's peak.
        tile: Longer side of an image's tile in pixels.
        colormap: A key of :data:`~lightning_gradcam.picture.overlay.COLORMAPS`.
        font: A TrueType file; ``None`` for the package's own.
        counterfactual: See :func:`~lightning_gradcam.picture.overlay.overlay`.
        gradients: ``(n, c, *spatial)``, drawn in place of the maps; ``None``: the maps.
        axes: What the axes of the photos are.
        planes: ``(n, 3)``, the pixel of each volume through which its planes go; ``None``: the middle.
    """
    n, most = len(photos), _COLUMNS if photos.ndim == 3 else _COLUMNS // 2
    view = wide_view(photos, tile, axes, planes)
    tile_height, tile_width = view.size
    cell_width = max(tile_width, tile // 2)  # the strip needs some width whatever the images' shape
    rows = -(-n // (columns or most))
    columns = columns or -(-n // rows)
    across, down = cell_width + GUTTER, tile_height + 2 * LINE + GUTTER
    if (pixels := max(rows * down, columns * across)) > _JPEG_LIMIT:
        raise ValueError(
            f"{n} maps make a picture of {pixels} pixels in {'height' if rows * down == pixels else 'width'}, and JPEG "
            f"ends at {_JPEG_LIMIT}; choose fewer `pictures` or scores a sample, or a smaller `Display(tile=...)`"
        )
    canvas = Image.new("RGB", (columns * across + GUTTER, rows * down + GUTTER + LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    letters = load_font(font, TEXT)

    boxes = region_boxes(view, regions)
    own = strongest(maps)
    peak = own if peak is None else torch.maximum(peak, own)
    shares = (own / peak).nan_to_num(0)
    by = peak if scale == "run" else None
    if gradients is None:
        pictures = map_tiles(view, photos, maps, colormap, by, counterfactual)
    else:
        pictures = gradient_tiles(view, photos, gradients)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GUTTER + i % columns * across, GUTTER + i // columns * down
        corner = left + (cell_width - tile_width) // 2, top
        canvas.paste(picture, corner)
        draw_regions(draw, boxes, i, corner)
        if caption.note:
            draw_note(draw, letters, caption.note, corner, (tile_width, tile_height))
        elif scale == "sample" and gradients is None:
            draw_gauge(draw, float(shares[i]), corner, (tile_width, tile_height))
        _draw_strip(draw, letters, caption, (left, top + tile_height), cell_width)
    draw_foot(canvas, draw, letters, key, None if gradients is not None else colormap, counterfactual)
    return canvas


def tiles(
    photos: Tensor,
    maps: Tensor,
    captions: Sequence[Caption],
    tile: int,
    colormap: str,
    counterfactual: bool = False,
    axes: Axes = PLAIN,
    planes: Tensor | None = None,
) -> tuple[list[Image.Image], list[str]]:
    """Each sample's map over its photo as a picture of its own, and its caption in one line."""
    pictures = map_tiles(wide_view(photos, tile, axes, planes), photos, maps, colormap, None, counterfactual)
    lines = [" · ".join(filter(None, map(" ".join, (caption.sample, caption.prediction)))) for caption in captions]
    return pictures, [printable(line)[:200] for line in lines]


def _draw_strip(
    draw: ImageDraw.ImageDraw, letters: FreeTypeFont, caption: Caption, corner: tuple[int, int], width: int
) -> None:
    left, top = corner
    draw.rectangle((left, top, left + width - 1, top + 2 * LINE - 1), fill=VERDICT[caption.right])
    for line, (text, figure) in enumerate((caption.sample, caption.prediction)):
        middle = top + line * LINE + LINE // 2
        right = left + width - _PAD
        room = width - 3 * _PAD - write(draw, (right, middle), figure, "white", letters, width, "r")
        write(draw, (left + _PAD, middle), text, "white", letters, room)
