"""What is drawn of a look: pure functions of what was seen, the history and the display, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from PIL.Image import Image
from torch import Tensor

from lightning_gradcam.attribution.guided import guide
from lightning_gradcam.picture.filmstrip import ROWS, Filmstrip
from lightning_gradcam.picture.grid import Caption, captions, grid, tiles
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

    def grid(self, maps: Tensor, captions: list[Caption], foot: str, **options: Any) -> Image:
        """A grid, a row a sample where it has several maps."""
        look = {"columns": self.seen.k if self.seen.k > 1 else None, "tile": self.probe.settings.display.tile}
        return grid(self.probe.photos, maps, captions, self.probe.rows.regions, foot, **look, **options)


def layer_pictures(
    look: Look, history: History, filmstrips: dict[str, Filmstrip] | None = None
) -> Iterator[tuple[str, Image]]:
    """The grid of each layer and, within a run, the filmstrip of it so far, by full key.

    Args:
        look: The look.
        history: The run so far.
        filmstrips: Those of earlier looks, by the prefix of a layer's keys, whose columns need not be drawn again.
    """
    filmstrips = {} if filmstrips is None else filmstrips
    probe, display = look.probe, look.probe.settings.display
    style: dict[str, Any] = {"scale": display.scale, "colormap": display.colormap, "font": display.font}
    for prefix, maps in look.seen.maps.items():
        under, key = look.captions(maps, look.measured.drift[prefix]), look.key(prefix)
        foot = f"{look.when} · {'against, for: ' * display.counterfactual}{key}"
        peak, both_sides = history.peak(prefix), display.counterfactual
        yield f"{prefix}/grid", look.grid(maps, under, foot, peak=peak, counterfactual=both_sides, **style)
        if look.moment is not None:
            track, reference = history.tracks[prefix], history.reference_run
            if prefix not in filmstrips:
                titles = [caption.sample[0] for caption in under[:ROWS]]
                regions = {name: region[:ROWS] for name, region in probe.rows.regions.items()}
                names = probe.class_names or ()
                filmstrips[prefix] = Filmstrip(probe.photos[:ROWS], titles, names, regions, key, **style)
            moved, peak = look.measured.drift_from_reference[prefix][:ROWS], track.peak[:ROWS]
            beside = None if reference is None else (reference.name, reference.frame(prefix))
            yield f"{prefix}/filmstrip", filmstrips[prefix].draw(track.frames, moved, peak, beside)


def guided_pictures(look: Look, gradients: Tensor) -> Iterator[tuple[str, Image]]:
    """The guided gradients ``(N, c, H, W)``, and their product with each layer's maps, by full key."""
    settings, font = look.probe.settings, look.probe.settings.display.font
    first = next(iter(look.seen.maps.values()))
    # The gradients alone are there also where a map is empty.
    under = [replace(caption, note="") for caption in look.captions(first)]
    foot = f"{look.when} · Guided Backpropagation · {settings.target_name}"
    yield f"{settings.prefix}/guided_backprop", look.grid(first, under, foot, font=font, gradients=gradients)
    for prefix, maps in look.seen.maps.items():
        foot = f"{look.when} · Guided Grad-CAM · {look.probe.layers[prefix]} · {settings.target_name}"
        under, product = look.captions(maps), guide(maps, gradients)
        yield f"{prefix}/guided_gradcam", look.grid(maps, under, foot, font=font, gradients=product)


def sample_pictures(look: Look, prefix: str) -> tuple[list[Image], list[str]]:
    """Each sample's map of a layer as a picture of its own, and its caption in one line."""
    maps, display = look.seen.maps[prefix], look.probe.settings.display
    under = look.captions(maps, look.measured.drift[prefix])
    return tiles(look.probe.photos, maps, under, display.tile, display.colormap, display.counterfactual)
