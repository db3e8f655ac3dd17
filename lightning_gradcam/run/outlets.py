"""What is finished goes out: pictures, numbers, alerts, the record. A failure of one keeps nothing from the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_gradcam.attribution.names import sample_name
from lightning_gradcam.loggers.destinations import (
    SendPicture,
    base_names,
    comes_last,
    find_destinations,
    send_alert,
    takes_pages,
    takes_tables,
    write_axes,
    write_card,
    write_page,
    write_record,
    write_samples,
    write_table,
)
from lightning_gradcam.metrics.evidence import explain_empty_maps
from lightning_gradcam.metrics.positional import FEWEST_TO_TELL, number_of_samples, place_in_words, stands_out
from lightning_gradcam.picture.encode import Picture
from lightning_gradcam.picture.filmstrip import Filmstrip
from lightning_gradcam.picture.text import printable
from lightning_gradcam.record.compare import compare
from lightning_gradcam.record.page import page
from lightning_gradcam.record.record import Record
from lightning_gradcam.record.writer import Writer
from lightning_gradcam.run.failures import left_out, warn
from lightning_gradcam.run.history import History
from lightning_gradcam.run.pictures import Look, guided_pictures, layer_pictures, sample_pictures
from lightning_gradcam.run.probe import Probe
from lightning_gradcam.run.recording import open_record, write_look
from lightning_gradcam.run.settings import Settings
from lightning_gradcam.run.table import sample_table
from lightning_gradcam.run.trainer import LightningModule, Trainer, leaves_nothing, stops_here


class Outlets:
    """Where the pictures and the record of a run go: found at the first look, on the first process alone.

    Attributes:
        writer: Of the record; ``None`` where there is to be none.
        filmstrips: By the prefix of a layer's keys.
    """

    def __init__(self, trainer: Trainer, probe: Probe, folder: Path, resumed_record: dict[str, Any] | None) -> None:
        self.writer: Writer | None = None
        self.filmstrips: dict[str, Filmstrip] = {}
        self._destinations: list[SendPicture] = []
        self._already_logged: set[str] = set()
        self._late: list[Callable[[], object]] = []
        self._unshown: tuple[Look, int] | None = None  # the last look of the run and its step
        self._looks_on_page = 0
        if not leaves_nothing(trainer):
            self._destinations = find_destinations(trainer.loggers, folder)
            if probe.settings.record is not False and trainer.state.fn == "fit":
                self.writer = open_record(trainer, probe, folder, resumed_record)
                key = f"{probe.settings.prefix}/record"
                place = self.writer.folder, self.writer.id
                _to_each_logger(trainer, "the way to the record", write_record, key, *place)

    def send_look(self, trainer: Trainer, look: Look, step: int | None, history: History) -> None:
        """Draw all that a look has and hand it out; without ``step`` only draw."""
        self.record(trainer, look)
        if step is not None:
            self.write_axes(trainer, look, step)
        self.send_pictures(trainer, layer_pictures(look, history, self.filmstrips), step)
        if step is not None:
            self.explain(trainer, look)
            self.send_samples(trainer, look, history)
            self.show_run(trainer, look, step, history)
        if look.moment is not None and look.moment.epoch < 0:
            self.write_card(trainer, look, step or 0)
        if look.seen.gradients is not None:
            self.send_pictures(trainer, guided_pictures(look, history, look.seen.gradients), step)

    def record(self, trainer: Trainer, look: Look, again: bool = False) -> None:
        """Add a look within the run to the record, where there is one; with ``again`` in place of the last one."""
        if self.writer is not None and look.moment is not None:
            with left_out(trainer, "the record of the observation"):
                write_look(self.writer, look, look.moment.epoch, trainer.global_step, again)

    def send_pictures(self, trainer: Trainer, pictures: Iterable[tuple[str, Picture]], step: int | None) -> None:
        """Draw pictures and hand each to every logger that takes some; without ``step`` only draw.

        Some get them from :meth:`deliver`.
        """
        for key, picture in pictures:
            for send in self._destinations if step is not None else ():
                if comes_last(send):
                    self._late.append(partial(send, key, picture, step or 0))
                    continue
                with left_out(trainer, "a picture"):
                    send(key, picture, step or 0)

    def deliver(self, trainer: Trainer) -> None:
        """Hand out what is best handed out last."""
        late, self._late = self._late, []
        for send in late:
            with left_out(trainer, "a picture"):
                send()

    def write_axes(self, trainer: Trainer, look: Look, step: int, commit: bool = False) -> None:
        """Tell the loggers when the pictures that follow are of, or with ``commit`` those that were handed out."""
        epoch = trainer.current_epoch if look.moment is None else look.moment.epoch
        _to_each_logger(trainer, "a picture", write_axes, step, epoch, commit)

    def explain(self, trainer: Trainer, look: Look) -> None:
        """Say once why maps cannot be read, and at every alert which samples have moved."""
        measured, rows = look.measured, look.probe.rows
        for prefix, maps in look.seen.maps.items():
            for kind, text in explain_empty_maps(maps).items():
                if kind not in self._already_logged:
                    self._already_logged.add(kind)
                    rank_zero_info(f"GradCAMCallback: {text}")
            told = f"{prefix}/positional_bias"
            if look.moment is not None and look.moment.epoch >= 0 and told not in self._already_logged:
                text = _positional_bias_in_words(look, prefix)
                if text:
                    self._already_logged.add(told)
                    rank_zero_info(f"GradCAMCallback: {text}")
            if prefix in measured.alerts:
                names = printable(", ".join(sample_name(rows.ids[i]) for i in measured.alerts[prefix]))
                text = (
                    f"in epoch {trainer.current_epoch}, step {trainer.global_step}, the maps of "
                    f"`{look.probe.layers[prefix]}` moved: median drift {measured.numbers[f'{prefix}/drift']:.2f}, "
                    f"samples {names}"
                )
                warn(f"GradCAMCallback: {text}.")
                _to_each_logger(trainer, "an alert", send_alert, "Grad-CAM drift", text)

    def send_samples(self, trainer: Trainer, look: Look, history: History) -> None:
        """Hand single samples to the loggers that show them, where the display asks for it."""
        for prefix in look.seen.maps if look.probe.settings.display.per_sample else ():
            images = sample_pictures(look, history, prefix)
            _to_each_logger(trainer, "the samples' pictures", write_samples, f"{prefix}/samples", *images)

    def show_run(self, trainer: Trainer, look: Look, step: int, history: History) -> None:
        """Hand out the page of the run so far at every doubling of its looks, and at the last one the table as well."""
        if look.moment is None:
            return
        if look.moment.complete and stops_here(trainer):
            self._send_pages(trainer, look, step)
            self._send_tables(trainer, look, history)
            self._unshown = None
            return
        self._unshown = look, step
        if history.count > 1 and history.count & (history.count - 1) == 0:
            self._looks_on_page = history.count
            self._send_pages(trainer, look, step)

    def finish(self, trainer: Trainer, history: History) -> None:
        """Hand out page and table where nobody knew the last look to be the last."""
        if self._unshown is None:
            return
        (look, step), self._unshown = self._unshown, None
        if self._looks_on_page != history.count:
            self._send_pages(trainer, look, step)
        self._send_tables(trainer, look, history)
        self.write_axes(trainer, look, step, commit=True)

    def _send_pages(self, trainer: Trainer, look: Look, step: int) -> None:
        takers = [logger for logger in trainer.loggers if takes_pages(logger)]
        if self.writer is None or not takers or not look.probe.settings.display.page:
            return
        with left_out(trainer, "the page of the run"):
            record = Record.open(self.writer.folder)
            for prefix in look.seen.maps:
                # Of all samples, as the numbers beside it in the dashboard are.
                text = page(compare(record, samples="all", layer=prefix))
                _to_each_logger(trainer, "the page of the run", write_page, f"{prefix}/page", text, step)

    def _send_tables(self, trainer: Trainer, look: Look, history: History) -> None:
        if not any(takes_tables(logger) for logger in trainer.loggers):
            return
        for prefix in look.seen.maps:
            with left_out(trainer, "the table of the samples"):
                table = sample_table(look, history, prefix)
                _to_each_logger(trainer, "the table of the samples", write_table, f"{prefix}/table", table)

    def write_card(self, trainer: Trainer, look: Look, step: int) -> None:
        """Tell the dashboards what is looked at, in words."""
        probe = look.probe
        grids = {prefix: "x".join(map(str, maps.shape[1:])) for prefix, maps in look.seen.maps.items()}
        card = {
            "layer": ", ".join(f"{probe.layers[prefix]} ({grid})" for prefix, grid in grids.items()),
            "question": probe.settings.question,
            "read as": "; ".join(probe.notes) or "as `batch_fn` and `forward_fn` say",
            "samples": ", ".join(str(name) for name in probe.batch.ids),
            "regions": ", ".join(probe.regions) or "none",
            "identity": probe.fingerprint.identity[:16],
            "pixels": probe.fingerprint.pixels[:16],
        }
        if probe.in_pictures is not probe:
            card["pictured"] = ", ".join(str(name) for name in probe.in_pictures.batch.ids)
        _to_each_logger(trainer, "the card", write_card, f"{probe.settings.prefix}/probe", card, step)


def _positional_bias_in_words(look: Look, prefix: str) -> str:
    """Where maps lie whatever the picture, if they do more than chance would let them."""
    numbers, places, probe = look.measured.numbers, look.measured.places[prefix], look.probe
    share, chance = (numbers[f"{prefix}/positional_bias{end}"] for end in ("", "_chance"))
    if not stands_out(share, chance):
        return ""
    maps, samples = look.seen.maps[prefix], probe.samples_of_rows
    counted = range(len(maps)) if probe.counted is None else probe.counted
    number = number_of_samples(maps[list(counted)], [samples[i] for i in counted])
    if number < FEWEST_TO_TELL:
        return ""
    return (
        f"the maps of `{probe.layers[prefix]}` lie at one place: {round(share * number)} of {number} samples "
        f"({share:.2f}, by chance {chance:.2f}) have the cell {place_in_words(places)}, among their strongest tenth. "
        f"Objects that are always in the middle do this too; `{prefix}/positional_bias_map` shows where."
    )


def _to_each_logger(trainer: Trainer, what: str, write: Callable[..., None], *content: Any) -> None:
    for logger in trainer.loggers:
        with left_out(trainer, what):
            write(logger, *content)


def log_numbers(trainer: Trainer, pl_module: LightningModule, numbers: Mapping[str, float], step: int) -> None:
    """Log numbers as the module itself does, at Lightning's own step; those that are not finite are left out."""
    for key, value in numbers.items():
        if math.isfinite(value):  # past a `log` of the module's own, which may take other arguments
            LightningModule.log(pl_module, key, value, batch_size=1, sync_dist=True)


