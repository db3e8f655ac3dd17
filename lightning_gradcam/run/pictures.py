"""What is drawn of a look: pure functions of what was seen, the history and the display, without a Trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from lightning_gradcam.attribution.guided import guide
from lightning_gradcam.attribution.spatial import along_cells
from lightning_gradcam.picture.clip import SAMPLES, clip
from lightning_gradcam.picture.draw import notes
from lightning_gradcam.picture.encode import Picture
from lightning_gradcam.picture.filmstrip import ROWS, Filmstrip
from lightning_gradcam.picture.grid import Caption, captions, grid, tiles
from lightning_gradcam.picture.view import strongest_pixels
from lightning_gradcam.run.history import History, Measurement, Moment
from lightning_gradcam.run.observer import Seen
from lightning_gradcam.run.probe import Probe


@dataclass(frozen=True)
class Look:
    """One look, measured: plain data on the CPU, of which all is made that goes out.

    Attributes:
        probe: What all looks share.
        seen: What was seen.
        measured: What that says.
        moment: When in the run it was; ``None`` outside it, where the history does not hold it.
        when: The same in words.
    """

    probe: Probe
    seen: Seen
    measured: Measurement
    moment: Moment | None
    when: str

    def captions(self, maps: Tensor, drift: Tensor | None = None) -> list[Caption]:
        """What stands under each tile."""
        seen, names = self.seen, self.probe.class_names
        return captions(self.probe.rows, maps, seen.prediction, names, drift, seen.target_classes, seen.k, seen.words)

    def key(self, prefix: str) -> str:
        """The line at a picture's foot, behind its colour bar."""
        display, cells = self.probe.settings.display, tuple(self.seen.maps[prefix].shape[1:])
        scale = "the sample's maximum in the run" if display.scale == "run" else "each map's maximum"
        if display.counterfactual and display.scale == "sample":
            scale = "the larger side's maximum"
        return f"0 to {scale} · {self.probe.layers[prefix]} {cells} · {self.probe.settings.question}"

    @cached_property
    def in_pictures(self) -> Look:
        """The same of the samples that are drawn."""
        rows, measured = self.probe.pictured_rows, self.measured
        drift, from_reference = (
            {prefix: values[rows] for prefix, values in of_layers.items()}
            for of_layers in (measured.drift, measured.drift_from_reference)
        )
        measured = replace(measured, drift=drift, drift_from_reference=from_reference)
        return replace(self, probe=self.probe.in_pictures, seen=self.seen.part(rows), measured=measured)

    def peak(self, history: History, prefix: str) -> Tensor | None:
        """The largest value of the maps of each sample that is drawn so far; ``None`` before there is one."""
        peak = history.peak(prefix)
        return None if peak is None else peak[self.probe.pictured_rows]

    def planes(self, history: History, prefix: str) -> Tensor | None:
        """The pixel ``(p, 3)`` of each volume that is drawn through which its planes go; ``None`` of other samples.

        The strongest cell of the reference, so that what moves is the map; of a sample without one that of its map.
        """
        maps, track = self.seen.maps[prefix], history.tracks.get(prefix)
        if self.probe.photos.ndim != 4 or self.probe.axes.time is not None:
            return None
        if track is not None and track.reference.shape == maps.shape:
            missing = along_cells(track.reference.flatten(1).isnan().any(1), maps)
            maps = torch.where(missing, maps, track.reference)
        return strongest_pixels(maps[self.probe.pictured_rows], tuple(self.probe.photos.shape[1:]))

    def grid(self, maps: Tensor, captions: list[Caption], foot: str, planes: Tensor | None, **options: Any) -> Image:
        """A grid, a row a sample where it has several maps."""
        look: dict[str, Any] = {"axes": self.probe.axes, "planes": planes}
        look |= {"columns": self.seen.k if self.seen.k > 1 else None, "tile": self.probe.settings.display.tile}
        return grid(self.probe.photos, maps, captions, self.probe.rows.regions, foot, **look, **options)


