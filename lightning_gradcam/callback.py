"""The callback: Lightning's hooks in the order in which they run."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from itertools import takewhile
from numbers import Integral
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

from lightning_gradcam._lightning import (
    Callback,
    LightningModule,
    Trainer,
    check_strategy,
    garbage_collection_cuda,
    is_oom_error,
    kinds,
    loaders,
    logged_step,
    muted,
    sharded,
)
from lightning_gradcam.batch import (
    Batch,
    Fingerprint,
    as_samples,
    called,
    check_name,
    default_batch,
    fixed_batch,
    shift,
)
from lightning_gradcam.compare import unlike
from lightning_gradcam.functional import Observation, default_forward, observe
from lightning_gradcam.guided import guide, guided_gradients
from lightning_gradcam.history import ROWS, Beside, Drift, History, Moment, Reading, by_group
from lightning_gradcam.isolation import usual_defaults
from lightning_gradcam.layers import check_layers, find_layer, locate
from lightning_gradcam.layout import Grid, Layout, as_layout
from lightning_gradcam.methods import ADDITIVE, METHODS, SIGNED, Method, as_method
from lightning_gradcam.metrics.evidence import complaint
from lightning_gradcam.metrics.localization import region_masks
from lightning_gradcam.metrics.protocols import localization_numbers
from lightning_gradcam.picture.display import Display, found_class_names, found_normalization, photos
from lightning_gradcam.picture.draw import outline_boxes
from lightning_gradcam.picture.filmstrip import filmstrip
from lightning_gradcam.picture.grid import Caption, captions, grid, tiles
from lightning_gradcam.picture.text import load_font, missing_letters, printable
from lightning_gradcam.record import Record, Writer, is_record, sample_rows
from lightning_gradcam.sinks import Sink, alert, find_sinks, leaves_nothing, run_folder, write_card, write_samples
from lightning_gradcam.targets import Target, TopTarget, as_target, predicted

_T = TypeVar("_T")
_Log = Callable[[Trainer, LightningModule, dict[str, float], int], None]
_GUIDED_EVERY = 10  # observations
_ENOUGH = 3  # failures in a row after which the callback is switched off
_LAYOUT = 1  # of the state in a checkpoint; raise it with every change of what `state_dict` gives


@dataclass(frozen=True)
class _Probe:
    """What every observation of a run has in common.

    Maps, numbers and pictures have a row for each score of each sample, see :class:`Observation`; so have ``rows``,
    ``regions`` and ``photos``.
    """

    batch: Batch
    rows: Batch
    fingerprint: Fingerprint
    layers: dict[str, str]  # the prefix of a layer's keys, and its name
    layouts: dict[str, Layout]  # by the name of a layer
    regions: dict[str, Tensor]  # masks (n, H, W)
    photos: Tensor
    class_names: Sequence[str] | None
    k: int | None = None  # how many scores the target gives a sample, once that is known

    def asking(self, k: int) -> _Probe:
        """The same with ``k`` rows a sample."""
        if self.k not in (None, k):
            raise ValueError(
                f"`target` gave {self.k} scores a sample before and {k} now; let it give as many each time"
            )
        if self.k == k:
            return self
        return replace(
            self,
            rows=self.batch.repeated(k),
            regions={name: region.repeat_interleave(k, 0) for name, region in self.regions.items()},
            photos=self.photos.repeat_interleave(k, 0),
            k=k,
        )

    def maps(self, observation: Observation) -> dict[str, Tensor]:
        """An observation's maps by the prefix of their keys."""
        return {prefix: observation.maps[name] for prefix, name in self.layers.items()}