def log_numbers_directly(trainer: Trainer, pl_module: LightningModule, numbers: Mapping[str, float], step: int) -> None:
    """Log in the hooks around training, where ``pl_module.log`` would land in another epoch or is not allowed."""
    finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
    for logger in trainer.loggers:
        # At the end of a run Lightning itself would not ask the logger any more.
        with left_out(trainer, "the logging of the numbers"):
            logger.log_metrics(finite, step=step)


def serve_monitors(pl_module: LightningModule, monitored: Mapping[str, float]) -> None:
    """Log the last finite numbers for monitors alone: where a key is missing they would end the run.

    What an observation logs later in the same epoch takes their place. It is another hook that does so, since
    Lightning lets a hook log a key to the loggers always or never.
    """
    for key, value in monitored.items():
        LightningModule.log(pl_module, key, value, logger=False, batch_size=1, sync_dist=True)


def tell_of_thinned_pictures(trainer: Trainer, settings: Settings) -> None:
    """Say once that TensorBoard keeps ten pictures of a tag, where more are planned."""
    planned = 1 + (trainer.max_epochs or 0) // settings.every_n_epochs
    if planned > 10 and any("TensorBoardLogger" in base_names(logger) for logger in trainer.loggers):
        rank_zero_info(
            f"GradCAMCallback plans {planned} observations. TensorBoard shows ten pictures of a tag unless it is "
            f"started with `--samples_per_plugin images={planned}`; `{settings.prefix}/filmstrip` always holds the "
            "first and the last."
        )
