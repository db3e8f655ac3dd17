"""The page: one HTML file that shows runs side by side, with nothing beside it and no network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lightning_gradcam.attribution.batch import sample_name
from lightning_gradcam.attribution.reading import NO_LABEL
from lightning_gradcam.attribution.regions import outline_boxes
from lightning_gradcam.picture.encode import jpeg
from lightning_gradcam.picture.overlay import AGAINST, COLORMAPS
from lightning_gradcam.record.compare import Comparison, Run
from lightning_gradcam.record.files import write_whole

_HERE = Path(__file__).parent
_MOMENTS = 100  # more of them are thinned out evenly
_CELLS = 16  # longer side of the maps in a page
_PHOTO = 256  # longer side of the photos in a page, in pixels


def write_page(comparison: Comparison, path: str | Path) -> Path:
    """Write a page for one run or several; whole or not at all.

    It opens from disk, shows at most 100 moments, evenly spaced with the first and the last, and maps of at most 16
    cells a side, to which larger ones are averaged down. Its security policy allows no network.

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
    template, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.html", "page.js"))
    style = template.partition("<style>")[2].partition("</style>")[0]
    policy = f"default-src 'none'; img-src data:; style-src {_csp_hash(style)}; script-src {_csp_hash(script)}"
    # No `<` is left in the data, so nothing in it can close its element or open another.
    data = json.dumps(_page_data(comparison), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    for place, text in (("@POLICY@", policy), ("@SCRIPT@", script), ("@DATA@", data)):
        before, _, after = template.partition(place)
        template = before + text + after
    return template


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
    labels = [""] * len(first.photos) if labels is None else [_label_in_words(label, classes) for label in labels]
    groups = first.about.get("groups") or [""] * len(first.photos)
    samples = [
        {
            "title": f"{sample_name(name)} {label}".strip(),
            "label": label,
            "group": str(group),
            "used": bool(used),
            "photo": _photo(photo),
        }
        for name, label, group, used, photo in zip(
            first.about["ids"], labels, groups, comparison.used, first.photos, strict=True
        )
    ]
    rows = comparison.table()
    return {
        "by": comparison.by,
        "moments": comparison.moments[at].tolist(),
        "size": first.photos.shape[1:],
        "samples": samples,
        "classes": classes,
        "colors": COLORMAPS,
        "against": AGAINST,
        "notes": notes,
        "runs": [_run(run, at, [rows[t] for t in at]) for run in comparison.runs],
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


def _photo(photo: np.ndarray) -> str:
    picture = Image.fromarray(photo)
    picture.thumbnail((_PHOTO, _PHOTO))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(picture)).decode()


def _run(run: Run, at: np.ndarray, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    chosen, size = torch.from_numpy(at), run.record.photos.shape[1:]
    maps = run.maps[chosen]
    h, w = maps.shape[2:]
    if max(h, w) > _CELLS:
        h, w = (max(1, round(side * _CELLS / max(h, w))) for side in (h, w))
        maps = F.adaptive_avg_pool2d(maps, (h, w))
    unit = maps.abs().amax((2, 3)) / 127  # NaN or infinite where the map is
    cells = (maps / unit[:, :, None, None]).nan_to_num(0, 0, 0).round().to(torch.int8)
    samples = run.samples[at]

    def over_samples(key: str) -> list[float | None]:
        return _finite_or_none([row[f"{run.name}/{key}"] for row in rows])

    return {
        "name": run.name,
        "size": size,
        "regions": [
            [[round(edge, 1) for edge in box] for box in outline_boxes(torch.from_numpy(value), size).tolist()]
            for value in run.record.regions.values()
        ],
        "grid": [h, w],
        "signed": bool(run.record.about.get("signed")),
        "maps": base64.b64encode(cells.numpy().tobytes()).decode(),
        "unit": [_finite_or_none(row) for row in unit.tolist()],
        "asked": [[None if one < 0 else one for one in row] for row in samples["asked"].tolist()],
        "predicted": [[None if one < 0 else one for one in row] for row in samples["predicted"].tolist()],
        "confidence": [_finite_or_none(row) for row in samples["confidence"].tolist()],
        "right": samples["right"].tolist(),
        "drift": [_finite_or_none(row) for row in run.drift[chosen].tolist()],
        "agreement": [_finite_or_none(row) for row in run.agreement[chosen].tolist()],
        "drift_median": over_samples("drift"),
        "mass": {key.removeprefix("mass_"): over_samples(key) for key in run.values if key.startswith("mass_")},
    }


def _finite_or_none(values: Sequence[float]) -> list[float | None]:
    """Four digits each, and ``None`` for what is no number."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
