"""The callback: Lightning's hooks in the order in which they run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from time import perf_counter
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

from lightning_gradcam._lightning import Callback, LightningModule, Trainer, loaders, logged_step, muted
from lightning_gradcam.batch import Batch, Fingerprint, as_samples, default_batch, fixed_batch
from lightning_gradcam.functional import Observation, observe
from lightning_gradcam.layers import check_layers, find_layer, last_map_layer
from lightning_gradcam.methods import SIGNED, Method, as_method
from lightning_gradcam.metrics.evidence import empty, strength
from lightning_gradcam.picture.display import Display, found_class_names, found_normalization, photos
from lightning_gradcam.picture.grid import captions, grid
from lightning_gradcam.picture.text import load_font, missing_letters
from lightning_gradcam.sinks import Sink, find_sinks
from lightning_gradcam.targets import Target, as_target


def default_forward(pl_module: LightningModule, batch: Batch) -> Any:
    """Call the module on the images."""
    return pl_module(batch.images)


@dataclass(frozen=True)
class _Probe:
    """What every observation of a run has in common."""

    batch: Batch
    fingerprint: Fingerprint
    layers: dict[str, str]  # the prefix of a layer's keys, and its name
    photos: Tensor
    class_names: Sequence[str] | None


class GradCAMCallback(Callback):
    """Show where a model looks while it trains: Grad-CAM of the same validation samples, epoch by epoch.

    At the end of every epoch that is due, after its validation, the callback runs the model on a fixed batch and
    logs one grid of heatmaps and a few numbers. It looks once more before the first training step and always at the
    last state of a run. Training is left as it is: weights, buffers, optimizer and random states end bit-identical.

    The first look is taken in the sanity check or, without one, at the start of training. A mistake in the set-up is
    an error there. Later a failed observation is a warning, and the run goes on.

    Logged, behind the prefix and a slash (with several layers the prefix itself grows: ``gradcam_layer3/grid``):

    ================== ================================================================== ============ ============
    key                meaning                                                            range        aggregated
    ================== ================================================================== ============ ============
    ``grid``           a picture: every sample's map over its photo, with its prediction
    ``strength``       sum of the signed map: evidence for the target, in its own unit;   real; more   median over
                       for the methods with a sign, ``gradcam`` and ``hirescam``          is stronger  samples
    ``empty_fraction`` share of samples whose map has no positive cell                    0 to 1       mean
    ``seconds``        what the observation took on the calling thread                    above 0
    ================== ================================================================== ============ ============

    Pictures go to every ``TensorBoardLogger`` and ``WandbLogger`` of the trainer; where there is none, to JPEG files
    in ``<prefix>/`` in the run's folder. Numbers go through ``LightningModule.log`` to every logger and can be
    monitored; those from before training go to the loggers directly, at step 0.

    Args:
        target_layer: A dotted name from the LightningModule or from its inner model (``"layer4"``,
            ``"model.layer4[-1]"``), a module, or several of either. ``None``: the last layer with a spatial map
            before the pooling, which the log names.
        samples: How many samples, evenly spaced over the validation dataset; or which indices of it; or a dataset of
            your own, of which all are taken. Without validation the training dataset serves; of several validation
            loaders the first. An iterable dataset gives its first items.
        target: What to ask for: ``"label"``, the score of each sample's label; ``"predicted"``, of its predicted
            class; a class index; or a function ``(output, batch) -> scores (n,)``.
        method: ``"gradcam"``, ``"hirescam"``, ``"gradcam++"``, ``"layercam"``, ``"xgradcam"``, or a function
            ``(activations (n, c, h, w), gradients (n, c, h, w)) -> map (n, h, w)``.
        every_n_epochs: Look at every so many epochs, at least 1.
        batch_fn: Turns a collated batch, after the transfer hooks, into a :class:`Batch`.
        forward_fn: ``(module, batch) -> output``; by default ``module(batch.images)``.
        display: How pictures look.
        prefix: What every key starts with.

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
        target: str | int | Target = "label",
        method: str | Method = "gradcam",
        every_n_epochs: int = 1,
        batch_fn: Callable[[Any], Batch] = default_batch,
        forward_fn: Callable[[LightningModule, Batch], Any] = default_forward,
        display: Display = Display(),  # noqa: B008  # frozen
        prefix: str = "gradcam",
    ) -> None:
        if not isinstance(every_n_epochs, int) or isinstance(every_n_epochs, bool) or every_n_epochs < 1:
            raise ValueError(f"`every_n_epochs` must be a whole number of at least 1, got {every_n_epochs!r}")
        if not isinstance(prefix, str) or not re.fullmatch(r"[\w.-]+", prefix):
            raise ValueError(f"`prefix` must be letters, digits, '_', '-' or '.', got {prefix!r}")
        for name, function in (("batch_fn", batch_fn), ("forward_fn", forward_fn)):
            if not callable(function):
                raise TypeError(f"`{name}` must be a function, got {type(function).__name__}")
        if not isinstance(display, Display):
            raise TypeError(f"`display` must be a `Display`, got {type(display).__name__}")
        self.target_layer = check_layers(target_layer)
        self.samples = as_samples(samples)
        self.target = as_target(target)
        self.method = as_method(method)
        self.every_n_epochs = every_n_epochs
        self.batch_fn = batch_fn
        self.forward_fn = forward_fn
        self.display = display
        self.prefix = prefix
        self._question = f"target {getattr(target, '__name__', target)} · {getattr(method, '__name__', method)}"
        self._forget()

    def _forget(self) -> None:
        """Start as for a new run."""
        self._probe: _Probe | None = None
        self._sinks: list[Sink] | None = None
        self._restored: Fingerprint | None = None
        self._proven = False  # a whole observation has succeeded: from now on a failure must not end the run
        self._seen_epoch: int | None = None  # the last epoch whose validation was observed
        self._seen_step: int | None = None  # the optimizer step of the last observation
        self._fitted_by: int | None = None  # the trainer whose samples and folder these are

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_probe": None, "_sinks": None}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(prefix=self.prefix)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.forward_fn is default_forward and type(pl_module).forward is LightningModule.forward:
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
        elif trainer.global_step == 0:
            self._look(trainer, pl_module, 0, _log_directly)
        elif not self._proven:
            self._look(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self._look(trainer, pl_module)
        elif trainer.state.fn == "validate" or self._due(trainer):
            self._seen_epoch = trainer.current_epoch
            self._look(trainer, pl_module, logged_step(trainer), _log)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look where the epoch had no validation, and where the run ends with a state that was not seen."""
        missed = self._due(trainer) and self._seen_epoch != trainer.current_epoch
        unseen = self._seen_step != trainer.global_step
        if missed or (unseen and _stopping(trainer)):
            # Lightning logs this epoch's metrics at the step of its last batch.
            self._look(trainer, pl_module, max(0, logged_step(trainer) - 1), _log)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look where another callback ended the run after this one had its turn."""
        if self._seen_step != trainer.global_step:
            self._look(trainer, pl_module, max(0, logged_step(trainer) - 1), _log_directly)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module, logged_step(trainer), _log)

    def state_dict(self) -> dict[str, Any]:
        fingerprint = self._probe.fingerprint if self._probe else self._restored
        return {} if fingerprint is None else {"fingerprint": asdict(fingerprint)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "fingerprint" in state_dict:
            self._restored = Fingerprint(**state_dict["fingerprint"])

    def _due(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _look(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        step: int | None = None,
        log: Callable[[Trainer, LightningModule, dict[str, float], int], None] | None = None,
    ) -> None:
        """Observe, draw and log; without ``step`` and ``log`` everything but the logging."""
        started = perf_counter()
        if log is not None:
            self._seen_step = trainer.global_step
        try:
            probe, observation = self._observe(trainer, pl_module)
        except Exception as error:
            if not self._proven:
                raise
            _warn(trainer, "the observation", error)
            return
        # On the first process only: what fails here must not keep the numbers from any logger or process.
        try:
            if trainer.is_global_zero:
                self._show(probe, observation, trainer, step)
        except Exception as error:
            if not self._proven:
                raise
            _warn(trainer, "the picture of the observation", error)
        self._proven = True
        if log is not None and step is not None:
            log(trainer, pl_module, self._scalars(probe, observation, started), step)

    def _observe(self, trainer: Trainer, pl_module: LightningModule) -> tuple[_Probe, Observation]:
        """What the first process sees; every process captures, and all agree before they exchange anything."""
        error = observation = None
        try:
            probe = self._probe = self._probe or self._prepare(trainer, pl_module)
            batch = probe.batch.apply(lambda tensor: tensor.to(pl_module.device))
            layers = dict(find_layer(pl_module, name) for name in probe.layers.values())
            forward = partial(self._forward, trainer, pl_module, batch)
            observation = probe, observe(pl_module, batch, layers, forward, self.target, self.method)
        except Exception as failure:  # raised again below, once the other processes know
            error = failure
        if not trainer.strategy.reduce_boolean_decision(observation is not None) or observation is None:
            raise error or RuntimeError("the capture failed on another process")
        return observation[0], trainer.strategy.broadcast(observation[1])

    def _forward(self, trainer: Trainer, pl_module: LightningModule, batch: Batch) -> Any:
        with muted(pl_module), trainer.precision_plugin.forward_context():
            return self.forward_fn(pl_module, batch.apply(Tensor.clone))  # a model may change its input in place

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> _Probe:
        """Load the fixed batch and find the layers, the photos' scale, the class names and the loggers."""
        candidates = loaders(trainer)
        loader = candidates[0] if candidates else None
        if len(candidates) > 1 and not isinstance(self.samples, Dataset):
            rank_zero_info(f"GradCAMCallback takes its samples from the first of {len(candidates)} data loaders.")
        batch, fingerprint = fixed_batch(trainer, pl_module, loader, self.samples, self.batch_fn)
        if self._restored is not None and self._restored != fingerprint:
            what = "pixels" if self._restored.identity == fingerprint.identity else "samples"
            rank_zero_warn(f"GradCAMCallback: the {what} of the fixed batch are not those of the resumed run.")

        if self.target_layer:
            names = [find_layer(pl_module, layer)[0] for layer in self.target_layer]
        else:
            few = batch.first(2).apply(lambda tensor: tensor.to(pl_module.device))
            names = [last_map_layer(pl_module, partial(self._forward, trainer, pl_module, few))[0]]
            rank_zero_info(f"GradCAMCallback looks at `{names[0]}`; `target_layer` names another.")

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
        grey, note = photos(batch.images, mean, std)
        if note:
            rank_zero_info(f"GradCAMCallback: {note}.")
        return _Probe(batch, fingerprint, self._prefixes(names), grey, class_names)

    def _prefixes(self, names: Sequence[str]) -> dict[str, str]:
        """The prefix of each layer's keys: the plain one for one layer, else with what tells the names apart."""
        if len(names) == 1:
            return {self.prefix: names[0]}
        parts = [name.split(".") for name in names]
        same = takewhile(lambda level: len(set(level)) == 1, zip(*(path[:-1] for path in parts), strict=False))
        common = len(list(same))
        return {f"{self.prefix}_{'.'.join(path[common:])}": name for name, path in zip(names, parts, strict=True)}

    def _show(self, probe: _Probe, observation: Observation, trainer: Trainer, step: int | None) -> None:
        """Draw one grid a layer and hand it to the loggers; without ``step`` only draw."""
        if self._sinks is None:
            self._sinks = find_sinks(trainer, self.prefix)
        display = self.display
        when = f"epoch {trainer.current_epoch} · step {step}" if trainer.global_step else "before training"
        for prefix, name in probe.layers.items():
            maps = observation.maps[name]
            picture = grid(
                probe.photos,
                maps,
                captions(probe.batch, maps, observation.prediction, probe.class_names),
                probe.batch.regions,
                f"0 to each map's maximum · {name} {tuple(maps.shape[1:])} · {self._question} · {when}",
                tile=display.tile,
                colormap=display.colormap,
                font=display.font,
            )
            if step is not None:
                self._hand_out(trainer, f"{prefix}/grid", picture, step)

    def _hand_out(self, trainer: Trainer, key: str, picture: Image, step: int) -> None:
        for sink in self._sinks or ():
            try:
                sink(key, picture, step)
            except Exception as error:  # the other loggers shall have it
                _warn(trainer, "a picture", error)

    def _scalars(self, probe: _Probe, observation: Observation, started: float) -> dict[str, float]:
        scalars = {}
        for prefix, name in probe.layers.items():
            maps = observation.maps[name]
            if self.method in SIGNED:
                scalars[f"{prefix}/strength"] = strength(maps).quantile(0.5).item()
            scalars[f"{prefix}/empty_fraction"] = empty(maps).float().mean().item()
        scalars[f"{self.prefix}/seconds"] = perf_counter() - started
        return scalars


def _warn(trainer: Trainer, what: str, error: Exception) -> None:
    rank_zero_warn(
        f"GradCAMCallback: {what} in epoch {trainer.current_epoch}, step {trainer.global_step}, failed and is left "
        f"out; training goes on. {type(error).__name__}: {error}"
    )


def _log(trainer: Trainer, pl_module: LightningModule, scalars: dict[str, float], step: int) -> None:
    for key, value in scalars.items():
        pl_module.log(key, value, batch_size=1, sync_dist=True)


def _log_directly(trainer: Trainer, pl_module: LightningModule, scalars: dict[str, float], step: int) -> None:
    """For the hooks around training, where ``pl_module.log`` would land in another epoch or is not allowed."""
    for logger in trainer.loggers:
        logger.log_metrics(scalars, step=step)


def _stopping(trainer: Trainer) -> bool:
    """Whether the epoch that ends now is the run's last."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    last_epoch = epochs is not None and epochs != -1 and trainer.current_epoch + 1 >= epochs
    last_step = steps != -1 and trainer.global_step >= steps
    return trainer.should_stop or last_epoch or last_step
