"""Guided Backpropagation and Guided Grad-CAM: which pixels speak for a score, in fine detail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_gradcam.attribution.axes import with_axes
from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.capture import summed_scores
from lightning_gradcam.attribution.functional import default_forward, gradcam
from lightning_gradcam.attribution.layers import Layer
from lightning_gradcam.attribution.layout import Grid, Layout
from lightning_gradcam.attribution.question import Question
from lightning_gradcam.attribution.spatial import upsampled
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import Target, as_target, score

_RELUS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6}
_HARDTANHS = {F.hardtanh, F.hardtanh_}


class GuidedReLUs(TorchFunctionMode):
    """A context in which ReLUs pass back positive gradients only; the model itself is not touched.

    Both modules and functions count, in place or not: ``nn.ReLU``, ``F.relu``, ``torch.relu``, ``Tensor.relu_`` and
    the rest of that family, and ReLU6, which is a ReLU below its ceiling. GELU, SiLU, leaky ReLUs and all others pass
    gradients as they always do: the rule is made for units that are off or on. What is built of a ReLU changes with it,
    such as a hard swish that calls ``F.relu6``. What runs inside a scripted module is not seen, nor is
    ``clamp(min=0)``.

    Source: Springenberg et al. 2015, arXiv 1412.6806: the gradient is kept where both it and the unit are positive.

    Attributes:
        calls: How many ReLUs have been changed so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _is_relu(func, args, kwargs):
            self.calls += 1
            if result.requires_grad:
                result.register_hook(_positive)
        return result


def _is_relu(func: Any, args: Any, kwargs: Any) -> bool:
    least = kwargs.get("min_val", args[1] if len(args) > 1 else -1)
    return func in _RELUS or (func in _HARDTANHS and least == 0)  # the latter is what `nn.ReLU6` calls


def _positive(gradient: Tensor) -> Tensor:
    return gradient.clamp_min(0)


def guided_gradients(
    model: nn.Module, batch: Batch, forward: Callable[[Batch], Any], target: Target, at_once: int | None = None
) -> Tensor:
    """The guided gradient of the score with respect to the images.

    Args:
        model: A stand-in, see :class:`~lightning_gradcam.attribution.stand_in.StandIn`.
        batch: The samples.
        forward: Runs the model on the batch.
        target: ``(output, batch) -> scores (n,)`` or ``(n, k)``.
        at_once: How many samples to run at a time, to save memory; ``None``: all.

    Returns:
        ``(n, c, *spatial)``, float32 on the CPU; of several scores a sample ``(n, k, c, *spatial)``.

    Raises:
        ValueError: If the forward calls no ReLU, or the score has no gradient at the images.

    Cost: a forward that keeps its graph and a backward down to the images for each score; with a forward's memory for
    training, but for the gradients of parameters.
    """
    parts = batch.parts(at_once)
    if len(parts) > 1:
        return torch.cat([guided_gradients(model, part, forward, target) for part in parts])
    with torch.enable_grad(), GuidedReLUs() as relus:
        batch = batch.apply(Tensor.clone)
        if not batch.images.is_floating_point():
            raise ValueError(
                f"guided backpropagation asks for the gradient at the images, and {batch.images.dtype} has none; give "
                "floating-point images"
            )
        images = batch.images.requires_grad_()
        scores = score(target, forward(batch), batch)
        if not relus.calls:
            raise ValueError(
                f"guided backpropagation is made for ReLUs, and the forward of {type(model).__name__} calls none: "
                "others, such as GELU and SiLU, pass gradients as they always do; Grad-CAM itself needs none"
            )
        gradients = [_gradient(column, images, more) for column, more in summed_scores(scores)]
    known = [gradient for gradient in gradients if gradient is not None]
    if len(known) < len(gradients):
        raise ValueError(
            "the score has no gradient at the images: the forward detaches it or runs a part under `no_grad`, so there "
            "is no guided backpropagation; Grad-CAM itself asks for less"
        )
    found = torch.stack(known, 1).reshape(*scores.shape, *images.shape[1:]).float().cpu()
    return found.movedim(scores.ndim - 1 + batch.channel_axis, scores.ndim)


