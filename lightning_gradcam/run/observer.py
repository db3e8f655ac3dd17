"""One look at the fixed batch: on every process the same, and within the memory that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from lightning_gradcam.attribution.batch import Batch, shift
from lightning_gradcam.attribution.functional import Attribution, attribute
from lightning_gradcam.attribution.guided import guided_gradients
from lightning_gradcam.attribution.targets import Prediction
from lightning_gradcam.run.failures import OtherProcessError
from lightning_gradcam.run.probe import Probe
from lightning_gradcam.run.settings import Settings
from lightning_gradcam.run.trainer import (
    LightningModule,
    Trainer,
    garbage_collection_cuda,
    is_oom_error,
    is_sharded,
    without_logging,
)

_T = TypeVar("_T")
_IN_FORWARD = "_raised_in_forward"


@dataclass(frozen=True)
class Seen:
    """What one look gave: plain data on the CPU, a row for each of the ``k`` scores of each sample, ``N`` in all.

    Attributes:
        maps: Signed maps ``(N, h, w)`` by the prefix of a layer's keys.
        shifted: The same of the images shifted by one pixel; empty where there is to be no noise floor.
        scores: ``(N,)``, the target's.
        target_classes: ``(N,)``, the class that each map is of; ``None`` where the target does not tell.
        prediction: What the model predicts; ``None`` where it is no classifier.
        k: How many scores a sample has.
        gradients: Guided gradients ``(N, c, H, W)``; ``None`` where they were not asked for.
    """

    maps: dict[str, Tensor]
    shifted: dict[str, Tensor]
    scores: Tensor
    target_classes: Tensor | None
    prediction: Prediction | None
    k: int
    gradients: Tensor | None = None


class Observer:
    """Runs the module on the fixed batch.

    Attributes:
        samples_at_once: How many samples the memory has room for; ``None``: all.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.samples_at_once: int | None = None

    def look(self, trainer: Trainer, pl_module: LightningModule, probe: Probe) -> Seen:
        """Capture the maps of the batch and, for the noise floor, those of its images shifted by one pixel."""
        batch = probe.batch.apply(lambda tensor: tensor.to(pl_module.device))
        observation = self._capture(trainer, pl_module, probe, batch)
        shifted = {}
        if self.settings.drift.noise_floor:
            shifted = self._capture(trainer, pl_module, probe, shift(batch)).maps
        return Seen(
            {prefix: observation.maps[name] for prefix, name in probe.layers.items()},
            {prefix: shifted[name] for prefix, name in probe.layers.items() if shifted},
            observation.scores.flatten(),
            observation.classes,
            observation.prediction,
            observation.k,
        )

    def guided_gradients(self, trainer: Trainer, pl_module: LightningModule, probe: Probe) -> Tensor:
        """The guided gradients of the batch, ``(N, c, H, W)``."""
        batch = probe.batch.apply(lambda tensor: tensor.to(pl_module.device))

        def run(at_once: int | None) -> Tensor:
            forward = partial(self.forward, trainer, pl_module)
            return guided_gradients(pl_module, batch, forward, self.settings.target, at_once).flatten(0, -4)

        return self._within_memory(trainer, len(batch.images), run)

    def forward(self, trainer: Trainer, pl_module: LightningModule, batch: Batch) -> Any:
        """Run the module as the user's steps would, but for its logging; :func:`in_forward` tells what it raises."""
        try:
            with without_logging(pl_module), trainer.precision_plugin.forward_context():
                return self.settings.forward_fn(
                    pl_module, batch.apply(Tensor.clone)
                )  # it may change its input in place
        except Exception as error:
            vars(error)[_IN_FORWARD] = True
            raise

    def _capture(self, trainer: Trainer, pl_module: LightningModule, probe: Probe, batch: Batch) -> Attribution:
        def run(at_once: int | None) -> Attribution:
            forward = partial(self.forward, trainer, pl_module)
            target, method = self.settings.target, self.settings.method
            return attribute(pl_module, batch, probe.layouts, forward, target, method, at_once)

        return self._within_memory(trainer, len(batch.images), run)

    def _within_memory(self, trainer: Trainer, samples: int, run: Callable[[int | None], _T]) -> _T:
        """Run; where memory runs short in smaller chunks, whose size is kept for the rest of the run."""
        while True:
            try:
                return run(self.samples_at_once)
            except Exception as error:
                at_once = self.samples_at_once or samples
                if not is_oom_error(error) or at_once == 1 or is_sharded(trainer):
                    raise
                self.samples_at_once = at_once // 2
            garbage_collection_cuda()


def in_forward(error: Exception) -> bool:
    """Whether the user's forward raised the error."""
    return _IN_FORWARD in vars(error)


def agree_across_processes(trainer: Trainer, look: Callable[[], _T]) -> _T:
    """What the first process sees. Every process looks, and all agree before they exchange anything."""
    error = seen = None
    try:
        seen = look()
    except Exception as failure:  # raised again below, once the other processes know
        if is_sharded(trainer):
            raise  # the others wait within the forward, for as long as this process lives
        error = failure
    try:
        if not trainer.strategy.reduce_boolean_decision(seen is not None) or seen is None:
            raise error or OtherProcessError("the capture failed on another process")
    finally:
        del error  # whose traceback holds this frame: in a circle they would keep all that the forward held
    return trainer.strategy.broadcast(seen)
