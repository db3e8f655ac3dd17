"""The page: one HTML file that shows runs side by side, with nothing beside it and no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lightning_gradcam.attribution.names import NO_LABEL, sample_name
from lightning_gradcam.attribution.regions import cut_region, outline_boxes
from lightning_gradcam.attribution.spatial import Size, along_cells, at_most, averaged
from lightning_gradcam.metrics.positional import how_often
from lightning_gradcam.picture.colormaps import AGAINST, COLORMAPS
from lightning_gradcam.picture.encode import jpeg
from lightning_gradcam.record.comparison import Comparison, Run
from lightning_gradcam.record.curves import bands_in_words, curves, finite_or_none
from lightning_gradcam.record.files import write_whole
from lightning_gradcam.record.record import Record

_HERE = Path(__file__).parent
_MOMENTS = 100  # more of them are thinned out evenly
_CELLS = {1: 64, 2: 16, 3: 8}  # longer side of the maps in a page, by the number of their axes
_PHOTO = 256  # longer side of the photos in a page, in pixels
_NOTEBOOK = 900  # the width of a notebook's cell in pixels, or about so
_CURVE = (60, 160)  # height and width of a signal's curve


def write_page(comparison: Comparison, path: str | Path) -> Path:
    """Write a page for one run or several; whole or not at all.

    It opens from disk, shows at most 100 moments, evenly spaced with the first and the last, and maps of at most 16
    cells a side, to which larger ones are averaged down; of volumes and clips at most 8, a slice or frame at a time,
    and of signals 64. Its security policy allows no network.

    Args:
        comparison: The runs.
        path: An HTML file; one that is there is replaced.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(path)
    write_whole(path, page(comparison).encode())
    return path


