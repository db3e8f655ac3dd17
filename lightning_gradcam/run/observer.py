"""One look at the fixed batch: on every process the same, and within the memory that there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_gradcam.attribution.batch import Batch, joined, shift
from lightning_gradcam.attribution.functional import Attribution, attribute, joined_parts, rows_of
from lightning_gradcam.attribution.guided import guided_gradients
from lightning_gradcam.attribution.layout import FEW_CELLS, Layout, fewest_cells
from lightning_gradcam.attribution.prediction import Prediction, Words
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.spatial import in_words
from lightning_gradcam.run.checks import Checker, Checks
from lightning_gradcam.run.failures import OtherProcessError, left_out
from lightning_gradcam.run.probe import Probe
from lightning_gradcam.run.settings import Settings
from lightning_gradcam.run.setup import prepare
from lightning_gradcam.run.trainer import (
    LightningModule,
    Trainer,
    garbage_collection_cuda,
    is_oom_error,
    is_sharded,
    stand_in_for,
)

_T = TypeVar("_T")
_IN_FORWARD = "_raised_in_forward"
# Cells a side of what a run measures, records and compares, by the number of sides: some 16 kB a sample at most.
_FINEST = {1: 256, 2: 32, 3: 16}


@dataclass(frozen=True)
class Seen:
    """What one look gave: plain data on the CPU, a row for each of the ``k`` scores of each sample, ``N`` in all.

    Attributes:
        maps: Signed maps ``(N, *grid)`` by the prefix of a layer's keys.
        shifted: The same of the images shifted by one pixel; empty where there is to be no noise floor.
        scores: ``(N,)``, the target's.
        target_classes: ``(N,)``, the class that each map is of; ``None`` where the target does not tell.
        prediction: What the model predicts; ``None`` where it is no classifier.
        words: What it says instead, where the target tells.
        k: How many scores a sample has.
        gradients: Guided gradients ``(p, c, *spatial)`` of the pictured rows; ``None`` where they were not asked for.
    """

    maps: dict[str, Tensor]
    shifted: dict[str, Tensor]
    scores: Tensor
    target_classes: Tensor | None
    prediction: Prediction | None
    words: Words | None
    k: int
    gradients: Tensor | None = None

    def part(self, rows: list[int]) -> Seen:
        """What was seen of some rows; the gradients stay as they are."""
        return replace(
            self,
            maps={prefix: maps[rows] for prefix, maps in self.maps.items()},
            shifted={prefix: maps[rows] for prefix, maps in self.shifted.items()},
            scores=self.scores[rows],
            target_classes=None if self.target_classes is None else self.target_classes[rows],
            prediction=self.prediction and self.prediction.part(rows),
            words=self.words and self.words.part(rows),
        )


class Observer:
    """Looks at the module on the fixed batch, by a stand-in that is kept from one look to the next.

    Attributes:
        samples_at_once: How many samples the memory has room for; ``None``: all.
        layouts: By the name of a layer, how its output lies on the image, once a look has told. No part of what was
            seen, which goes from one process to the others: a layout may be any function of the user's.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, settings: Settings) -> None:
        self.samples_at_once: int | None = None
        self.layouts: Mapping[str, Layout] = {}
        self._trainer = trainer
        self._pl_module = pl_module
        self._settings = settings
        self._stand_in = stand_in_for(trainer, pl_module)
        self._joins_shifted: bool | None = None  # whether images and shifted images run as one batch, once known

    def prepare(self, restored: Mapping[str, Any] | None = None, first_batch: Any = None) -> Probe:
        """See :func:`~lightning_gradcam.run.setup.prepare`."""
        arguments = self._trainer, self._pl_module, self._settings, self._stand_in, self._run
        return prepare(*arguments, restored, first_batch)

    def look(self, probe: Probe) -> Seen:
        """Capture the maps of the batch and, for the noise floor, those of its images shifted by one pixel."""
        is_first = not self.layouts
        parts = [self._look_at(probe, part) for part in probe.batch.parts(probe.at_once)]
        if is_first and len(parts) > 1:
            self._tell_if_chunks_matter(probe, parts[0][0])
        seen, other = parts[0] if len(parts) == 1 else map(joined_parts, zip(*parts, strict=True))
        return Seen(
            {prefix: seen.maps[name] for prefix, name in probe.layers.items()},
            {prefix: other.maps[name] for prefix, name in probe.layers.items()} if other else {},
            seen.scores.flatten(),
            seen.classes,
            seen.prediction,
            seen.words,
            seen.k,
        )

    def guided_gradients(self, probe: Probe) -> Tensor:
        """The guided gradients of the pictured samples, ``(N, c, *spatial)``."""
        whole = probe.in_pictures.batch

        def of_part(part: Batch) -> Tensor:
            batch = self._on_device(part)

            def run(model: nn.Module, at_once: int | None) -> Tensor:
                forward, question = self._ask(model, probe)
                found = guided_gradients(model, batch, question.to_answer(forward), question, at_once)
                return found.flatten(0, -2 - len(batch.size))

            return self._within_memory(len(batch.images), run)

        return torch.cat([of_part(part) for part in whole.parts(probe.at_once)])

    def _on_device(self, batch: Batch) -> Batch:
        return batch.apply(lambda tensor: tensor.to(self._pl_module.device))

    def _look_at(self, probe: Probe, part: Batch) -> tuple[Attribution, Attribution | None]:
        """What is seen of some samples, and of their images shifted by one pixel."""
        batch = self._on_device(part)
        shifted = shift(batch) if self._settings.drift.noise_floor else None
        if shifted is None or not self._joins_shifted:
            seen = self._capture(probe, batch)
            other = None if shifted is None else self._capture(probe, shifted)
        else:
            seen, other = _halves(self._capture(probe, joined(batch, shifted.images)))
        if self._joins_shifted is None and shifted is not None and other is not None:
            seen, other = self._try_joined(probe, batch, shifted, seen, other)
        if not self.layouts:
            _tell_of_grids(seen, probe.batch, named=bool(self._settings.target_layer))
            self.layouts = seen.layouts
        return seen, other

    def check(self, probe: Probe) -> Checks:
        """Check the maps of the batch."""
        batch = self._on_device(probe.batch)
        within_memory = partial(self._within_memory, len(batch.images), at_once=probe.at_once)
        return Checker(
            probe,
            batch,
            within_memory(partial(self._attribute, probe=probe, batch=batch)),
            within_memory,
            self._ask,
            self._attribute,
            set(map(id, self._pl_module.parameters())),
            is_sharded(self._trainer),
            partial(left_out, self._trainer, raises=self._settings.on_error == "raise" or is_sharded(self._trainer)),
        ).check()

    def _tell_if_chunks_matter(self, probe: Probe, seen: Attribution) -> None:
        """Warn where a sample's map depends on which others run with it: the first chunk is run in another size."""
        chunk = len(seen.scores)
        few = probe.batch.part(slice(chunk // 2 if chunk > 1 else 2))
        try:
            other = self._capture(probe, self._on_device(few))
        except Exception:
            if is_sharded(self._trainer):
                raise
            return  # it counts on so many samples
        rows = slice(min(chunk, len(few.images)) * seen.k)
        if not _alike(rows_of(seen, rows), rows_of(other, rows)):
            rank_zero_warn(
                f"GradCAMCallback: the map of a sample depends on which others run with it, here {chunk} at a time. "
                "Compare numbers only with those of runs whose validation loader has the same batch size."
            )

    def _run(self, forward_fn: Callable[[Any, Batch], Any], model: nn.Module, batch: Batch) -> Any:
        """Run a stand-in as the user's steps would run the module; :func:`in_forward` tells what it raises."""
        try:
            with self._trainer.precision_plugin.forward_context():
                return forward_fn(model, batch.apply(Tensor.clone))  # it may change its input in place
        except Exception as error:
            vars(error)[_IN_FORWARD] = True
            raise

    def _ask(self, model: nn.Module, probe: Probe) -> tuple[Callable[[Batch], Any], Question]:
        """The forward of a stand-in, and the question whose target means its parts."""
        forward = partial(self._run, self._stand_in.of(probe.settings.forward_fn), model)
        return forward, replace(probe.question, target=self._stand_in.of(probe.question.target))

    def _capture(self, probe: Probe, batch: Batch) -> Attribution:
        return self._within_memory(len(batch.images), partial(self._attribute, probe=probe, batch=batch))

    def _attribute(self, model: nn.Module, at_once: int | None, *, probe: Probe, batch: Batch) -> Attribution:
        forward, question = self._ask(model, probe)
        method = self._stand_in.of(self._settings.method)
        layouts = self.layouts or probe.layouts
        return attribute(model, batch, layouts, forward, question, method, at_once, _FINEST[len(batch.size)])

    def _try_joined(
        self, probe: Probe, batch: Batch, shifted: Batch, seen: Attribution, other: Attribution
    ) -> tuple[Attribution, Attribution]:
        """Decide for the run whether both batches go through the model at once, which takes half the calls."""
        self._joins_shifted, apart = False, (seen, other)
        if self.samples_at_once is None and not is_sharded(self._trainer):
            look = partial(self._attribute, at_once=None, probe=probe, batch=joined(batch, shifted.images))
            with suppress(Exception):  # no memory, or a model or a target that counts on so many samples
                both = _halves(self._stand_in.look(look))
                self._joins_shifted = all(map(_alike, both, apart))
                return both if self._joins_shifted else apart
        return apart

    def _within_memory(self, samples: int, run: Callable[..., _T], at_once: int | None = None) -> _T:
        """Run; where memory runs short in smaller chunks, whose size is kept for the rest of the run."""
        while True:
            at_once = self.samples_at_once or at_once
            try:
                return self._stand_in.look(partial(run, at_once=at_once))
            except Exception as error:
                at_once = at_once or samples
                if not is_oom_error(error) or at_once == 1 or is_sharded(self._trainer):
                    raise
                self.samples_at_once = at_once // 2
            garbage_collection_cuda()


def _tell_of_grids(seen: Attribution, batch: Batch, named: bool) -> None:
    """Say of which layers the maps have fewer cells than the layer, and which of those that were named have few."""
    for name, grid in seen.grids.items():
        few = fewest_cells(grid, batch.time) < FEW_CELLS
        if named and (few or (batch.time is not None and grid[batch.time] == 1)):
            rank_zero_warn(
                f"GradCAMCallback: the {in_words(grid)} cells of `{name}` tell "
                f"{'little about places' if few else 'nothing of when'}; a layer before it has more."
            )
        finest = _FINEST[len(grid)]
        if max(grid) > finest:
            rank_zero_info(
                f"GradCAMCallback: `{name}` has {in_words(grid)} cells; its maps are summed down to at most {finest} a "
                "side, which keeps the record and the checkpoint small. `gradcam()` gives them in full."
            )


def _halves(both: Attribution) -> tuple[Attribution, Attribution]:
    """What was seen of two batches that went through the model as one."""
    half = len(both.scores) // 2 * both.k
    return rows_of(both, slice(half)), rows_of(both, slice(half, None))


def _alike(one: Attribution, other: Attribution) -> bool:
    """Whether maps and scores are equal to a hundred thousandth of their largest value."""
    pairs = [*zip(one.maps.values(), other.maps.values(), strict=True), (one.scores, other.scores)]
    if any(a.shape != b.shape for a, b in pairs):
        return False
    return all(torch.allclose(a, b, 0, 1e-5 * float(b.abs().max()), equal_nan=True) for a, b in pairs)


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
