"""The checks of a trained model's maps: whether they know what it has learned, and whether it needs what they show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradcam.attribution.batch import Batch, few_of
from lightning_gradcam.attribution.functional import Attribution
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.targets import TopTarget, predicted, reads_logits
from lightning_gradcam.metrics.drift import similarity
from lightning_gradcam.metrics.numbers import aggregate, by_group
from lightning_gradcam.metrics.randomization import parameters_above, randomizing
from lightning_gradcam.metrics.removal import area_under_curve, fix_classes, probability, scores_under_masks
from lightning_gradcam.run.probe import Probe

_SEED = 0  # of the random weights, and of the random order of the cells


@dataclass(frozen=True)
class Checks:
    """What the checks have found: plain data on the CPU.

    Attributes:
        maps: The signed maps ``(N, *grid)`` that were checked, by the prefix of a layer's keys.
        values: For each of these ``(N,)`` by key.
        notes: What is left out, and why.
    """

    maps: dict[str, Tensor]
    values: dict[str, dict[str, Tensor]]
    notes: list[str]

    def numbers(self, groups: Sequence[str], counted: Sequence[int] | None) -> dict[str, float]:
        """One number a key, and one for each group, by full key."""
        found = {}
        for prefix, values in self.values.items():
            for suffix, members in by_group(groups, len(self.maps[prefix]), counted).items():
                chosen = aggregate({key: value[members] for key, value in values.items()})
                found.update({f"{prefix}/{key}{suffix}": number for key, number in chosen.items()})
        return found

    def are_of(self, maps: dict[str, Tensor]) -> bool:
        """Whether these maps are those that were checked, up to what rounding does."""
        return all(
            torch.allclose(maps[prefix], one, 0, 0.01 * float(one.abs().max()), equal_nan=True)
            for prefix, one in self.maps.items()
        )


class _LeftOutError(ValueError):
    """A number cannot be known for this model or target."""


@dataclass(frozen=True)
class Checker:
    """Checks the maps of a look, by the stand-in, the forward and the question of the run.

    Attributes:
        probe: What all looks share.
        batch: The samples, on the model's device.
        seen: Their maps now.
        look: Runs ``(model, at_once) -> result`` on the stand-in, within the memory that there is.
        ask: ``(model, probe) -> (forward, question)``.
        attribute: ``(model, at_once, probe, batch)`` to the maps.
        shared: The ids of the model's parameters, of which the stand-in has doubles or, of some classes, itself.
        is_sharded: Whether each process holds a part of them.
        left_out: ``what -> context`` in which a failure of one check keeps nothing from the others.
    """

    probe: Probe
    batch: Batch
    seen: Attribution
    look: Callable[[Callable[..., Tensor]], Tensor]
    ask: Callable[[nn.Module, Probe], tuple[Callable[[Batch], Any], Question]]
    attribute: Callable[..., Attribution]
    shared: Collection[int]
    is_sharded: bool
    left_out: Callable[[str], AbstractContextManager[None]]

    def check(self) -> Checks:
        """Check the maps of every layer."""
        fixed = self._with_fixed_classes()
        maps = {prefix: self.seen.maps[name] for prefix, name in self.probe.layers.items()}
        checks = Checks(maps, {prefix: {} for prefix in maps}, [])
        for prefix, name in self.probe.layers.items():
            for what, values in (
                (f"`randomization_drift` of `{name}`", partial(fixed._randomization_drift, maps[prefix], name)),
                (f"`insertion` and `deletion` of `{name}`", partial(fixed._areas, maps[prefix])),
            ):
                with self.left_out(f"the check of {what}"):
                    try:
                        checks.values[prefix].update(values())
                    except _LeftOutError as error:
                        checks.notes.append(f"leaves {what} out: {error}")
        return checks

    def _randomization_drift(self, maps: Tensor, layer: str) -> dict[str, Tensor]:
        """How far the maps move."""
        drift = 1 - similarity(maps, self.look(partial(self._redrawn_maps, layer=layer)))
        if bool(drift.isnan().all()):
            raise _LeftOutError("no map has a positive cell both with the weights as they are and with others")
        return {"randomization_drift": drift}

    def _with_fixed_classes(self) -> Checker:
        """The same that asks for the classes predicted now, also where another model would predict others."""
        question = self.probe.question
        if self.seen.classes is None or not (question.target is predicted or isinstance(question.target, TopTarget)):
            return self
        batch, target = fix_classes(self.batch, self.seen.classes.reshape(-1, self.seen.k))
        return replace(self, batch=batch, probe=replace(self.probe, question=replace(question, target=target)))

    def _redrawn_maps(self, model: nn.Module, at_once: int | None, *, layer: str) -> Tensor:
        """The maps of a layer with random weights in all that follows it."""
        if self.is_sharded:
            raise _LeftOutError("each process holds a part of the weights only, of which it cannot draw others")
        forward, _ = self.ask(model, self.probe)
        parameters = parameters_above(model, layer, lambda: forward(few_of(self.batch)))
        if any(id(parameter) in self.shared for parameter in parameters):
            raise _LeftOutError("weights after it are of a class of their own, which has no copies to draw others for")
        if not any(bool((one != one.flatten()[0]).any()) for one in parameters if one.numel()):
            raise _LeftOutError("no module with weights to draw is called after it alone; a layer before it has some")
        probe = replace(self.probe, layouts={layer: self.probe.layouts[layer]})
        with randomizing(_SEED) as randomize:
            for parameter in parameters:
                randomize(parameter)
            return self.attribute(model, at_once, probe=probe, batch=self.batch).maps[layer]

    def _areas(self, maps: Tensor) -> dict[str, Tensor]:
        """The areas under the probability as pixels come and go in the order of the maps, and in a random one."""
        if self.seen.k > 1:
            raise _LeftOutError(
                f"the target gives {self.seen.k} scores a sample, and these are of one; ask for one class"
            )
        if self.seen.prediction is None or not reads_logits(self.probe.question.target):
            raise _LeftOutError("the target gives no probability of a class")
        if not bool((maps > 0).any()):
            raise _LeftOutError("no map has a positive cell, and so none an order of pixels")
        generator = torch.Generator().manual_seed(_SEED)
        noise = torch.rand(maps.shape, generator=generator, dtype=torch.float32, device="cpu")
        found = {}
        for suffix, order in (("", maps), ("_random", noise)):
            for key, inserting in (("insertion", True), ("deletion", False)):
                area = area_under_curve(self._probabilities, self.batch, order, inserting)
                found[key + suffix] = torch.where(found.get(key, area).isnan(), torch.nan, area)
        one, *others = (area.nan_to_num() for area in found.values())
        if one.any() and all(torch.equal(one, other) for other in others):
            raise _LeftOutError(
                "the model says the same of images without pixels: `forward_fn` reads `inputs` and not the images, or "
                "the model does not look at them"
            )
        return found

    def _probabilities(self, masks: Callable[[], Any]) -> Tensor:
        """What the model gives the target's class under each of the masks, ``(masks, n)``."""

        def run(model: nn.Module, at_once: int | None) -> Tensor:
            forward, question = self.ask(model, self.probe)
            likely = probability(question.target, question.has_sigmoid)
            return scores_under_masks(question.to_reading(forward), likely, self.batch, masks(), at_once=at_once)

        return self.look(run)