class GradCAMCallback(Callback):
    """Show where a model looks while it trains: Grad-CAM of the same validation samples, epoch by epoch.

    At the end of every epoch that is due, after its validation, the callback runs the model on a fixed batch and
    logs a grid of heatmaps, a filmstrip and numbers. It looks once more before the first training step and always at
    the last state of a run. Training is left as it is: weights, buffers, optimizer and random states end
    bit-identical.

    The first look is taken in the sanity check or, without one, at the start of training. A mistake in the set-up is
    an error there. Later a failed observation is a warning, and the run goes on.

    Logged, behind the prefix and a slash (with several layers the prefix itself grows: ``gradcam_layer3/grid``):

    ========================= =========================================================================== ============
    key                       meaning, unit, range                                                        over samples
    ========================= =========================================================================== ============
    ``grid``                  a picture: every sample's map over its photo, with its prediction
    ``filmstrip``             a picture: the run so far, a row a sample, always with the first and the last
                              observation
    ``guided_backprop``       pictures, see ``guided``: which pixels speak for the score, by the guided gradient
    ``guided_gradcam``        pictures: that, times the map
    ``drift``                 how far maps moved since the observation before; 0 still, 1 moved wholly    median
    ``drift_from_reference``  the same from the reference, see :class:`Drift`                             median
    ``difference_from_<run>`` one less the agreement with the last maps of ``Drift(reference_run=...)``   median
    ``drift_floor``           the same under a shift of the images by one pixel: what means nothing       median
    ``drift_chance``          the same between different samples: what maps without relation show         median
    ``centroid_shift``        distance of the centres of mass to the reference, in grid diagonals; 0 to 1 median
    ``topk_iou``              overlap of the strongest fifth of the cells with the reference; 0 to 1      median
    ``concentration``         how few cells hold the evidence; 0 uniform, 1 one cell; for one grid only   median
    ``strength``              sum of the signed map: evidence for the target, in its own unit; only for   median
                              ``gradcam`` and ``hirescam``, whose sum has it
    ``empty_fraction``        share of samples whose map has no positive cell; 0 to 1                     mean
    ``mass_<region>``         share of a map's evidence inside a region; 0 to 1                           mean
    ``lift_<region>``         that, in shares of a uniform map; 1 is no preference                        mean
    ``prediction_flips``      share of samples whose prediction changed since the observation before      mean
    ``localization_error_…``  share of samples whose object the box of the map misses, see                mean
                              ``localization``: ``_top1``, and of the top ``k``, for
                              ``target="predicted"`` and :class:`TopTarget`, where the class must be
                              right too; else ``_known``; 0 to 1
    ``classification_error_`` beside these, ``top1`` and so on: share of samples whose label is not       mean
                              among the top classes; 0 to 1
    ``max_box_acc_v2``        share of samples whose object a box of the map finds, at the threshold      mean
                              that serves best; 0 to 1
    ``pxap``                  average precision of the maps' pixels against the region; 0 to 1
    ``seconds``               what the observation took on the calling thread
    ``guided_seconds``        what the guided pictures took, where they follow the last observation
    ``failures``              how many observations of the run have failed so far; logged when one does
    ========================= =========================================================================== ============

    Where the batch has groups, all keys over samples are logged for each group too: ``gradcam/drift/<group>``.
    Drift below ``drift_floor`` is noise, and drift near ``drift_chance`` is a gaze that has gone elsewhere. Samples
    with an empty map, or without a region, are left out of a key; with ``target="predicted"`` also those whose
    prediction changed, which ``prediction_flips`` counts.

    Pictures go to every ``TensorBoardLogger`` and ``WandbLogger`` of the trainer; where there is none, to JPEG files
    in ``<prefix>/`` in the run's folder. Numbers go through ``LightningModule.log`` to every logger and can be
    monitored: between observations, and where a number is not defined, monitors get the last one that was. Those from
    before training go to the loggers directly, at step 0.

    Args:
        target_layer: A dotted name from the LightningModule or from its inner model (``"layer4"``,
            ``"model.layer4[-1]"``), a module, or several of either, which are read in one pass. ``None``: the last
            layer on a grid that all paths from the image to the score cross; where a class token reads the patches,
            the norm through which it does so for the last time. The log names it. Maps may be ``(n, c, h, w)``,
            ``(n, h, w, c)`` or tokens ``(n, prefix + h * w, c)``.
        samples: How many samples, evenly spaced over the validation dataset; or which indices of it; or a dataset of
            your own, of which all are taken. Without validation the training dataset serves; of several validation
            loaders the first. An iterable dataset gives its first items.
        target: What to ask for: ``"label"``, the score of each sample's label; ``"predicted"``, of its predicted
            class; a class index; a function ``(output, batch) -> scores (n,)``, such as a
            :class:`SegmentationTarget` or a :class:`DetectionTarget`. Several class indices, a :class:`TopTarget` or a
            function that returns ``(n, k)`` give ``k`` maps a sample: a row of the grid, and as many samples to all
            numbers. They cost one forward and ``k`` backward passes.
        method: ``"gradcam"``, ``"cam"``, ``"hirescam"``, ``"gradcam++"``, ``"layercam"``, ``"xgradcam"``, or a
            function ``(activations (n, c, h, w), gradients (n, c, h, w)) -> map (n, h, w)``.
        every_n_epochs: Look at every so many epochs, at least 1.
        batch_fn: Turns a collated batch, after the transfer hooks, into a :class:`Batch`.
        forward_fn: ``(module, batch) -> output``; by default ``module(batch.images)``.
        grid: How the output of the named layers lies on the image, where that cannot be told from its shape: ``(h, w)``
            in cells, the tokens before them being a prefix; or a function ``output -> (n, c, h, w)``.
        drift: What drift is measured against, and when to warn of it.
        display: How pictures look.
        guided: Draw Guided Backpropagation and Guided Grad-CAM as well, for networks with ReLUs: at the first, every
            tenth and the last observation of ``fit``; a number takes the place of the ten. Each time costs a forward
            that keeps its graph and a backward pass down to the images, some three forwards in all, and the memory of
            training on as many samples.
        localization: The region that holds each sample's object: log how well the maps find it by the published
            protocols of weakly supervised localization, see :mod:`lightning_gradcam.metrics.protocols`. It needs
            scipy (``pip install "lightning-gradcam[localization]"``), and takes some 40 ms a sample of 224 pixels.
        record: Whether to keep maps and numbers on disk, for :class:`Record` and the command ``lightning-gradcam``:
            in ``<prefix>/`` in the run's folder, or in the folder that is named. About 5 KB an observation.
        prefix: What every key starts with.
        on_error: What to do when an observation fails once the set-up is proven: ``"warn"`` says so, counts it in
            ``failures``, goes on, and gives up after three in a row; ``"raise"`` ends the run. Where the model is
            sharded over processes a failed capture always does, since the others would wait for ever.

    Raises:
        ValueError: If an argument can never work; in ``setup`` or at the first look if it does not suit this model
            and these data. The message says what was got and what to do.
        TypeError: If an argument is of another type.
    """

    def __init__(
        self,
        target_layer: str | nn.Module | Sequence[str | nn.Module] | None = None,
        *,
        samples: int | Sequence[int] | Dataset = 16,
        target: Target | str | int | Sequence[int] = "label",
        method: str | Method = "gradcam",
        every_n_epochs: int = 1,
        batch_fn: Callable[[Any], Batch] = default_batch,
        forward_fn: Callable[[LightningModule, Batch], Any] = default_forward,
        grid: Grid | Layout | None = None,
        drift: Drift = Drift(),  # noqa: B008  # frozen
        display: Display = Display(),  # noqa: B008  # frozen
        guided: bool | int = False,
        localization: str | None = None,
        record: bool | str | Path = True,
        prefix: str = "gradcam",
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        if not isinstance(every_n_epochs, int) or isinstance(every_n_epochs, bool) or every_n_epochs < 1:
            raise ValueError(f"`every_n_epochs` must be a whole number of at least 1, got {every_n_epochs!r}")
        check_name("`prefix`", prefix)
        for name, function in (("batch_fn", batch_fn), ("forward_fn", forward_fn)):
            if not callable(function):
                raise TypeError(f"`{name}` must be a function, got {type(function).__name__}")
        if on_error not in ("warn", "raise"):
            raise ValueError(f'`on_error` must be "warn" or "raise", got {on_error!r}')
        if not isinstance(drift, Drift):
            raise TypeError(f"`drift` must be a `Drift`, got {type(drift).__name__}")
        if isinstance(drift.reference, int) and (drift.reference + 1) % every_n_epochs:
            nearest = max((drift.reference + 1) // every_n_epochs, 1) * every_n_epochs - 1
            raise ValueError(
                f"`Drift(reference={drift.reference})` names an epoch that `every_n_epochs={every_n_epochs}` leaves "
                f"out; one nearby is {nearest}"
            )
        if localization is not None and not isinstance(localization, str):
            raise TypeError(f"`localization` must be the name of a region, got {type(localization).__name__}")
        if not isinstance(guided, int) or guided < 0:
            raise ValueError(f"`guided` must be True, False or a number of observations, got {guided!r}")
        if not isinstance(record, (bool, str, Path)):
            raise TypeError(f"`record` must be True, False or a folder, got {type(record).__name__}")
        if not isinstance(display, Display):
            raise TypeError(f"`display` must be a `Display`, got {type(display).__name__}")
        compute = as_method(method)
        if display.counterfactual and compute in METHODS.values() and compute not in SIGNED:
            raise ValueError(
                f"`Display(counterfactual=True)` shows the negative side of maps, and `method` {method!r} has none; "
                f"take one of {sorted(name for name, one in METHODS.items() if one in SIGNED)}"
            )
        self.target_layer = check_layers(target_layer, grid)
        self.grid = None if grid is None else as_layout(grid)
        self.samples = as_samples(samples)
        self.target = as_target(target)
        self.method = compute
        self.every_n_epochs = every_n_epochs
        self.batch_fn = batch_fn
        self.forward_fn = forward_fn
        self.drift = drift
        self.display = display
        self.localization = localization
        self.guided = _GUIDED_EVERY if guided is True else int(guided)
        self.record = record
        self.prefix = prefix
        self.on_error = on_error
        self._target_name = f"target {_name(target)}"
        self._question = f"{self._target_name} · {_name(method)}"
        self._forget()

    def _forget(self) -> None:
        """Start as for a new run."""
        self._probe: _Probe | None = None
        self._sinks: list[Sink] | None = None
        self._writer: Writer | None = None
        self._continued: dict[str, str] | None = None  # the record of the run that is resumed
        self._history = self._empty_history()
        self._restored: dict[str, Any] = {}  # the state of the run that is resumed
        self._told: set[str] = set()  # what has been said once
        self._failures = 0  # observations that failed
        self._failures_in_a_row = 0
        self._at_once: int | None = None  # how many samples the memory has room for; None: all
        self._proven = False  # a whole observation has succeeded: from now on a failure must not end the run
        self._guided_step: int | None = None  # the optimizer step of the last observation with guided pictures
        self._last: tuple[_Probe, Observation, int, str] | None = None  # the last observation, for `guided`
        self._seen_epoch: int | None = None  # the last epoch whose validation was observed
        self._seen_step: int | None = None  # the optimizer step of the last observation
        self._fitted_by: int | None = None  # the trainer whose samples and folder these are

    def _empty_history(self) -> History:
        return History(self.prefix, self.drift, self.method in ADDITIVE)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_probe": None, "_sinks": None, "_writer": None, "_last": None}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(prefix=self.prefix)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_strategy(trainer)
        inherited = type(pl_module).forward.__qualname__ == "LightningModule.forward"  # of either distribution
        if self.forward_fn is default_forward and inherited:
            raise ValueError(
                f"{type(pl_module).__name__} defines no `forward`, so `GradCAMCallback` cannot run it; "
                "pass `forward_fn=lambda module, batch: module.model(batch.images)`"
            )
        if stage == "fit" or self._fitted_by != id(trainer):
            self._forget()
        if stage == "fit":
            self._fitted_by = id(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside ``fit``, prove the set-up before the loop, whose results a later error would lose."""
        if trainer.state.fn == "validate" and not self._proven:
            self._look(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._proven:
            self._look(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the model as it comes, untrained or pretrained; on resume only prove the set-up."""
        if any(is_lazy(parameter) for parameter in pl_module.parameters()):
            rank_zero_info("GradCAMCallback takes its first look later: the model has layers without a shape.")
            for layer in self.target_layer or ():
                find_layer(pl_module, layer)
            self._proven = True  # as far as can be
        elif trainer.global_step == 0 and trainer.current_epoch == 0:
            self._hint(trainer)
            self._look(trainer, pl_module, 0, _log_directly, Moment(-1, False))
        elif not self._proven:
            self._look(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Serve monitors that run at the end of an epoch without validation."""
        every = trainer.check_val_every_n_epoch
        if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
            self._serve_monitors(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Serve monitors that run after a validation."""
        if not trainer.sanity_checking:
            self._serve_monitors(pl_module)

    def _serve_monitors(self, pl_module: LightningModule) -> None:
        """Log the last finite numbers for monitors alone: where a key is missing they would end the run.

        What an observation logs later in the same epoch takes their place. It is another hook that does so, since
        Lightning lets a hook log a key to the loggers always or never.
        """
        for key, value in self._history.monitored.items():
            LightningModule.log(pl_module, key, value, logger=False, batch_size=1, sync_dist=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self._look(trainer, pl_module)
        elif trainer.state.fn == "validate":
            self._look(trainer, pl_module, logged_step(trainer), _log)
        elif self._due(trainer):
            self._seen_epoch = trainer.current_epoch
            moment = Moment(trainer.current_epoch, trainer.is_last_batch)
            self._look(trainer, pl_module, logged_step(trainer), _log, moment)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look where the epoch had no validation, and where the run ends with a state that was not seen."""
        missed = self._due(trainer) and self._seen_epoch != trainer.current_epoch
        unseen = self._seen_step != trainer.global_step
        if missed or (unseen and _stopping(trainer)):
            self._look_behind_an_epoch(trainer, pl_module, _log, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look where another callback ended the run after this one had its turn."""
        if self._seen_step != trainer.global_step:
            self._look_behind_an_epoch(trainer, pl_module, _log_directly, trainer.current_epoch - 1)
        elif self.guided and self._guided_step != trainer.global_step and self._last is not None:
            self._look_guided(trainer, pl_module, *self._last)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module, logged_step(trainer), _log)

    def state_dict(self) -> dict[str, Any]:
        if self._probe is None:
            return self._restored
        return {
            "layout": _LAYOUT,
            "fingerprint": asdict(self._probe.fingerprint),
            "layers": list(self._probe.layers.values()),
            "question": self._asked,
            "failures": self._failures,
            "history": self._history.state(),
            "record": self._writer.state() if self._writer else self._continued,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def _look_behind_an_epoch(self, trainer: Trainer, pl_module: LightningModule, log: _Log, epoch: int) -> None:
        step = max(0, logged_step(trainer) - 1)  # Lightning logs the epoch's metrics at the step of its last batch
        self._look(trainer, pl_module, step, log, Moment(epoch, True))

    def _due(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _look(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        step: int | None = None,
        log: _Log | None = None,
        moment: Moment | None = None,
    ) -> None:
        """Observe, measure, draw and log.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            step: The step to log at; ``None``: everything but the logging is done, to prove the set-up.
            log: How to log numbers.
            moment: When in the run this is; ``None``: outside it, so that the history stays as it is.
        """
        if self._failures_in_a_row >= _ENOUGH:
            return
        started = perf_counter()
        if moment is not None:
            self._seen_step = trainer.global_step
        try:
            guided = bool(self.guided) and self._guided_due(trainer, moment)
            probe, observation, shifted, gradients = self._observe(trainer, pl_module, guided)
            maps = probe.maps(observation)
            with usual_defaults():
                said, asked = observation.prediction, observation.classes
                reading = self._history.read(maps, shifted, said, probe.regions, probe.rows.groups, asked)
                if self.localization is not None:
                    reading.numbers.update(self._localization(probe, maps, asked, observation.k))
                if moment is not None:
                    self._history.add(reading, maps, said, moment, asked)
        except Exception as error:
            if not self._proven or self.on_error == "raise" or sharded(trainer):
                raise
            self._left_out(trainer, error)
            if log is not None and step is not None:
                log(trainer, pl_module, {f"{self.prefix}/failures": float(self._failures)}, step)
            return
        when = _when(trainer, step, moment)
        # On the first process only: what fails here must not keep the numbers from any logger or process.
        try:
            if trainer.is_global_zero:
                with usual_defaults():
                    self._show(probe, observation, reading, trainer, step, moment, when)
                    if gradients is not None:
                        self._show_guided(probe, observation, gradients, trainer, step, when)
        except Exception as error:
            if not self._proven or self.on_error == "raise":
                raise
            _warn(trainer, "the picture of the observation", error)
        self._proven = True
        self._failures_in_a_row = 0
        if self.guided and moment is not None and step is not None:
            self._last = probe, observation, step, when
            self._guided_step = trainer.global_step if guided else self._guided_step
        if log is not None and step is not None:
            seconds = {f"{self.prefix}/seconds": perf_counter() - started}
            log(trainer, pl_module, reading.numbers | seconds, step)

    def _localization(
        self, probe: _Probe, maps: Mapping[str, Tensor], asked: Tensor | None, k: int
    ) -> dict[str, float]:
        """The numbers of the published protocols, by full key."""
        masks, labels = probe.regions[str(self.localization)], probe.rows.labels
        boxes = outline_boxes(masks > 0.5)
        single = None if labels is None or labels.numel() > len(labels) else labels.flatten()
        ranked = self.target is predicted or isinstance(self.target, TopTarget)
        numbers = {}
        for behind, of in by_group(probe.rows.groups, len(masks)).items():
            theirs, question = (None if one is None else one[of] for one in (single, asked))
            for prefix, one in maps.items():
                found = localization_numbers(one[of], boxes[of], masks[of], theirs, question, k if ranked else None)
                numbers |= {f"{prefix}/{key}{behind}": value for key, value in found.items()}
        return numbers

    def _left_out(self, trainer: Trainer, error: Exception) -> None:
        """Tell of an observation that failed; after three in a row there will be no more."""
        self._failures += 1
        self._failures_in_a_row += 1
        self._last = None
        _warn(trainer, "the observation", error)
        if is_oom_error(error):
            garbage_collection_cuda()
        if self._failures_in_a_row == _ENOUGH and trainer.is_global_zero:
            _say(
                f"GradCAMCallback: {_ENOUGH} observations in a row have failed; it is switched off for the rest of "
                'this run. `on_error="raise"` shows where they fail.'
            )

    def _guided_due(self, trainer: Trainer, moment: Moment | None) -> bool:
        """Whether guided pictures are drawn now: the first time, every so many observations, and at the end."""
        if trainer.state.fn != "fit":
            return False
        if moment is None:
            return not self._proven
        return self._history.count % self.guided == 0 or (moment.complete and _stopping(trainer))

    def _look_guided(
        self, trainer: Trainer, pl_module: LightningModule, probe: _Probe, seen: Observation, step: int, when: str
    ) -> None:
        """Draw the guided pictures of a last observation that nobody knew to be the last."""
        started = perf_counter()
        try:
            batch = probe.batch.apply(lambda tensor: tensor.to(pl_module.device))
            gradients = self._agreed(trainer, lambda: self._gradients(trainer, pl_module, batch))
            if trainer.is_global_zero:
                with usual_defaults():
                    self._show_guided(probe, seen, gradients, trainer, step, when)
        except Exception as error:
            if self.on_error == "raise" or sharded(trainer):
                raise
            _warn(trainer, "the guided picture", error)
            return
        _log_directly(trainer, pl_module, {f"{self.prefix}/guided_seconds": perf_counter() - started}, step)

    def _observe(
        self, trainer: Trainer, pl_module: LightningModule, guided: bool
    ) -> tuple[_Probe, Observation, dict[str, Tensor], Tensor | None]:
        """What is seen: maps, those of shifted images for the noise floor, and guided gradients."""

        def see() -> tuple[Observation, dict[str, Tensor], Tensor | None]:
            probe = self._probe = self._probe or self._prepare(trainer, pl_module)
            batch = probe.batch.apply(lambda tensor: tensor.to(pl_module.device))
            observation = self._capture(trainer, pl_module, probe, batch)
            probe = self._probe = probe.asking(observation.k)
            self._check_beside(len(probe.rows.images))
            shifted = {}
            if self.drift.noise_floor:
                shifted = probe.maps(self._capture(trainer, pl_module, probe, shift(batch)))
            gradients = None
            if guided:
                try:
                    gradients = self._gradients(trainer, pl_module, batch)
                except Exception as error:
                    if not self._proven or self.on_error == "raise" or sharded(trainer):
                        raise
                    _warn(trainer, "the guided picture", error)
            return observation, shifted, gradients

        seen = self._agreed(trainer, see)
        assert self._probe is not None
        return self._probe, *seen

    def _agreed(self, trainer: Trainer, see: Callable[[], _T]) -> _T:
        """What the first process sees. Every process looks, and all agree before they exchange anything."""
        error = seen = None
        try:
            seen = see()
        except Exception as failure:  # raised again below, once the other processes know
            if sharded(trainer):
                raise  # the others wait within the forward, for as long as this process lives
            error = failure
        try:
            if not trainer.strategy.reduce_boolean_decision(seen is not None) or seen is None:
                raise error or _ElsewhereError("the capture failed on another process")
        finally:
            del error  # whose traceback holds this frame: in a circle they would keep all that the forward held
        return trainer.strategy.broadcast(seen)

    def _capture(self, trainer: Trainer, pl_module: LightningModule, probe: _Probe, batch: Batch) -> Observation:
        def look(at_once: int | None) -> Observation:
            return observe(pl_module, batch, probe.layouts, forward, self.target, self.method, at_once)

        forward = partial(self._forward, trainer, pl_module)
        return self._within_memory(trainer, len(batch.images), look)

    def _gradients(self, trainer: Trainer, pl_module: LightningModule, batch: Batch) -> Tensor:
        def look(at_once: int | None) -> Tensor:
            return guided_gradients(pl_module, batch, forward, self.target, at_once).flatten(0, -4)

        forward = partial(self._forward, trainer, pl_module)
        return self._within_memory(trainer, len(batch.images), look)

    def _within_memory(self, trainer: Trainer, samples: int, look: Callable[[int | None], _T]) -> _T:
        """Look; where memory runs short in smaller chunks, whose size is kept for the rest of the run."""
        while True:
            try:
                return look(self._at_once)
            except Exception as error:
                at_once = self._at_once or samples
                if not is_oom_error(error) or at_once == 1 or sharded(trainer):
                    raise
                self._at_once = at_once // 2
            garbage_collection_cuda()

    def _forward(self, trainer: Trainer, pl_module: LightningModule, batch: Batch) -> Any:
        with muted(pl_module), trainer.precision_plugin.forward_context():
            return self.forward_fn(pl_module, batch.apply(Tensor.clone))  # a model may change its input in place

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> _Probe:
        """Load the fixed batch and find the layers, the photos' scale, the class names and the loggers."""
        theirs = self._last_of_reference_run(trainer)
        candidates = loaders(trainer)
        loader = candidates[0] if candidates else None
        if len(candidates) > 1 and not isinstance(self.samples, Dataset):
            rank_zero_info(f"GradCAMCallback takes its samples from the first of {len(candidates)} data loaders.")
        batch, fingerprint = fixed_batch(trainer, pl_module, loader, self.samples, self.batch_fn)
        here = batch.apply(lambda tensor: tensor.to(pl_module.device))
        forward = partial(self._forward, trainer, pl_module)
        if self.localization is not None and self.localization not in batch.regions:
            raise ValueError(
                f"`localization` names the region {self.localization!r}, the batch has {sorted(batch.regions)}; return "
                "it from `batch_fn`"
            )
        layouts, reason = locate(pl_module, self.target_layer, self.grid, here, forward, self.target)
        names = list(layouts)
        if reason:
            rank_zero_info(
                f"GradCAMCallback looks at `{names[0]}`: {reason}. Give `target_layer` to look at another layer."
            )

        self._resume(fingerprint, names)
        prefixes = self._prefixes(names)
        if theirs is not None:
            self._history.beside = self._beside(theirs, list(prefixes), _samples_of(batch, fingerprint))

        display = self.display
        dataset = self.samples if isinstance(self.samples, Dataset) else getattr(loader, "dataset", None)
        class_names = display.class_names or found_class_names(dataset)
        missing = missing_letters(class_names or (), load_font(display.font, 13))
        if missing:
            rank_zero_warn(
                f"the font has no glyph for {missing!r} in the class names; give `Display(font=...)` one that has"
            )
        mean, std = display.mean, display.std
        if mean is None:
            mean, std = found_normalization(dataset, batch.images.shape[1])
        height, width = batch.images.shape[-2:]
        with usual_defaults():
            grey, note = photos(batch.images, mean, std)
            regions = {name: region_masks(region, (height, width)) for name, region in batch.regions.items()}
        if note:
            rank_zero_info(f"GradCAMCallback: {note}.")
        return _Probe(batch, batch, fingerprint, prefixes, layouts, regions, grey, class_names)

    def _last_of_reference_run(self, trainer: Trainer) -> Record | None:
        """What the reference run saw last; the first process reads it for all of them.

        Raises:
            FileNotFoundError: If there is no record.
            ValueError: If it cannot be read.
        """
        if self.drift.reference_run is None:
            return None
        record = error = None
        if trainer.is_global_zero:
            try:
                record = Record.open(self.drift.reference_run).last()
            except Exception as failure:  # the other processes wait for the broadcast
                error = failure
        record = trainer.strategy.broadcast(record)
        if record is None:
            raise error or _ElsewhereError("the first process could not read the reference run")
        return record

    def _beside(self, record: Record, prefixes: list[str], samples: dict[str, Any]) -> Beside:
        """The reference run beside this one.

        Raises:
            ValueError: If it is of other samples, or has no such layers.
        """
        differing = unlike(samples, record.about)
        if differing:
            raise ValueError(
                f"`Drift(reference_run={str(self.drift.reference_run)!r})` has not looked at the same samples: "
                f"{differing}, here and there"
            )
        theirs = record.about["settings"].get("question")
        if theirs != self._question:
            rank_zero_warn(f"GradCAMCallback asks for {self._question!r}, {record.name} asked for {theirs!r}.")
        return Beside.of(record, prefixes)

    def _check_beside(self, rows: int) -> None:
        beside = self._history.beside
        if beside is not None and len(beside.classes) != rows:
            raise ValueError(
                f"the reference run {beside.name} has {len(beside.classes)} maps of a layer, this run has {rows}; give "
                "both a `target` with as many scores a sample"
            )

    def _resume(self, fingerprint: Fingerprint, layers: list[str]) -> None:
        """Go on with the history of the run that is resumed, where its samples and layers are the same."""
        if not self._restored:
            return
        history, question = self._empty_history(), self._asked
        try:
            if self._restored["layout"] != _LAYOUT:
                raise ValueError("another layout")
            history.restore(self._restored["history"])
            before, failures = Fingerprint(**self._restored["fingerprint"]), int(self._restored["failures"])
        except (AttributeError, KeyError, TypeError, ValueError):
            rank_zero_warn(
                "GradCAMCallback cannot read its part of the resumed run's checkpoint, which another version of it "
                "wrote; drift starts anew."
            )
            return
        self._failures = failures
        if before.identity != fingerprint.identity:
            rank_zero_warn(
                "GradCAMCallback: the samples of the fixed batch are not those of the resumed run; drift starts anew."
            )
        elif self._restored["layers"] != layers:
            rank_zero_warn(
                f"GradCAMCallback looks at {layers}, the resumed run looked at {self._restored['layers']}; "
                "drift starts anew."
            )
        elif self._restored["question"] != question:
            rank_zero_warn(
                f"GradCAMCallback asks for {question!r}, the resumed run asked for {self._restored['question']!r}; "
                "drift starts anew."
            )
        else:
            self._history = history
            if before.pixels == fingerprint.pixels:
                self._continued = self._restored.get("record")
            else:
                rank_zero_warn("GradCAMCallback: the pixels of the fixed batch are not those of the resumed run.")

    @property
    def _asked(self) -> str:
        """What the numbers of a run depend on beside its samples and layers."""
        return f"{self._question} · reference {self.drift.reference}"

    def _prefixes(self, names: Sequence[str]) -> dict[str, str]:
        """The prefix of each layer's keys: the plain one for one layer, else with what tells the names apart."""
        if len(names) == 1:
            return {self.prefix: names[0]}
        parts = [name.split(".") for name in names]
        same = takewhile(lambda level: len(set(level)) == 1, zip(*(path[:-1] for path in parts), strict=False))
        common = len(list(same))
        # A key becomes a tag and a file name, and a `ModuleDict` takes any text as a name.
        told = [re.sub(r"[^\w.-]", "_", ".".join(path[common:]), flags=re.ASCII) for path in parts]
        told = [f"{own}_{i}" if told.count(own) > 1 else own for i, own in enumerate(told)]
        return {f"{self.prefix}_{own}": name for own, name in zip(told, names, strict=True)}

    def _show(
        self,
        probe: _Probe,
        observation: Observation,
        reading: Reading,
        trainer: Trainer,
        step: int | None,
        moment: Moment | None,
        when: str,
    ) -> None:
        """Draw the pictures of each layer and hand them to the loggers; without ``step`` only draw."""
        if self._sinks is None:
            folder = run_folder(trainer, self.prefix)
            self._sinks = find_sinks(trainer, folder)
            if self.record is not False and trainer.state.fn == "fit" and not leaves_nothing(trainer):
                self._writer = self._open_record(trainer, probe, folder)
        if self._writer and moment is not None:
            self._keep(self._writer, trainer, probe, observation, reading, moment)
        for prefix, maps in probe.maps(observation).items():
            drift = reading.drift[prefix]
            said, asked = observation.prediction, observation.classes
            under = captions(probe.rows, maps, said, probe.class_names, drift, asked, observation.k)
            pictures = {"grid": self._grid(probe, prefix, maps, under, when, observation.k)}
            if moment is not None:
                pictures["filmstrip"] = self._filmstrip(probe, prefix, maps, under, reading.moved[prefix])
            if step is not None:
                for key, picture in pictures.items():
                    self._hand_out(trainer, f"{prefix}/{key}", picture, step)
                self._tell(probe, prefix, maps, reading, trainer)
                if self.display.per_sample:
                    look = self.display.tile, self.display.colormap, self.display.counterfactual
                    images = tiles(probe.photos, maps, under, *look)
                    for logger in trainer.loggers:
                        write_samples(logger, f"{prefix}/samples", *images)
        if moment is not None and moment.epoch < 0:
            for logger in trainer.loggers:
                write_card(logger, f"{self.prefix}/probe", self._card(probe, observation), step or 0)

    def _open_record(self, trainer: Trainer, probe: _Probe, folder: Path) -> Writer:
        """Claim a folder for the record, and write there what is the same for all observations."""
        batch = probe.rows
        run = folder.parent.resolve()
        name = f"{run.parent.name}_{run.name}" if re.fullmatch(r"version_\d+", run.name) else run.name
        if not isinstance(self.record, bool):
            folder = Path(self.record)
            name = folder.resolve().name
        about = {
            "name": name,
            "settings": {
                "model": type(trainer.lightning_module).__name__,
                "layers": probe.layers,
                "question": self._question,
                "every_n_epochs": self.every_n_epochs,
                "precision": str(trainer.precision),
            },
            **_samples_of(batch, probe.fingerprint),
            "groups": list(batch.groups),
            "class_names": None if probe.class_names is None else list(probe.class_names),
            "signed": self.method in SIGNED or self.method not in METHODS.values(),
        }
        regions = {name: _array(region) for name, region in batch.regions.items()}
        grey = (probe.photos * 255).round().byte().numpy()
        if self._continued and not is_record(Path(self._continued["folder"])):
            _say(
                f"GradCAMCallback: the record of the resumed run is no longer in {self._continued['folder']!r}, or of "
                "another version; this one starts with what follows."
            )
        try:
            return Writer(folder, about, grey, regions, self._continued, (trainer.current_epoch, trainer.global_step))
        except OSError as error:
            raise ValueError(
                f"the record cannot be written to {str(folder)!r}: {error}; give `record=` another folder, or False"
            ) from error

    def _keep(
        self,
        writer: Writer,
        trainer: Trainer,
        probe: _Probe,
        observation: Observation,
        reading: Reading,
        moment: Moment,
    ) -> None:
        """Add an observation to the record."""
        labels, prediction, asked = probe.rows.labels, observation.prediction, observation.classes
        try:
            writer.write(
                moment.epoch,
                trainer.global_step,
                {prefix: maps.numpy() for prefix, maps in probe.maps(observation).items()},
                sample_rows(
                    _array(observation.scores),
                    None if prediction is None else _array(prediction.probabilities),
                    None if prediction is None else _array(prediction.classes),
                    None if prediction is None or prediction.right is None else _array(prediction.right),
                    None if labels is None else _array(labels),
                    None if asked is None else _array(asked),
                ),
                reading.numbers,
            )
        except Exception as error:  # the pictures shall still be drawn
            _warn(trainer, "the record of the observation", error)

    def _grid(self, probe: _Probe, prefix: str, maps: Tensor, under: Sequence[Caption], when: str, k: int) -> Image:
        track = self._history.tracks.get(prefix)
        return grid(
            probe.photos,
            maps,
            under,
            probe.rows.regions,
            f"{when} · {'against, for: ' * self.display.counterfactual}{self._key(probe, prefix, maps)}",
            columns=k if k > 1 else None,
            peak=track.peak if track else None,
            tile=self.display.tile,
            counterfactual=self.display.counterfactual,
            **self._look_of_pictures(),
        )

    def _show_guided(
        self, probe: _Probe, observation: Observation, gradients: Tensor, trainer: Trainer, step: int | None, when: str
    ) -> None:
        """Draw the guided gradients, and their product with each layer's maps; without ``step`` only draw."""
        by_prefix = probe.maps(observation)
        drawn = {
            f"{self.prefix}/guided_backprop": (gradients, next(iter(by_prefix.values())), "Guided Backpropagation")
        }
        for prefix, maps in by_prefix.items():
            drawn[f"{prefix}/guided_gradcam"] = (
                guide(maps, gradients),
                maps,
                f"Guided Grad-CAM · {probe.layers[prefix]}",
            )
        for key, (values, maps, what) in drawn.items():
            said, asked, k = observation.prediction, observation.classes, observation.k
            under = captions(probe.rows, maps, said, probe.class_names, None, asked, k)
            if values is gradients:  # which are there also where a map is empty
                under = [replace(caption, note="") for caption in under]
            picture = grid(
                probe.photos,
                maps,
                under,
                probe.rows.regions,
                f"{when} · {what} · {self._target_name}",
                columns=k if k > 1 else None,
                tile=self.display.tile,
                font=self.display.font,
                gradients=values,
            )
            if step is not None:
                self._hand_out(trainer, key, picture, step)

    def _filmstrip(self, probe: _Probe, prefix: str, maps: Tensor, under: Sequence[Caption], moved: Tensor) -> Image:
        track, beside = self._history.tracks[prefix], self._history.beside
        return filmstrip(
            probe.photos[:ROWS],
            track.frames,
            moved[:ROWS],
            [caption.sample[0] for caption in under[:ROWS]],
            probe.class_names or (),
            {name: region[:ROWS] for name, region in probe.rows.regions.items()},
            track.peak[:ROWS],
            self._key(probe, prefix, maps),
            None if beside is None else (beside.name, beside.frame(prefix)),
            **self._look_of_pictures(),
        )

    def _look_of_pictures(self) -> dict[str, Any]:
        display = self.display
        return {"scale": display.scale, "colormap": display.colormap, "font": display.font}

    def _key(self, probe: _Probe, prefix: str, maps: Tensor) -> str:
        """The line at a picture's foot, behind its colour bar."""
        scale = "the sample's maximum in the run" if self.display.scale == "run" else "each map's maximum"
        if self.display.counterfactual and self.display.scale == "sample":
            scale = "the larger side's maximum"
        return f"0 to {scale} · {probe.layers[prefix]} {tuple(maps.shape[1:])} · {self._question}"

    def _tell(self, probe: _Probe, prefix: str, maps: Tensor, reading: Reading, trainer: Trainer) -> None:
        """Say once why maps cannot be read, and at every alert which samples have moved."""
        for kind, text in complaint(maps).items():
            if kind not in self._told:
                self._told.add(kind)
                rank_zero_info(f"GradCAMCallback: {text}")
        if prefix in reading.alarms:
            names = printable(", ".join(called(probe.rows.ids[i]) for i in reading.alarms[prefix]))
            text = (
                f"in epoch {trainer.current_epoch}, step {trainer.global_step}, the maps of `{probe.layers[prefix]}` "
                f"moved: median drift {reading.numbers[f'{prefix}/drift']:.2f}, samples {names}"
            )
            _say(f"GradCAMCallback: {text}.")
            for logger in trainer.loggers:
                alert(logger, "Grad-CAM drift", text)

    def _hint(self, trainer: Trainer) -> None:
        """Say once that TensorBoard keeps ten pictures of a tag, where more are planned."""
        planned = 1 + (trainer.max_epochs or 0) // self.every_n_epochs
        if planned > 10 and any("TensorBoardLogger" in kinds(logger) for logger in trainer.loggers):
            rank_zero_info(
                f"GradCAMCallback plans {planned} observations. TensorBoard shows ten pictures of a tag unless it is "
                f"started with `--samples_per_plugin images={planned}`; `{self.prefix}/filmstrip` always holds the "
                "first and the last."
            )

    def _card(self, probe: _Probe, observation: Observation) -> dict[str, Any]:
        """What is looked at, in words."""
        grids = {name: "x".join(map(str, maps.shape[1:])) for name, maps in observation.maps.items()}
        return {
            "layer": ", ".join(f"{name} ({grid})" for name, grid in grids.items()),
            "question": self._question,
            "samples": ", ".join(str(name) for name in probe.batch.ids),
            "regions": ", ".join(probe.regions) or "none",
            "identity": probe.fingerprint.identity[:16],
            "pixels": probe.fingerprint.pixels[:16],
        }

    def _hand_out(self, trainer: Trainer, key: str, picture: Image, step: int) -> None:
        for sink in self._sinks or ():
            try:
                sink(key, picture, step)
            except Exception as error:  # the other loggers shall have it
                _warn(trainer, "a picture", error)


def _when(trainer: Trainer, step: int | None, moment: Moment | None) -> str:
    """When an observation is made, as its pictures say it."""
    epoch = trainer.current_epoch if moment is None else moment.epoch
    return f"epoch {epoch} · step {step}" if trainer.global_step else "before training"


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array; numpy has no bfloat16."""
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def _samples_of(batch: Batch, fingerprint: Fingerprint) -> dict[str, Any]:
    """Which samples these are, as a record tells it."""
    return {
        "fingerprint": asdict(fingerprint),
        "ids": [one if isinstance(one, int) else str(one) for one in batch.ids],
        "labels": None if batch.labels is None else batch.labels.tolist(),
    }


def _name(choice: Any) -> str:
    """A target or method in words that are the same in another process."""
    if isinstance(choice, (str, Integral, list, tuple)) or is_dataclass(choice):
        return str(list(choice) if isinstance(choice, tuple) else choice)
    return getattr(choice, "__name__", type(choice).__name__)


def _warn(trainer: Trainer, what: str, error: Exception) -> None:
    """Warn on the first process, and on one whose own error it is."""
    if trainer.is_global_zero or not isinstance(error, _ElsewhereError):
        _say(
            f"GradCAMCallback: {what} in epoch {trainer.current_epoch}, step {trainer.global_step}, failed and is "
            f"left out; training goes on. {type(error).__name__}: {error}"
        )


def _say(text: str) -> None:
    """Warn; where the user has made warnings errors, log it: a run must not end by ours."""
    try:
        warnings.warn(text, stacklevel=3)
    except UserWarning:
        logging.getLogger("lightning_gradcam").warning(text)


class _ElsewhereError(RuntimeError):
    """Another process has failed, and tells why itself."""


def _log(trainer: Trainer, pl_module: LightningModule, numbers: dict[str, float], step: int) -> None:
    for key, value in numbers.items():
        if math.isfinite(value):  # past a `log` of the module's own, which may take other arguments
            LightningModule.log(pl_module, key, value, batch_size=1, sync_dist=True)


def _log_directly(trainer: Trainer, pl_module: LightningModule, numbers: dict[str, float], step: int) -> None:
    """For the hooks around training, where ``pl_module.log`` would land in another epoch or is not allowed."""
    finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
    for logger in trainer.loggers:
        try:
            logger.log_metrics(finite, step=step)
        except Exception as error:  # at the end of a run Lightning itself would not ask the logger any more
            _warn(trainer, "the logging of the numbers", error)


def _stopping(trainer: Trainer) -> bool:
    """Whether the epoch that ends now is the run's last."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    last_epoch = epochs is not None and epochs != -1 and trainer.current_epoch + 1 >= epochs
    last_step = steps != -1 and trainer.global_step >= steps
    return trainer.should_stop or last_epoch or last_step
