"""A session: all that belongs to one call of the trainer, from the first look to the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_gradcam.attribution.choice import NoMapError
from lightning_gradcam.attribution.isolation import random_state, torch_defaults
from lightning_gradcam.attribution.stand_in import NoStandInError
from lightning_gradcam.attribution.targets import TopTarget, predicted
from lightning_gradcam.metrics.localization_numbers import localization_of_groups
from lightning_gradcam.run.checkpoint import empty_history, from_state, to_state
from lightning_gradcam.run.failures import MAX_FAILURES_IN_A_ROW, left_out, warn, warn_of_failure, warn_of_no_look
from lightning_gradcam.run.history import History, Measurement, Moment
from lightning_gradcam.run.observer import Observer, Seen, agree_across_processes, in_forward
from lightning_gradcam.run.outlets import Outlets, log_numbers, log_numbers_directly
from lightning_gradcam.run.pictures import Look, guided_pictures
from lightning_gradcam.run.probe import Probe
from lightning_gradcam.run.settings import Settings
from lightning_gradcam.run.sources import NoBatchYetError, awaits_batch_of, copy_of_batch
from lightning_gradcam.run.trainer import (
    LightningModule,
    Trainer,
    garbage_collection_cuda,
    is_oom_error,
    is_sharded,
    run_folder,
    stops_here,
)

_NO_FLOOR = (
    "leaves `drift_floor` out: images that are shifted by one pixel give the same maps, so the model does not react to "
    "such a shift, or `forward_fn` reads `inputs` and not the images"
)
Log = Callable[[Trainer, LightningModule, dict[str, float], int], None]


class Session:
    """One call of the trainer: what is seen, remembered and sent out, and what a failure does. Thrown away whole.

    Attributes:
        settings: What the user said.
        probe: What all observations share; ``None`` before the first look.
        history: The run so far.
        outlets: Where pictures and record go; ``None`` before the first picture, and on all processes but the first.
        restored: The state of the run that is resumed.
        folder: Where what belongs to the run is written; ``None`` before that is known.
        setup_verified: Whether a whole observation has succeeded: from then on a failure must not end the run.
        last_epoch: The last epoch whose validation was observed.
        last_step: The optimizer step of the last observation.
        first_batch: What Lightning handed over first, where that has to serve as the fixed batch.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.probe: Probe | None = None
        self.history: History = empty_history(settings)
        self.outlets: Outlets | None = None
        self.restored: dict[str, Any] = {}
        self.folder: Path | None = None
        self.setup_verified: bool = False
        self.last_epoch: int | None = None
        self.last_step: int | None = None
        self.first_batch: Any = None
        self._already_told: set[str] = set()
        self._has_waited = False  # for a first look that could not be taken before training
        self._observer: Observer | None = None
        self._resumed_record: dict[str, Any] | None = None
        self._failures = 0
        self._failures_in_a_row = 0
        self._guided_step: int | None = None  # the optimizer step of the last observation with guided pictures
        self._checked_step: int | None = None  # that of the observation whose maps were checked
        self._last: tuple[Look, int] | None = None  # the last one and its step, where more of it may be asked for

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"probe": None, "outlets": None, "_last": None, "_observer": None, "first_batch": None}

    def observe(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        step: int | None = None,
        moment: Moment | None = None,
        log: Log = log_numbers,
        may_wait: bool = False,
    ) -> None:
        """Look, measure, remember, draw and log.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            step: The step to log at; ``None``: everything but the logging is done, to verify the set-up.
            moment: When in the run this is; ``None``: outside it, so that the history stays as it is.
            log: How to log numbers.
            may_wait: Whether a first look that fails since the forward does is only warned of: some models can run once
                a validation has filled what they read.
        """
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            return
        started = perf_counter()
        if moment is not None:
            self.last_step = trainer.global_step
        with_gradients = _guided_due(self, trainer, moment)
        try:
            probe, seen = self._look(trainer, pl_module, with_gradients)
            measured = self._measure(probe, seen, moment)
        except Exception as error:
            failed = self._is_failure(trainer, error, may_wait)
            if failed is None:
                raise
            if failed and step is not None:
                log(trainer, pl_module, {f"{self.settings.prefix}/failures": float(self._failures)}, step)
            return
        look = Look(probe, seen, measured, moment, _when(trainer, step, moment))
        # On the first process only: what fails here must not keep the numbers from any logger or process.
        # A logger of the user's may draw random numbers, or set their states.
        with left_out(trainer, "the picture of the observation", self._is_fatal), torch_defaults(), random_state():
            if trainer.is_global_zero:
                self._send(trainer, look, step)
        self.setup_verified = True
        self._failures_in_a_row = 0
        if (self.settings.guided or self.settings.checks) and moment is not None and step is not None:
            self._last = look, step
            self._guided_step = trainer.global_step if with_gradients else self._guided_step
        if step is not None:
            seconds = {f"{self.settings.prefix}/seconds": perf_counter() - started}
            log(trainer, pl_module, measured.numbers | seconds, step)
        if self.outlets is not None:
            with random_state():
                self.outlets.deliver(trainer)
        if moment is not None and moment.complete and stops_here(trainer):
            self.check(trainer, pl_module, log)

    def observe_guided(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the guided pictures of a last observation that nobody knew to be the last, where they are missing."""
        if not self.settings.guided or self._last is None or self._guided_step == trainer.global_step:
            return
        look, step = self._last
        started = perf_counter()
        with left_out(trainer, "the guided picture", self.settings.on_error == "raise" or is_sharded(trainer)):
            observer = self._observer_of(trainer, pl_module)
            gradients = agree_across_processes(trainer, lambda: observer.guided_gradients(look.probe))
            if self.outlets is not None:
                with torch_defaults(), random_state():
                    self.outlets.send_pictures(trainer, guided_pictures(look, self.history, gradients), step)
            numbers = {f"{self.settings.prefix}/guided_seconds": perf_counter() - started}
            log_numbers_directly(trainer, pl_module, numbers, step)
            if self.outlets is not None:
                with random_state():
                    self.outlets.deliver(trainer)

    def check(self, trainer: Trainer, pl_module: LightningModule, log: Log = log_numbers_directly) -> None:
        """Check the maps of the last observation, where that is asked for and not done yet."""
        if not self.settings.checks or self._last is None or self._checked_step == trainer.global_step:
            return
        (look, step), self._checked_step = self._last, trainer.global_step
        started = perf_counter()
        with left_out(trainer, "the check of the maps", self.settings.on_error == "raise" or is_sharded(trainer)):
            observer = self._observer_of(trainer, pl_module)
            checks = agree_across_processes(trainer, lambda: observer.check(look.probe))
            for note in checks.notes:
                self._tell_once(note)
            with torch_defaults():
                numbers = checks.numbers(look.probe.rows.groups, look.probe.counted)
            if not checks.are_of(look.seen.maps):
                self._tell_once("checks the model as it is now, which is no longer that of the last look")
            elif self.outlets is not None:
                look.measured.numbers.update(numbers)
                self.outlets.record(trainer, look, again=True)
            seconds = {f"{self.settings.prefix}/checks_seconds": perf_counter() - started}
            log(trainer, pl_module, numbers | seconds, step)

    def finish(self, trainer: Trainer) -> None:
        """Hand out what belongs to the end of the run."""
        if self.outlets is not None:
            with torch_defaults(), random_state():
                self.outlets.finish(trainer, self.history)

    def keep_first_batch(self, trainer: Trainer, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Copy the batch that Lightning hands over, where it has to serve as the fixed batch."""
        missing = self.probe is None and self.first_batch is None and batch_idx == 0
        given_up = self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW
        if missing and not given_up and awaits_batch_of(trainer, self.settings.samples, dataloader_idx):
            self.first_batch = copy_of_batch(batch)

    def release(self) -> None:
        """Let go of the trainer and the module."""
        self._observer = None

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        if self.probe is None:
            return self.restored
        writer = self.outlets.writer if self.outlets else None
        record = writer.state() if writer else self._resumed_record
        return to_state(self.probe, self.history, self._failures, record)

    @property
    def _is_fatal(self) -> bool:
        """Whether a failure ends the run: before the set-up is verified, and where the user wants it."""
        return not self.setup_verified or self.settings.on_error == "raise"

    def _look(self, trainer: Trainer, pl_module: LightningModule, with_gradients: bool) -> tuple[Probe, Seen]:
        """What is seen: maps, those of shifted images for the noise floor, and guided gradients."""

        def look() -> Seen:
            observer = self._observer_of(trainer, pl_module)
            if self.probe is None:
                self.probe = self._prepare(observer)
            seen = observer.look(self.probe)
            self.probe = self.probe.with_first_look(seen.k, observer.layouts)
            gradients = None
            if with_gradients:
                with left_out(trainer, "the guided picture", self._is_fatal or is_sharded(trainer)):
                    gradients = observer.guided_gradients(self.probe)
            return replace(seen, gradients=gradients)

        seen = agree_across_processes(trainer, look)
        assert self.probe is not None
        return self.probe, seen

    def _observer_of(self, trainer: Trainer, pl_module: LightningModule) -> Observer:
        self._observer = self._observer or Observer(trainer, pl_module, self.settings)
        return self._observer

    def _prepare(self, observer: Observer) -> Probe:
        probe = observer.prepare(self.restored.get("reading"), self.first_batch)
        self.first_batch, resumed = None, from_state(self.restored, probe)
        self.history, self._failures, self._resumed_record = resumed.history, resumed.failures, resumed.record
        self.history.reference_run = probe.reference_run
        return probe

    def _measure(self, probe: Probe, seen: Seen, moment: Moment | None) -> Measurement:
        """Measure what was seen against the run so far and, within the run, remember it."""
        with torch_defaults():
            measured = self.history.measure(
                seen.maps,
                seen.shifted,
                seen.prediction,
                probe.regions,
                probe.rows.groups,
                seen.target_classes,
                probe.counted,
                probe.samples_of_rows,
            )
            floors = [f"{prefix}/drift_floor" in measured.numbers for prefix in seen.maps]
            if seen.shifted and not all(floors):
                self._tell_once(_NO_FLOOR)
            measured.numbers.update(_localization(self.settings, probe, seen))
            if moment is not None:
                prediction, classes = seen.prediction, seen.target_classes
                self.history.add(measured, seen.maps, prediction, moment, classes, probe.filmed_rows)
        return measured

    def _send(self, trainer: Trainer, look: Look, step: int | None) -> None:
        """Draw the pictures and hand all that is finished out; without ``step`` only draw."""
        if self.outlets is None:
            self.folder = self.folder or run_folder(trainer, self.settings.prefix)
            self.outlets = Outlets(trainer, look.probe, self.folder, self._resumed_record)
        self.outlets.send_look(trainer, look, step, self.history)

    def _tell_once(self, text: str) -> None:
        if text not in self._already_told:
            self._already_told.add(text)
            rank_zero_info(f"GradCAMCallback {text}.")

    def _is_failure(self, trainer: Trainer, error: Exception, may_wait: bool) -> bool | None:
        """Tell why there is nothing to be seen: now, which is a failure, or yet or ever; ``None``: it ends the run."""
        if isinstance(error, NoBatchYetError):
            self._has_waited = True
            self._tell_once(f"takes its first look with the first validation: {error}")
            return False
        # After some training it is too late to ask.
        never = not self.setup_verified and (self._has_waited or isinstance(error, (NoMapError, NoStandInError)))
        if is_sharded(trainer) or (never and self.settings.on_error == "raise"):
            return None
        if never:
            self._failures_in_a_row = MAX_FAILURES_IN_A_ROW
            self.setup_verified = True  # there will be no other
            warn_of_no_look(error)
            return False
        if may_wait and not self.setup_verified and in_forward(error):
            self._has_waited = True
            warn_of_no_look(error, yet=True)
            return False
        if self._is_fatal:
            return None
        self._on_failure(trainer, error)
        return True

    def _on_failure(self, trainer: Trainer, error: Exception) -> None:
        """Tell of an observation that failed; after three in a row there will be no more."""
        self._failures += 1
        self._failures_in_a_row += 1
        self._last = None
        warn_of_failure(trainer, "the observation", error)
        if is_oom_error(error):
            garbage_collection_cuda()
        if self._failures_in_a_row == MAX_FAILURES_IN_A_ROW and trainer.is_global_zero:
            warn(
                f"GradCAMCallback: {MAX_FAILURES_IN_A_ROW} observations in a row have failed; it is switched off for "
                'the rest of this run. `on_error="raise"` shows where they fail.'
            )


def _localization(settings: Settings, probe: Probe, seen: Seen) -> dict[str, float]:
    """How well the maps find the samples' objects, by full key; empty where that is not asked for."""
    if settings.localization is None:
        return {}
    if settings.localization.samples == "pictured":
        probe, seen = probe.in_pictures, seen.part(probe.pictured_rows)
    target = probe.question.target
    ranked = target is predicted or isinstance(target, TopTarget)
    return localization_of_groups(
        seen.maps,
        probe.rows.regions[settings.localization.region],
        probe.regions[settings.localization.region],
        probe.rows.labels,
        probe.rows.groups,
        seen.target_classes,
        seen.k if ranked else None,
        probe.with_label,
    )


def _guided_due(session: Session, trainer: Trainer, moment: Moment | None) -> bool:
    """Whether guided pictures are drawn now: the first time, every so many observations, and at the end."""
    if not session.settings.guided or trainer.state.fn != "fit":
        return False
    if moment is None:
        return not session.setup_verified
    return session.history.count % session.settings.guided == 0 or (moment.complete and stops_here(trainer))


def _when(trainer: Trainer, step: int | None, moment: Moment | None) -> str:
    """When an observation is made, as its pictures say it."""
    epoch = trainer.current_epoch if moment is None else moment.epoch
    return f"epoch {epoch} · step {step}" if trainer.global_step else "before training"
