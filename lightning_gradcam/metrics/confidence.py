"""How sure the model stays where it sees no more of the image than the map shows: average drop and increase.

The model sees the image times the map, whose positive part is scaled to a maximum of 1 at the image's resolution. Where
the map is 1 the image is whole, where it is 0 there is the baseline, in between a mixture of both. An empty map shows
nothing, and tells nothing: its sample is left out.

Source: Chattopadhay et al., Grad-CAM++, WACV 2018, arXiv 1710.11063, the section on objective evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.functional import default_forward
from lightning_gradcam.attribution.targets import Target
from lightning_gradcam.metrics.faithfulness import Forward, check_batch, check_maps, scores_of_masked_images
from lightning_gradcam.metrics.heights import at_image
from lightning_gradcam.metrics.replacement import Baseline

__all__ = ["average_drop", "average_increase"]


def average_drop(
    model: nn.Module,
    batch: Batch,
    maps: Tensor,
    target: Target | str | int = "label",
    baseline: Baseline = 0.0,
    forward_fn: Forward = default_forward,
    at_once: int | None = None,
) -> float:
    """The share of the target's probability that is lost where the model sees the image times its map alone.

    With ``Y`` the probability for the whole image and ``O`` for its product with the map this is the mean over samples
    of ``max(0, Y - O) / Y``. The paper gives it in percent. A map of ones loses nothing, so that maps which cover more
    of the image are favoured: read it beside :func:`~lightning_gradcam.metrics.drift.concentration`.

    Args:
        model: The model.
        batch: The samples, as the model expects them, on its device.
        maps: Signed maps ``(n, *grid)`` of these samples for this target, at most as fine as the image.
        target: As for :func:`~lightning_gradcam.gradcam`; its probability as for
            :func:`~lightning_gradcam.metrics.faithfulness.deletion`. A function must give scores of at least 0.
        baseline: What is seen where the map is 0, see :func:`~lightning_gradcam.metrics.faithfulness.occlusion`. By
            default 0, as the product with the map has it: the mean colour of images that were normalised by their mean.
        forward_fn: ``(model, batch) -> output``; by default ``model(batch.images)``.
        at_once: How many samples to run at a time, to save memory; ``None``: all.

    Returns:
        A share in [0, 1], smaller is better. Samples whose map is empty or not finite are left out, and so are those
        whose whole image has a probability of 0; NaN if none is left, or the model gives NaN.

    Raises:
        ValueError: If an argument is not one of these, or the target cannot read the output or gives scores below 0.
        TypeError: If an argument is of another type.

    Cost: two forwards of the batch, one more for ``"predicted"``.
    """
    whole, seen = _probabilities(model, batch, maps, target, baseline, forward_fn, at_once)
    if (whole < 0).any():
        raise ValueError(
            f"`target` must give scores of at least 0, of which a share can be lost, got {whole.min().item():.4g}; "
            "let the function return probabilities"
        )
    drops = (whole - seen).clamp_min(0) / whole
    return drops[whole != 0].mean().item()


def average_increase(
    model: nn.Module,
    batch: Batch,
    maps: Tensor,
    target: Target | str | int = "label",
    baseline: Baseline = 0.0,
    forward_fn: Forward = default_forward,
    at_once: int | None = None,
) -> float:
    """The share of samples of which the model is surer where it sees the image times its map alone.

    That is where ``Y < O``, see :func:`average_drop`: the map has left out what confused the model.

    Args:
        model: As for :func:`average_drop`, as all others.
        batch: As there.
        maps: As there.
        target: As there; of a function any scores.
        baseline: As there.
        forward_fn: As there.
        at_once: As there.

    Returns:
        A share in [0, 1], larger is better. Samples whose map is empty or not finite are left out; NaN if none is left,
        or the model gives NaN.

    Raises:
        ValueError: If an argument is not one of these, or the target cannot read the output.
        TypeError: If an argument is of another type.

    Cost: as :func:`average_drop`.
    """
    whole, seen = _probabilities(model, batch, maps, target, baseline, forward_fn, at_once)
    rises = torch.where(whole.isnan() | seen.isnan(), torch.nan, (whole < seen).float())
    return rises.mean().item()


def _probabilities(
    model: nn.Module,
    batch: Batch,
    maps: Tensor,
    target: Target | str | int,
    baseline: Baseline,
    forward_fn: Forward,
    at_once: int | None,
) -> tuple[Tensor, Tensor]:
    """The target's probability for whole images and for their products with the maps, of samples that have a map."""
    check_batch(batch, at_once)
    check_maps(maps, batch)
    shown = at_image(maps.to(batch.images.device), batch.size)
    masks = [torch.zeros_like(shown, dtype=torch.bool), 1 - shown]
    whole, seen = scores_of_masked_images(
        model, batch, lambda: iter(masks), target, baseline, forward_fn, at_once, as_probability=True
    )
    readable = shown.flatten(1).any(1).cpu()
    return whole[readable], seen[readable]