def _gradient(score: Tensor, images: Tensor, more: bool) -> Tensor | None:
    """The gradient at the images; ``None`` where there is none."""
    if not score.requires_grad:
        return None
    try:
        return torch.autograd.grad(score, images, allow_unused=True, retain_graph=more)[0]
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise ValueError(
            "a re-entrant checkpoint runs its part of the model anew where ReLUs cannot be reached; use "
            "`torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`"
        ) from error


def guide(maps: Tensor, gradients: Tensor) -> Tensor:
    """Guided Grad-CAM: the guided gradient times the positive part of the map, brought to the image linearly.

    Source: Selvaraju et al., ICCV 2017, arXiv 1610.02391, section 3.2.

    Args:
        maps: Signed maps ``(n, *grid)``.
        gradients: ``(n, c, *spatial)``.

    Returns:
        ``(n, c, *spatial)``, signed.
    """
    return upsampled(maps.relu(), gradients.shape[2:])[:, None] * gradients


def guided_backprop(
    model: nn.Module,
    images: Tensor,
    target: Target | str | int | Sequence[int] = "predicted",
    labels: Tensor | None = None,
    time_axis: int | None = None,
) -> Tensor:
    """Guided Backpropagation of some images, with no Trainer.

    Source: Springenberg et al. 2015, arXiv 1412.6806. It barely depends on the class that is asked for; Grad-CAM does,
    and :func:`guided_gradcam` is their product.

    Args:
        model: See :func:`~lightning_gradcam.gradcam`.
        images: As for :func:`~lightning_gradcam.gradcam`, floating-point.
        target: See :func:`~lightning_gradcam.gradcam`.
        labels: For ``target="label"``.
        time_axis: Of clips, see :func:`~lightning_gradcam.gradcam`.

    Returns:
        ``(n, c, *spatial)``, signed, float32 on the CPU, in the score's unit per unit of the image; of several scores a
        sample ``(n, k, c, *spatial)``.

    Raises:
        ValueError: If the forward calls no ReLU, see :class:`GuidedReLUs`, or an argument is wrong.
        TypeError: If an argument is of another type.
    """
    ask, given = as_target(target), Batch(images, labels, time_axis=time_axis)
    stand_in = StandIn(model)

    def look(model: nn.Module) -> Tensor:
        forward = partial(default_forward, model)
        batch, _ = with_axes(model, given, forward)
        question = Question(stand_in.of(ask)).tried_on(forward, batch)
        return guided_gradients(model, batch, question.to_answer(forward), question)

    return stand_in.look(look)


def guided_gradcam(
    model: nn.Module,
    images: Tensor,
    target_layer: Layer | None = None,
    target: Target | str | int | Sequence[int] = "predicted",
    grid: Grid | Layout | None = None,
    labels: Tensor | None = None,
    time_axis: int | None = None,
) -> Tensor:
    """Guided Grad-CAM of some images, with no Trainer: :func:`guided_backprop` where Grad-CAM looks.

    Args:
        model: See :func:`~lightning_gradcam.gradcam`, as all the others.
        images: As for :func:`guided_backprop`.
        target_layer: The layer of the map.
        target: What to ask for.
        grid: How the layer's output lies on the image.
        labels: For ``target="label"``.
        time_axis: Of clips.

    Returns:
        As :func:`guided_backprop`.

    Raises:
        ValueError: See :func:`guided_backprop` and :func:`~lightning_gradcam.gradcam`.
        TypeError: If an argument is of another type.
    """
    gradients = guided_backprop(model, images, target, labels, time_axis)
    maps = gradcam(model, images, target_layer, target, "gradcam", grid, labels, time_axis)
    axes = images.ndim - 2
    scores = maps.shape[:-axes]
    return guide(maps.flatten(0, -axes - 1), gradients.flatten(0, -axes - 2)).unflatten(0, scores)
