"""The callback: Lightning's hooks in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.functional import default_forward
from lightning_gradcam.attribution.layers import check_layers, find_layer
from lightning_gradcam.attribution.layout import Grid, Layout, as_layout
from lightning_gradcam.attribution.methods import Method, as_method
from lightning_gradcam.attribution.reading import default_batch
from lightning_gradcam.attribution.targets import Target, as_target
from lightning_gradcam.picture.display import Display
from lightning_gradcam.run.history import Moment
from lightning_gradcam.run.outlets import log_numbers, log_numbers_directly, serve_monitors, tell_of_thinned_pictures
from lightning_gradcam.run.samples import as_pictures, as_samples
from lightning_gradcam.run.session import Log, Session
from lightning_gradcam.run.settings import Drift, Localization, Settings, as_localization, in_words
from lightning_gradcam.run.trainer import Callback, LightningModule, Trainer, check_strategy, logged_step, stops_here

# Of items of any type; a command line that reads the signature (jsonargparse) takes no class with its type in brackets.
AnyDataset = Dataset[Any]
if not TYPE_CHECKING:
    AnyDataset = Dataset

_GUIDED_EVERY = 10  # observations


class GradCAMCallback(Callback):
    """Show where a model looks while it trains: Grad-CAM of the same validation samples, epoch by epoch.

    At the end of every epoch that is due, after its validation, the callback runs the model on a fixed batch and
    logs a grid of heatmaps, a filmstrip and numbers. It looks once more before the first training step and always at
    the last state of a run. Training is left as it is: weights, buffers, optimizer and random states end
    bit-identical.

    The first look is taken in the sanity check or, without one, at the start of training. How batch, forward, output
    and labels are read is decided there, said in the log and in the dashboard's card, and kept for the run. A mistake
    in the set-up, or what cannot be told, is one error there; a model of which there is no map, a warning; where no
    validation has run yet, a forward that fails is a warning, and the look is taken again after the first one. Later a
    failed observation is a warning, and the run goes on.

    Logged, behind the prefix and a slash (with several layers the prefix itself grows: ``gradcam_layer3/grid``):

    ========================== ======= =================================================================================
    key                        over    meaning, unit, range
                               samples
    ========================== ======= =================================================================================
    ``grid``                           a picture: every sample's map over its photo, with its prediction
    ``filmstrip``                      a picture: the run so far, a row a sample, always with the first and the last
                                       observation
    ``positional_bias_map``            a picture: how often each cell is in a map's strongest tenth, over the mean photo
    ``clip``                           of clips: the first samples, frame by frame, as a GIF or a video
    ``guided_backprop``                pictures, see ``guided``: which pixels speak for the score, by the guided
                                       gradient
    ``guided_gradcam``                 pictures: that, times the map
    ``page``                           the run so far as a page with sliders, after the 2nd, 4th, 8th, ... look and at
                                       the end, where there is a record
    ``table``                          W&B, at the end: the last look as a table, a line a sample
    ``drift``                  median  how far maps moved since the observation before; 0 still, 1 moved wholly
    ``drift_from_reference``   median  the same from the reference, see :class:`Drift`
    ``difference_from_<run>``  median  one less the agreement with the last maps of ``Drift(reference_run=...)``
    ``drift_floor``            median  the same under a shift of the images by one pixel: what means nothing
    ``drift_chance``           median  the same between different samples: what maps without relation show
    ``centroid_shift``         median  distance of the centres of mass to the reference, in grid diagonals; 0 to 1
    ``topk_iou``               median  overlap of the strongest fifth of the cells with the reference; 0 to 1
    ``positional_bias``                the largest share of maps that have the same cell in their strongest tenth, as on
                                       a watermark, but objects in the middle do so too; 0 to 1
    ``positional_bias_chance``         what it is by chance: its 95th percentile over random shifts of each map, round
                                       the edges; 0 to 1
    ``concentration``          median  how few cells hold the evidence; 0 uniform, 1 one cell; for one grid only
    ``strength``               median  sum of the signed map: evidence for the target, in its own unit; only for
                                       ``gradcam`` and ``hirescam``, whose sum has it
    ``empty_fraction``         mean    share of samples whose map has no positive cell; 0 to 1
    ``mass_<region>``          mean    share of a map's evidence inside a region; 0 to 1
    ``lift_<region>``          mean    that, in shares of a uniform map; 1 is no preference
    ``prediction_flips``       mean    share of samples whose prediction changed since the observation before
    ``localization_error_…``   mean    share of samples whose object the box of the map misses, see ``localization``:
                                       ``_top1``, and of the top ``k``, for ``target="predicted"`` and
                                       :class:`TopTarget`, where the class must be right too; else ``_known``; 0 to 1
    ``classification_error_…`` mean    beside these, ``_top1`` and so on: share of samples whose label is not among the
                                       top classes; 0 to 1
    ``max_box_acc_v2``         mean    share of samples whose object a box of the map finds, at the threshold that
                                       serves best; 0 to 1
    ``pxap``                           average precision of the maps' pixels against the region; 0 to 1
    ``roc_auc``                mean    how well a map's pixels tell the region's from the others; 0.5 is chance
    ``rank_accuracy``          mean    share of a map's highest pixels, as many as the region has, within it; 0 to 1
    ``randomization_drift``    median  with ``checks``: how far maps move when the weights above the layer are drawn
                                       anew (Adebayo et al. 2018). No verdict: the layer's own activations stay, so a
                                       map need not move as far as ``drift_chance``
    ``insertion``              mean    with ``checks``: area under the probability as pixels come back, the map's
                                       strongest first, see :mod:`lightning_gradcam.metrics.faithfulness`; 0 to 1, a
                                       faithful map has more than ``insertion_random``, that of a random order
    ``deletion``               mean    the same as they go; it has less than ``deletion_random``; 0 to 1
    ``checks_seconds``                 what the checks took, in all
    ``seconds``                        what the observation took on the calling thread, before TensorBoard writes
    ``guided_seconds``                 what the guided pictures took, where they follow the last observation
    ``failures``                       how many observations of the run have failed so far; logged when one does
    ========================== ======= =================================================================================

    Where the batch has groups, all keys over samples are logged for each group too: ``gradcam/drift/<group>``. Drift
    below ``drift_floor`` is noise, and drift near ``drift_chance`` is a gaze that has gone elsewhere, unless that is
    near the floor itself: then all samples have nearly the same map. Samples with an empty map, or without a region,
    are left out of a key; those without a label out of all, where labels are asked for; with ``target="predicted"``
    also those whose prediction changed, which ``prediction_flips`` counts. Where ``positional_bias`` exceeds chance
    and 0.7, the log says once where. ``strength`` and ``concentration`` rise whatever a run learns;
    ``docs/reading.md`` says what each number tells and what it does not.

    Pictures go to every logger of the trainer that takes some: those for TensorBoard, W&B, MLflow, Comet, LitLogger and
    Trackio, and any with a method ``log_image(key, images, step)``. Where there is none, they go to JPEG files in
    ``<prefix>/`` in the run's folder. The page goes to all of these but TensorBoard and the last kind. Numbers go
    through ``LightningModule.log`` to every logger and can be monitored: between observations, and where a number is
    not defined, monitors get the last one that was. Those from before training go to the loggers directly, at step 0.

    Args:
        target_layer: A dotted name from the LightningModule or from its inner model (``"layer4"``,
            ``"model.layer4[-1]"``), a module, or several of either, which are read in one pass. ``None``: the last
            layer on a grid that all paths from the image to the score cross; where a class token reads the patches,
            the norm through which it does so for the last time. The log names it. Of a module that is called more than
            once ``"relu#2"`` is the second call. Maps may be ``(n, c, h, w)``, ``(n, h, w, c)``, ``(n, c, h * w)`` or
            tokens ``(n, prefix + h * w, c)``, of volumes and clips with one axis more, of signals with one less, or the
            frames of clips as rows ``(n * t, c, h, w)``. Those of more than 32 cells a side are summed down to 32, of
            volumes and clips to 16, of signals to 256.
        samples: How many samples, evenly spaced over the validation dataset; or which indices of it; or a dataset of
            your own, of which all are taken: anything with a length and items. Without validation the training dataset
            serves; of several validation loaders the first, or the one whose key is given. Loaders whose batches come
            together give one of each. An iterable dataset gives its first items, a loader without a dataset its first
            batch. Images of another size than the first one's, where the loader cannot join them, make room for others.
            More than 16 run in chunks of the validation loader's batch size, images and shifted images counted.
        pictures: How many samples, evenly spaced among these, are drawn, or which positions among them: in the
            pictures, on the page and in the table. Numbers are of all.
        target: What to ask for: ``"label"``, the score of each sample's label, which is that of its mask's or boxes'
            class where the model segments or detects, and the output itself where the labels are values;
            ``"predicted"``, of its predicted class; a class index; a function ``(output, batch) -> scores (n,)``, such
            as a :class:`SegmentationTarget`, :class:`DetectionTarget`, :class:`RegressionTarget` or
            :class:`EmbeddingTarget`. Several class indices, a :class:`TopTarget` or a
            function that returns ``(n, k)`` give ``k`` maps a sample: a row of the grid, and as many samples to all
            numbers. They cost one forward and ``k`` backward passes.
        method: ``"gradcam"``, ``"cam"``, ``"hirescam"``, ``"gradcam++"``, ``"layercam"``, ``"xgradcam"``, or a
            function ``(activations (n, c, *grid), gradients (n, c, *grid)) -> map (n, *grid)``.
        every_n_epochs: Look at every so many epochs, at least 1.
        batch_fn: Turns a collated batch, after the transfer hooks, into a :class:`Batch`; by default by what its parts
            are and how they are called, see :func:`~lightning_gradcam.attribution.reading.default_batch`.
        forward_fn: ``(module, batch) -> output``; by default ``module(batch.images)``, or the whole batch, or keywords
            whose names the batch has, whichever gives a row a sample.
        grid: How the output of the named layers lies on the image, where that cannot be told from its shape: ``(h, w)``
            in cells, of volumes and clips ``(d, h, w)``, the tokens before them being a prefix; or a function
            ``output -> (n, c, h, w)``.
        drift: What drift is measured against, and when to warn of it.
        display: How pictures look.
        guided: Draw Guided Backpropagation and Guided Grad-CAM as well, for networks with ReLUs: at the first, every
            tenth and the last observation of ``fit``; a number takes the place of the ten. Each time costs a forward
            that keeps its graph and a backward pass down to the images, some three forwards in all, and the memory of
            training on as many samples.
        localization: The region that holds each sample's object: log how well the maps find it by the published
            protocols of weakly supervised localization, see :mod:`lightning_gradcam.metrics.protocols`. It needs
            scipy (``pip install "lightning-gradcam[localization]"``), and takes some 50 ms a sample of 224 pixels, so
            it is of the samples that are drawn; ``Localization(region, samples="all")``: of all.
        checks: Check the maps of the last observation of ``fit``, after it: how far they move when the weights of all
            modules that are called only after their layer are drawn anew, and what becomes of the probability as
            pixels go and come in their order and in a random one. Once, it costs 132 forwards of the samples and two
            maps of them for each layer. What cannot be known is left out, which the log says, and a check that fails
            is a warning. The record has these numbers at its last observation; for monitors they come too late.
        record: Whether to keep maps and numbers on disk, for :class:`Record` and the command ``lightning-gradcam``:
            in ``<prefix>/`` in the run's folder, or in the folder that is named. About 5 KB an observation of 16
            samples.
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
        samples: int | Sequence[Any] | AnyDataset | str = 16,
        pictures: int | Sequence[int] = 16,
        target: Literal["label", "predicted"] | int | Sequence[int] | Target = "label",
        method: Literal["gradcam", "cam", "hirescam", "gradcam++", "layercam", "xgradcam"] | Method = "gradcam",
        every_n_epochs: int = 1,
        batch_fn: Callable[[Any], Batch] = default_batch,
        forward_fn: Callable[[Any, Batch], Any] = default_forward,
        grid: Grid | Layout | None = None,
        drift: Drift = Drift(),  # noqa: B008  # frozen
        display: Display = Display(),  # noqa: B008  # frozen
        guided: bool | int = False,
        localization: str | Localization | None = None,
        checks: bool = False,
        record: bool | str | Path = True,
        prefix: str = "gradcam",
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        self.settings: Settings = Settings(
            target_layer=check_layers(target_layer, grid),
            grid=None if grid is None else as_layout(grid),
            samples=as_samples(samples),
            pictures=as_pictures(pictures),
            target=as_target(target),
            target_name=f"target {in_words(target)}",
            method=as_method(method),
            question=f"target {in_words(target)} · {in_words(method)}",
            guided=_GUIDED_EVERY if guided is True else guided,
            every_n_epochs=every_n_epochs,
            batch_fn=batch_fn,
            forward_fn=forward_fn,
            drift=drift,
            display=display,
            localization=as_localization(localization),
            checks=checks,
            record=record,
            prefix=prefix,
            on_error=on_error,
        )
        self._session = Session(self.settings)
        self._fitted_by: int | None = None  # the trainer whose samples and folder these are
        self._fitted: int | None = None  # its module

    if not TYPE_CHECKING:  # a type checker shall still find what is misspelt

        def __getattr__(self, name: str) -> Any:
            """The arguments can be read of the callback itself as well: ``callback.samples``."""
            if name.startswith("_") or name not in Settings.__dataclass_fields__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self.settings, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in Settings.__dataclass_fields__:
                raise AttributeError(f"`{name}` is given to the constructor and stays; make another callback")
            super().__setattr__(name, value)

    def state_dict(self) -> dict[str, Any]:
        return self._session.state()

    # Lightning refuses equal keys of what overrides `state_dict`, before `setup` can say that it is the prefix.
    state_dict.__wrapped__ = Callback.state_dict  # type: ignore[reportFunctionMemberAccess]

    @property
    def state_key(self) -> str:
        return self._generate_state_key(prefix=self.settings.prefix)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_strategy(trainer)
        alike = [other for other in getattr(trainer, "callbacks", ()) if isinstance(other, GradCAMCallback)]
        if sum(other.settings.prefix == self.settings.prefix for other in alike) > 1:
            raise ValueError(
                f"two `GradCAMCallback`s of the trainer have the `prefix` {self.settings.prefix!r}, so each would "
                "write over the other's numbers, pictures and state; give one of them another `prefix`"
            )
        same_trainer, same_module = self._fitted_by == id(trainer), self._fitted == id(pl_module)
        if stage == "fit" or not same_trainer:
            before, self._session = self._session, Session(self.settings)
            # Fitted once more, for more epochs: as a run that is resumed, if the fixed batch proves to be the same.
            if same_trainer and same_module and 0 < trainer.global_step == before.last_step:
                self._session.restored, self._session.folder = before.state(), before.folder
        if stage == "fit":
            self._fitted_by, self._fitted = id(trainer), id(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._session.release()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._session.restored = state_dict

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside ``fit``, verify the set-up before the loop, whose results a later error would lose."""
        if trainer.state.fn == "validate" and not self._session.setup_verified:
            self._session.observe(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._session.setup_verified:
            self._session.observe(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the model as it comes, untrained or pretrained; on resume only verify the set-up."""
        if any(is_lazy(parameter) for parameter in pl_module.parameters()):
            rank_zero_info("GradCAMCallback takes its first look later: the model has layers without a shape.")
            for layer in self.settings.target_layer:
                find_layer(pl_module, layer)
            self._session.setup_verified = True  # as far as can be
        elif trainer.global_step == 0 and trainer.current_epoch == 0:
            tell_of_thinned_pictures(trainer, self.settings)
            start, may_wait = Moment(-1, False), bool(trainer.enable_validation)
            self._session.observe(trainer, pl_module, 0, start, log_numbers_directly, may_wait)
            return
        if not self._session.setup_verified:
            self._session.observe(trainer, pl_module, may_wait=bool(trainer.enable_validation))
        # A checkpoint that was saved at an epoch's last batch, before its validation, which Lightning does not repeat.
        epoch, seen = trainer.current_epoch - 1, self._session.history.last_epoch
        if seen is not None and seen < epoch and (epoch + 1) % self.settings.every_n_epochs == 0:
            self._observe_after_epoch(epoch, trainer, pl_module, log_numbers_directly)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Serve monitors that run at the end of an epoch without validation."""
        every = trainer.check_val_every_n_epoch
        if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
            serve_monitors(pl_module, self._session.history.monitored)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Serve monitors that run after a validation."""
        if not trainer.sanity_checking:
            serve_monitors(pl_module, self._session.history.monitored)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._session.keep_first_batch(trainer, batch, batch_idx, dataloader_idx)

    on_test_batch_start = on_validation_batch_start

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self._session.observe(trainer, pl_module)
        elif trainer.state.fn == "validate":
            self._session.observe(trainer, pl_module, logged_step(trainer))
        elif self._due(trainer):
            self._session.last_epoch = trainer.current_epoch
            moment = Moment(trainer.current_epoch, trainer.is_last_batch)
            self._session.observe(trainer, pl_module, logged_step(trainer), moment)
        elif not self._session.setup_verified:
            self._session.observe(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look where the epoch had no validation, and where the run ends with a state that was not seen."""
        missed = self._due(trainer) and self._session.last_epoch != trainer.current_epoch
        unseen = self._session.last_step != trainer.global_step
        if missed or (unseen and stops_here(trainer)):
            self._observe_after_epoch(trainer.current_epoch, trainer, pl_module, log_numbers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look where another callback ended the run after this one had its turn."""
        if self._session.last_step != trainer.global_step:
            self._observe_after_epoch(trainer.current_epoch - 1, trainer, pl_module, log_numbers_directly)
        else:
            self._session.observe_guided(trainer, pl_module)
        self._session.check(trainer, pl_module)
        self._session.finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Hand out what was seen until the run was interrupted."""
        self._session.finish(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.observe(trainer, pl_module, logged_step(trainer))

    def _due(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.settings.every_n_epochs == 0

    def _observe_after_epoch(self, epoch: int, trainer: Trainer, pl_module: LightningModule, log: Log) -> None:
        step = max(0, logged_step(trainer) - 1)  # Lightning logs the epoch's metrics at the step of its last batch
        self._session.observe(trainer, pl_module, step, Moment(epoch, True), log)
