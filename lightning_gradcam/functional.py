"""Grad-CAM of a batch: the engine of the callback, and the same as a plain function without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradcam.batch import Batch
from lightning_gradcam.capture import capture
from lightning_gradcam.layers import Layer, check_layers, find_layer, locate
from lightning_gradcam.layout import Grid, Layout, as_layout, to_map
from lightning_gradcam.methods import Method, as_method
from lightning_gradcam.targets import Prediction, Target, as_target, predict, score


@dataclass(frozen=True)
class Observation:
    """What one look at the fixed batch gave, on the CPU.

    Attributes:
        maps: The signed map of each layer by its name, ``(n, h, w)`` float32, before the ReLU.
        scores: ``(n,)`` float32, the target's score of each sample.
        prediction: What the model predicts; ``None`` where its output holds no logits.
    """

    maps: dict[str, Tensor]
    scores: Tensor
    prediction: Prediction | None


def observe(
    model: nn.Module,
    batch: Batch,
    layouts: Mapping[str, Layout],
    forward: Callable[[Batch], Any],
    target: Target,
    method: Method,
    at_once: int | None = None,
) -> Observation:
    """Capture layers on a batch and turn each into a signed map.

    Args:
        model: The model; it is left as it was.
        batch: The samples, for the target.
        layouts: The layers by their full dotted names, and how the output of each lies on a grid.
        forward: Runs the model on the batch.
        target: ``(output, batch) -> scores (n,)``.
        method: ``(activations, gradients) -> map (n, h, w)``.
        at_once: How many samples to run at a time, to save memory; ``None``: all.

    Raises:
        ValueError: See :func:`~lightning_gradcam.capture.capture`; also if a layer gives no spatial map.
    """
    if at_once is not None and at_once < len(batch.images):
        starts = range(0, len(batch.images), at_once)
        parts = [batch.part(slice(start, start + at_once)) for start in starts]
        return _join([observe(model, part, layouts, forward, target, method) for part in parts])
    n = len(batch.images)
    layers = dict(find_layer(model, name) for name in layouts)
    seen = capture(model, layers, lambda: forward(batch), lambda output: score(target, output, batch))
    maps = {}
    for name, layout in layouts.items():
        activations = to_map(name, seen.activations[name], layout, n).float()
        signed = method(activations, layout(seen.gradients[name]).float())
        if signed.shape != (n, *activations.shape[2:]):
            raise ValueError(
                f"`method` must give one map a sample, shape {(n, *activations.shape[2:])}, got {tuple(signed.shape)}"
            )
        maps[name] = signed.cpu()
    return Observation(maps, seen.scores.float().cpu(), predict(seen.output, batch))


def _join(parts: Sequence[Observation]) -> Observation:
    """One observation of the samples of several."""
    predictions = [part.prediction for part in parts if part.prediction is not None]
    prediction = None
    if len(predictions) == len(parts):
        right = [one.right for one in predictions if one.right is not None]
        prediction = Prediction(
            torch.cat([one.probabilities for one in predictions]),
            torch.cat([one.classes for one in predictions]),
            torch.cat(right) if right else None,
        )
    maps = {name: torch.cat([part.maps[name] for part in parts]) for name in parts[0].maps}
    return Observation(maps, torch.cat([part.scores for part in parts]), prediction)


def gradcam(
    model: nn.Module,
    images: Tensor,
    target_layer: Layer | None = None,
    target: Target | str | int = "predicted",
    method: str | Method = "gradcam",
    grid: Grid | Layout | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Grad-CAM of some images, with no Trainer.

    The model is left as it was: its modes, flags, buffers, gradients and the random state.

    Args:
        model: Takes ``images`` and returns logits ``(n, classes)``, or something that has them as ``.logits``,
            ``["logits"]`` or its first item.
        images: ``(n, c, H, W)``, as the model expects them, on its device.
        target_layer: A dotted name or a module; ``None`` chooses one, see :class:`~lightning_gradcam.GradCAMCallback`.
        target: ``"predicted"``, ``"label"``, a class index, or a function ``(output, batch) -> scores (n,)``. To
            choose a layer it is asked about the first samples only, so it must read ``batch.labels``.
        method: ``"gradcam"``, ``"hirescam"``, ``"gradcam++"``, ``"layercam"``, ``"xgradcam"``, or a function
            ``(activations, gradients) -> map (n, h, w)``.
        grid: How the layer's output lies on the image, see :class:`~lightning_gradcam.GradCAMCallback`.
        labels: For ``target="label"``, see :class:`~lightning_gradcam.Batch`.

    Returns:
        Signed maps ``(n, h, w)``, float32 on the CPU, at the layer's own resolution. ``map.relu()`` is what the
        paper shows.

    Raises:
        ValueError: If an argument is not one of these, or the layer gives no map. The message says what to do.
        TypeError: If an argument is of another type.
    """
    ask, compute = as_target(target), as_method(method)
    batch = Batch(images, labels)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError(f"{type(model).__name__} has layers without a shape; run it once on a batch before")

    def forward(batch: Batch) -> Any:
        return model(batch.images.clone())

    layer = check_layers(None if target_layer is None else [target_layer], grid)
    layout = None if grid is None else as_layout(grid)
    layouts, _ = locate(model, layer, layout, batch, forward, ask)
    (signed,) = observe(model, batch, layouts, forward, ask, compute).maps.values()
    return signed