def layer_pictures(
    look: Look, history: History, filmstrips: dict[str, Filmstrip] | None = None
) -> Iterator[tuple[str, Picture]]:
    """The grid of each layer, of clips one that plays and, within a run, the filmstrip of it so far, by full key.

    Args:
        look: The look.
        history: The run so far.
        filmstrips: Those of earlier looks, by the prefix of a layer's keys, whose columns need not be drawn again.
    """
    filmstrips = {} if filmstrips is None else filmstrips
    few, display = look.in_pictures, look.probe.settings.display
    probe, axes = few.probe, few.probe.axes
    style: dict[str, Any] = {"scale": display.scale, "colormap": display.colormap, "font": display.font}
    for prefix, maps in few.seen.maps.items():
        under, key = few.captions(maps, few.measured.drift[prefix]), few.key(prefix)
        foot = f"{look.when} · {'against, for: ' * display.counterfactual}{key}"
        peak, both_sides = look.peak(history, prefix), display.counterfactual
        planes = look.planes(history, prefix)
        yield f"{prefix}/grid", few.grid(maps, under, foot, planes, peak=peak, counterfactual=both_sides, **style)
        if axes.time is not None:
            short = f"{look.when} · {probe.layers[prefix]}"  # the tiles are few and narrow
            yield f"{prefix}/clip", _clip(few, axes.time, maps, under, short, peak)
        yield f"{prefix}/positional_bias_map", _positional_picture(look, prefix)
        if look.moment is not None:
            track, reference = history.tracks[prefix], history.reference_run
            if prefix not in filmstrips:
                titles = [caption.sample[0] for caption in under[:ROWS]]
                regions = {name: region[:ROWS] for name, region in probe.rows.regions.items()}
                names = probe.class_names or ()
                filmstrips[prefix] = Filmstrip(probe.photos[:ROWS], titles, names, regions, key, axes=axes, **style)
            moved, rows = few.measured.drift_from_reference[prefix][:ROWS], look.probe.filmed_rows
            beside = None if reference is None else (reference.name, reference.frame(prefix, rows))
            planes = None if planes is None else planes[:ROWS]
            yield f"{prefix}/filmstrip", filmstrips[prefix].draw(track.frames, moved, track.peak[rows], beside, planes)


def _positional_picture(look: Look, prefix: str) -> Image:
    """How often each cell is among the strongest, over the mean photo: the same colour means the same share always."""
    probe, display, numbers = look.probe, look.probe.settings.display, look.measured.numbers
    places = look.measured.places[prefix].nan_to_num(0)[None]
    known = (numbers[f"{prefix}/positional_bias{end}"] for end in ("", "_chance"))
    largest, chance = ("–" if math.isnan(number) else f"{number:.2f}" for number in known)
    caption = Caption(("largest share of maps", largest), ("by chance", chance), None, notes(places)[0])
    return grid(
        probe.mean_photo,
        places,
        [caption],
        {},
        f"{look.when} · share, 0 to 1 · {probe.layers[prefix]}",
        peak=torch.ones(1),
        scale="run",
        tile=2 * display.tile,
        colormap=display.colormap,
        font=display.font,
        axes=probe.axes,
        planes=strongest_pixels(places, tuple(probe.photos.shape[1:])) if probe.photos.ndim == 4 else None,
    )


def _clip(look: Look, time: int, maps: Tensor, captions: list[Caption], foot: str, peak: Tensor | None) -> list[Image]:
    """The first samples of clips, as a picture that plays."""
    probe, display, few = look.probe, look.probe.settings.display, slice(SAMPLES)
    regions = {name: region[few] for name, region in probe.rows.regions.items()}
    return clip(
        probe.photos[few],
        maps[few],
        captions[few],
        regions,
        foot,
        time,
        peak=None if peak is None or display.scale == "sample" else peak[few],
        tile=round(0.7 * display.tile),
        colormap=display.colormap,
        font=display.font,
        counterfactual=display.counterfactual,
    )


def guided_pictures(look: Look, history: History, gradients: Tensor) -> Iterator[tuple[str, Picture]]:
    """The guided gradients ``(p, c, *spatial)``, and their product with each layer's maps, by full key."""
    few, settings, font = look.in_pictures, look.probe.settings, look.probe.settings.display.font
    main, first = next(iter(few.seen.maps.items()))
    # The gradients alone are there also where a map is empty.
    under = [replace(caption, note="") for caption in few.captions(first)]
    foot = f"{look.when} · Guided Backpropagation · {settings.target_name}"
    planes = look.planes(history, main)
    yield f"{settings.prefix}/guided_backprop", few.grid(first, under, foot, planes, font=font, gradients=gradients)
    for prefix, maps in few.seen.maps.items():
        foot = f"{look.when} · Guided Grad-CAM · {look.probe.layers[prefix]} · {settings.target_name}"
        under, product, planes = few.captions(maps), guide(maps, gradients), look.planes(history, prefix)
        yield f"{prefix}/guided_gradcam", few.grid(maps, under, foot, planes, font=font, gradients=product)


def sample_pictures(look: Look, history: History, prefix: str) -> tuple[list[Image], list[str]]:
    """The map of each sample that is drawn as a picture of its own, and its caption in one line."""
    few, display = look.in_pictures, look.probe.settings.display
    maps = few.seen.maps[prefix]
    under = few.captions(maps, few.measured.drift[prefix])
    style = display.tile, display.colormap, display.counterfactual
    return tiles(few.probe.photos, maps, under, *style, few.probe.axes, look.planes(history, prefix))
