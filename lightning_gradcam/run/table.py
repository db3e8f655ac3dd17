"""A look as a table: a line a map, with its picture, what it is of, and its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_gradcam.attribution.names import sample_name
from lightning_gradcam.metrics.numbers import describe
from lightning_gradcam.picture.text import printable
from lightning_gradcam.run.history import History
from lightning_gradcam.run.pictures import Look, sample_pictures


def sample_table(look: Look, history: History, prefix: str) -> dict[str, list[Any]]:
    """The maps of a layer as the columns of a table, by their name.

    A line is a sample or, where a sample has several maps, one of these; ``map of`` then tells of which class.

    Returns:
        Pictures, texts, numbers and bools, and ``None`` where there is no value. A column without any is left out.
    """
    pictures, look = sample_pictures(look, history, prefix)[0], look.in_pictures
    maps, seen, rows = look.seen.maps[prefix], look.seen, look.probe.rows
    prediction, words, names = seen.prediction, seen.words, look.probe.class_names
    samples = [sample_name(one) for one in rows.ids or range(len(maps))]
    # In the words of the captions, which name sample and label together.
    titles = [caption.sample[0].removeprefix(name) for caption, name in zip(look.captions(maps), samples, strict=True)]
    columns: dict[str, list[Any]] = {
        "picture": pictures,
        "sample": _texts(samples),
        "label": [None if label == "no label" else label for label in _texts(titles)],
        "group": _texts(rows.groups),
    }
    if seen.k > 1 and seen.target_classes is not None:
        columns["map of"] = _classes(seen.target_classes, names)
    if prediction is not None:
        columns["prediction"] = _classes(prediction.classes, names)
        columns["confidence"] = _numbers(prediction.probabilities.gather(1, prediction.classes[:, None])[:, 0])
        if prediction.right is not None:
            columns["right"] = [None if verdict < 0 else bool(verdict) for verdict in prediction.right.tolist()]
    elif words is not None:
        columns["prediction"] = _texts(words.said)
    values = {
        "score": seen.scores,
        "drift": look.measured.drift[prefix],
        "drift_from_reference": look.measured.drift_from_reference[prefix],
        **describe(maps, history.additive, look.probe.regions),
    }
    columns |= {name: _numbers(value) for name, value in values.items() if name != "empty_fraction"}
    return {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}


def _texts(texts: Sequence[str]) -> list[str | None]:
    return [printable(text).strip()[:200] or None for text in texts]


def _numbers(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _classes(indices: Tensor, names: Sequence[str] | None) -> list[str | None]:
    """Each class by its name where it has one; ``None`` of those below 0, which are none."""
    known = range(len(names or ()))
    named = [str(names[index]) if names and index in known else str(index) for index in indices.tolist()]
    return [text if index >= 0 else None for text, index in zip(_texts(named), indices.tolist(), strict=True)]
