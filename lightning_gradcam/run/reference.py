"""The reference run: what another run saw last of the same samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_gradcam.metrics.drift import agreement
from lightning_gradcam.picture.filmstrip import Frame, frame_maps
from lightning_gradcam.record.record import Record


@dataclass(frozen=True)
class ReferenceRun:
    """What another run saw last.

    Attributes:
        name: What that run is called, as a part of a key.
        maps: Signed maps ``(n, *grid)`` by the prefix of our layer's keys.
        target_classes: ``(n,)``, the class that each map is of, -1 where that is not told.
        classes: See :class:`~lightning_gradcam.picture.filmstrip.Frame`, of all samples.
        right: As above.
    """

    name: str
    maps: dict[str, Tensor]
    target_classes: Tensor
    classes: Tensor
    right: Tensor
    _frames: dict[str, Frame] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, record: Record, prefixes: Sequence[str]) -> ReferenceRun:
        """Read a record for our layers with these prefixes, or for our only layer its only one.

        Raises:
            ValueError: If it has not all of these layers.
        """
        layers = list(record.maps) if len(record.maps) == len(prefixes) == 1 else list(prefixes)
        if not set(layers) <= record.maps.keys():
            raise ValueError(
                f"the reference run {record.name} has the layers {', '.join(record.maps)}, and this run has "
                f"{', '.join(prefixes)}; give both the same `target_layer`"
            )
        return cls(
            re.sub(r"[^\w.-]", "_", record.name, flags=re.ASCII),
            {prefix: torch.from_numpy(record.maps[name][-1]) for prefix, name in zip(prefixes, layers, strict=True)},
            *(torch.from_numpy(record.samples[field][-1].astype(int)) for field in ("asked", "predicted", "right")),
        )

    def check_rows(self, rows: int) -> None:
        """Refuse a run with another number of maps of a layer; raise a ``ValueError``."""
        if len(self.classes) != rows:
            raise ValueError(
                f"the reference run {self.name} has {len(self.classes)} maps of a layer, this run has {rows}; give "
                "both a `target` with as many scores a sample"
            )

    def difference(self, prefix: str, maps: Tensor, target_classes: Tensor | None) -> Tensor:
        """One less the agreement with maps ``(n, *grid)`` of a layer, ``(n,)``; NaN where they are of another class."""
        difference = 1 - agreement(maps, self.maps[prefix])
        if target_classes is None:
            return difference
        other_question = (target_classes != self.target_classes) & (self.target_classes >= 0)
        return torch.where(other_question, torch.nan, difference)

    def frame(self, prefix: str, rows: list[int]) -> Frame:
        """Its maps of a layer in these rows as a column of the filmstrip, always the same object."""
        if prefix not in self._frames:
            maps = frame_maps(self.maps[prefix][rows])
            unknown = torch.full((len(maps),), torch.nan)
            self._frames[prefix] = Frame(-1, maps, self.classes[rows], self.right[rows], unknown)
        return self._frames[prefix]