def page(comparison: Comparison) -> str:
    """The page as text, see :func:`write_page`."""
    names = ("page.html", "page.js", "charts.js", "places.js", "controls.js")
    template, *scripts = ((_HERE / name).read_text(encoding="utf-8") for name in names)
    script = "\n".join(scripts)
    style = template.partition("<style>")[2].partition("</style>")[0]
    policy = f"default-src 'none'; img-src data:; style-src {_csp_hash(style)}; script-src {_csp_hash(script)}"
    # No `<` is left in the data, so nothing in it can close its element or open another.
    data = json.dumps(_page_data(comparison), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    for place, text in (("@POLICY@", policy), ("@SCRIPT@", script), ("@DATA@", data)):
        before, _, after = template.partition(place)
        template = before + text + after
    return template


def frame(comparison: Comparison) -> str:
    """The page as a frame within another, as high as it needs at the width of a notebook, or as the window allows."""
    sides, size = len(comparison.sides), _proportions(comparison.runs[0].record)
    card = 160 * sides
    cards_a_row = max(1, _NOTEBOOK // card)
    charts = 1 + len(comparison.runs[0].record.regions)
    rows = -(-len(comparison.runs[0].record.pictured) // cards_a_row)
    height = 260 + 150 * -(-charts // 2) + rows * (110 + round(_NOTEBOOK / cards_a_row / sides * size[0] / size[1]))
    height += 80 + max(round(155 * size[0] / size[1]), 80)  # where maps lie
    style = f"width: 100%; height: min({height}px, 80vh); border: 0"
    return f'<iframe title="Grad-CAM" style="{style}" srcdoc="{html.escape(page(comparison))}"></iframe>'


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _page_data(comparison: Comparison) -> dict[str, Any]:
    first = comparison.runs[0].record
    at = np.linspace(0, len(comparison.moments) - 1, min(_MOMENTS, len(comparison.moments))).round().astype(int)
    notes = list(comparison.notes)
    if len(at) < len(comparison.moments):
        notes.append(f"This page shows {len(at)} of {len(comparison.moments)} moments.")
    classes = first.about["class_names"] or []
    labels = first.about["labels"]
    ids, pictured = first.about["ids"], first.pictured.tolist()
    labels = [""] * len(ids) if labels is None else [_label_in_words(label, classes) for label in labels]
    groups = first.about.get("groups") or [""] * len(ids)
    number = _slice_count(comparison.runs)
    if len(pictured) < len(ids):
        notes.append(f"Pictures are of {len(pictured)} of {len(ids)} samples.")
    samples = [
        {
            "title": f"{sample_name(ids[i])} {labels[i]}".strip(),
            "label": labels[i],
            "group": str(groups[i]),
            "used": bool(comparison.used[i]),
            "photo": _photo(photo, first, number),
        }
        for i, photo in zip(pictured, first.photos, strict=True)
    ]
    places = iter(range(len(comparison.runs)))
    return {
        "by": comparison.by,
        "moments": comparison.moments[at].tolist(),
        "size": _proportions(first),
        "slices": _slice_names(first, number),
        "samples": samples,
        "classes": classes,
        "colors": COLORMAPS,
        "against": AGAINST,
        "notes": notes,
        "sides": [{"name": side.name, "runs": [next(places) for _ in side.runs]} for side in comparison.sides],
        "curves": curves(comparison, at),
        "bands": bands_in_words(comparison),
        "runs": [_run(run, at, pictured, number) for run in comparison.runs],
    }


def _label_in_words(label: Any, names: Sequence[str]) -> str:
    """A label in words: a class or a value, or of a row of 1 and others the classes that have 1."""
    if isinstance(label, list):
        found = label if len(label) == 1 else [index for index, value in enumerate(label) if value == 1]
        return "+".join(_label_in_words(one, names) for one in found) or "no label"
    if label in (None, NO_LABEL):
        return "no label"
    if label in range(len(names)):
        return str(names[int(label)])
    return str(int(label)) if float(label).is_integer() else f"{label:g}"


# Volumes and clips are shown a slice at a time: across the first axis, or across time.


def _grid(run: Run) -> Size:
    """The cells of a run's maps in the page, along the axes of the images."""
    grid, most = run.maps.shape[2:], _CELLS[run.maps.ndim - 2]
    return tuple(min(side, most) for side in grid) if len(grid) == 3 else at_most(grid, most)


def _across(record: Record) -> int:
    """The axis of volumes and clips that slices lie across."""
    return record.about["time"] or 0


def _slice_count(runs: Sequence[Run]) -> int:
    """How many slices the page has; 1 of images and signals.

    That is one for each cell across the slices of the finest maps. Where these are few, such as two over 16 frames,
    each cell has an odd number of slices, so that its middle is among them.
    """
    if len(runs[0].record.size) < 3:
        return 1
    cells = max(_grid(run)[_across(run.record)] for run in runs)
    most = min(_CELLS[3], runs[0].record.size[_across(runs[0].record)])
    return max(cells * odd for odd in (1, 3, 5, 7) if odd == 1 or cells * odd <= most)


def _slices(record: Record, number: int) -> list[int]:
    """The place in the images of so many slices, each in the middle of its part."""
    side = record.size[_across(record)]
    return [(2 * part + 1) * side // (2 * number) for part in range(number)]


def _slice_names(record: Record, number: int) -> list[str]:
    if len(record.size) < 3:
        return [""]
    places = _slices(record, number)
    return [f"Slice [{place}, :, :]" if record.about["time"] is None else f"Frame {place}" for place in places]


def _plane(record: Record) -> Size:
    """The height and width in pixels of what the page shows of an image: of signals 1 and their length."""
    size = record.size
    if len(size) == 3:
        return tuple(side for axis, side in enumerate(size) if axis != _across(record))
    return size if len(size) == 2 else (1, *size)


def _proportions(record: Record) -> Sequence[float]:
    """The height and width that pictures are in proportion to."""
    spacing = record.about["spacing"]
    if len(record.size) == 3 and spacing is not None:
        across = _across(record)
        sides = [side * unit for side, unit in zip(record.size, spacing, strict=True)]
        return sides[:across] + sides[across + 1 :]
    return _CURVE if len(record.size) == 1 else _plane(record)


def _photo(photo: np.ndarray, record: Record, number: int) -> str:
    """A photo as an address: of volumes and clips the slices one above the other, of signals their curve."""
    if photo.ndim == 1:
        picture = _curve(photo)
    elif photo.ndim == 3:
        across = _across(record)
        side, kept = record.size[across], photo.shape[across]
        slices = np.moveaxis(photo, across, 0)[[place * kept // side for place in _slices(record, number)]]
        picture = Image.fromarray(slices.reshape(-1, slices.shape[2]))
    else:
        picture = Image.fromarray(photo)
        picture.thumbnail((_PHOTO, _PHOTO))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(picture)).decode()


def _curve(signal: np.ndarray) -> Image.Image:
    """A signal ``(length,)``, uint8, as a dark line on white paper."""
    finer = 4  # Pillow's lines have hard edges
    height, width = (finer * side for side in _CURVE)
    picture = Image.new("L", (width, height), 255)
    x = (np.arange(len(signal)) + 0.5) * width / len(signal)
    y = (0.95 - 0.9 * signal / 255) * height
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    ImageDraw.Draw(picture).line([(0, points[0][1]), *points, (width, points[-1][1])], fill=34, width=6)
    return picture.reduce(finer)


def _outlines(region: np.ndarray, record: Record, number: int) -> np.ndarray:
    """Boxes ``(n, m, 4)`` around a region in :func:`_plane`; of volumes and clips ``(n, m, 4 number)``, one a slice."""
    size = record.size
    if len(size) == 3:
        across, plane, n = _across(record), _plane(record), len(region)
        slices = [cut_region(region, size, across, np.full(n, place)) for place in _slices(record, number)]
        return np.concatenate([outline_boxes(one, plane) for one in slices], -1)
    boxes = outline_boxes(region, size)
    if len(size) == 2:
        return boxes
    start, end = np.moveaxis(boxes, -1, 0)
    return np.stack([start, np.zeros_like(start), end, np.ones_like(end)], -1)


@np.errstate(all="ignore")  # a map that is not finite is said to be so
def _run(run: Run, at: np.ndarray, pictured: Sequence[int], number: int) -> dict[str, Any]:
    shown = at[:, None], np.array(pictured)
    record, grid, maps = run.record, _grid(run), run.maps[shown]
    moments, n = maps.shape[:2]
    maps = averaged(maps.reshape(moments * n, *maps.shape[2:]), grid).reshape(moments, n, *grid)
    if len(grid) == 3:
        maps = np.moveaxis(maps, 2 + _across(record), 2)
    unit = np.abs(maps).max(tuple(range(2, maps.ndim))) / 127  # NaN or infinite where the map is
    readable = np.isfinite(unit) & (unit > 0)
    cells = np.zeros(maps.shape, np.int8)
    cells[readable] = (maps[readable] / along_cells(unit[readable], maps[readable])).round()
    samples = run.samples[shown]
    return {
        "name": run.name,
        "size": _plane(record),
        "regions": [
            [[round(edge, 1) for edge in box] for box in boxes.tolist()]
            for value in (region[pictured] for region in record.regions.values())
            for boxes in np.moveaxis(_outlines(value, record, number), 1, 0)
        ],
        "grid": [1, *grid] if len(grid) == 1 else list(maps.shape[2:]),
        "signed": bool(record.about.get("signed")),
        "maps": base64.b64encode(cells.tobytes()).decode(),
        "unit": [finite_or_none(row) for row in unit.tolist()],
        "asked": [[None if one < 0 else one for one in row] for row in samples["asked"].tolist()],
        "predicted": [[None if one < 0 else one for one in row] for row in samples["predicted"].tolist()],
        "confidence": [finite_or_none(row) for row in samples["confidence"].tolist()],
        "right": samples["right"].tolist(),
        "drift": [finite_or_none(row) for row in run.drift[shown].tolist()],
        "agreement": [finite_or_none(row) for row in run.agreement[shown].tolist()],
        "places": _places(run, at),
    }


def _places(run: Run, at: np.ndarray) -> dict[str, Any]:
    """How often each cell is among the strongest of all samples' maps at these moments, a byte a cell, and at most.

    What chance gives is as the run has logged it, where it has logged the same share: not where samples do not count.
    """
    found = [how_often(run.maps[t]) for t in at]
    cells = averaged(np.nan_to_num(np.stack(found)), _grid(run))
    if cells.ndim == 4:
        cells = np.moveaxis(cells, 1 + _across(run.record), 1)
    logged = [run.record.numbers[run.at[t]] for t in at]
    key = f"{run.layer}/positional_bias"
    shares = [float(one.max()) for one in found]
    chances = [
        numbers.get(f"{key}_chance", np.nan) if abs(numbers.get(key, np.nan) - share) < 1e-3 else np.nan
        for numbers, share in zip(logged, shares, strict=True)
    ]
    return {
        "cells": base64.b64encode((255 * cells).round().astype(np.uint8).tobytes()).decode(),
        "share": finite_or_none(shares),
        "chance": finite_or_none(chances),
    }
