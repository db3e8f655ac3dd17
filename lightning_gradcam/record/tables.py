"""A comparison as text: what ``print`` shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradcam.attribution.names import sample_name
from lightning_gradcam.record.differences import differences_in_words

if TYPE_CHECKING:
    from lightning_gradcam.record.comparison import Comparison, Side

_MOST_NAMED = 8  # samples that a table names
_WIDTH = 120  # columns of a table of sides
_ROW = 8  # columns that a moment takes


def runs_in_words(comparison: Comparison) -> list[str]:
    """The lines of a comparison whose sides have one run each."""
    rows, names = comparison.table(), [side.name for side in comparison.sides]
    lines = [*_moments(comparison.by, rows, names), "", *_notes(comparison)]
    apart = differences_in_words(comparison.differences())
    return [*lines, "", "At the last moment, of the samples with a value in both:", *apart] if apart else lines


def sides_in_words(comparison: Comparison) -> list[str]:
    """The lines of a comparison where a side has several runs."""
    rows, names = comparison.side_table(), [side.name for side in comparison.sides]
    ends = ("/least", "/most")
    means = [{key: value for key, value in row.items() if not key.endswith(ends)} for row in rows]
    lines = ["Means over runs:", *_moments(comparison.by, means, names, _WIDTH), "", *_notes(comparison)]
    lines += ["", "Means over runs at the last moment, and their range:", *_ranges(comparison, rows[-1])]
    agree = [
        f"{f'within {one}' if one == other else f'between {one} and {other}'} {_format_number(value)}"
        for (one, other), value in comparison.agreements().items()
    ]
    if agree:
        lines += ["", f"Agreement of two runs at the last moment, the mean over all pairs: {', '.join(agree)}."]
    apart = differences_in_words(comparison.differences())
    return [*lines, "", "At the last moment, run by run:", *apart] if apart else lines


def _moments(by: str, rows: Sequence[Mapping[str, float]], names: Sequence[str], width: int | None = None) -> list[str]:
    """A line a moment, of numbers ``<name>/<number>``; one table below the other where one is wider than ``width``."""
    numbers = [key.rpartition("/")[2] for key in rows[0] if "/" in key]
    blocks: list[list[tuple[str, str, int]]] = [[]]
    for number in dict.fromkeys(["agreement", *numbers]):
        # A number's name stands over the first of its columns.
        named = [name for name in names if f"{name}/{number}" in rows[0]]
        heads = [number if place == 0 else "" for place in range(len(named))]
        wide = [max(len(head), len(_shorten_name(name)), 6) + 2 for head, name in zip(heads, named, strict=True)]
        columns = list(zip([number] * len(named), named, wide, strict=True))
        if width is not None and blocks[-1] and _ROW + sum(one[2] for one in blocks[-1] + columns) > width:
            blocks.append([])
        blocks[-1] += columns
    first, *others = (_block(by, rows, block) for block in blocks)
    return [*first, *(line for block in others for line in ("", *block))]


def _block(by: str, rows: Sequence[Mapping[str, float]], columns: Sequence[tuple[str, str, int]]) -> list[str]:
    def line(start: str, cells: Sequence[str]) -> str:
        return f"{start:{_ROW}}" + "".join(f"{cell:>{one[2]}}" for cell, one in zip(cells, columns, strict=True))

    heads = [one[0] if place == 0 or columns[place - 1][0] != one[0] else "" for place, one in enumerate(columns)]
    lines = [line("", heads), line(by, [_shorten_name(name) for _, name, _ in columns])]
    for row in rows:
        moment = row[by]
        start = f"{moment:.2f}" if by == "fraction" else "start" if moment < 0 else f"{moment:.0f}"
        lines.append(line(start, [_format_number(row[f"{name}/{number}"]) for number, name, _ in columns]))
    return lines


def _ranges(comparison: Comparison, row: Mapping[str, float]) -> list[str]:
    """A line a number: the mean over each side's runs, and from the least to the most of them."""
    sides = comparison.sides
    numbers = dict.fromkeys(key.split("/")[-2] for key in row if key.endswith("/least"))
    cells = [["", *(f"{_shorten_name(side.name)}, {_runs(len(side.runs))}" for side in sides)]]
    for number in numbers:
        cells.append([number, *(_range(row, side, number) for side in sides)])
    wide = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
    return ["".join(f"{cell:<{width}}" for cell, width in zip(line, wide, strict=True)).rstrip() for line in cells]


def _range(row: Mapping[str, float], side: Side, number: str) -> str:
    key = f"{side.name}/{number}"
    mean, least, most = (_format_number(row.get(f"{key}{end}", np.nan)) for end in ("", "/least", "/most"))
    return mean if mean == "-" or len(side.runs) == 1 else f"{mean} ({least} to {most})"


def _runs(number: int) -> str:
    return f"{number} run{'s' * (number > 1)}"


def _notes(comparison: Comparison) -> list[str]:
    differ = ", ".join(
        f"{sample_name(sample)} {least:.2f}" for sample, least in comparison.most_different()[:_MOST_NAMED]
    )
    return [*comparison.notes, *[f"The runs agree least at the last moment on {differ}."] * bool(differ)]


def _format_number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}" if abs(value) < 1000 else f"{value:.2g}"


def _shorten_name(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:4]}…{name[-9:]}"  # runs of one folder differ at their end
