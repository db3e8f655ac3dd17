"""Whether a map tells the truth about the model: what the score does when pixels are taken away, or weights.

Each check is a function of a model and a :class:`~lightning_gradcam.Batch`; all are slow beside a map. They leave the
model, the images and the random state as they were, compute where the images are, and return float32 on the CPU. Where
``target`` is ``"predicted"`` it is the class predicted from the untouched image by the untouched model, throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradcam.attribution.batch import Batch
from lightning_gradcam.attribution.functional import default_forward
from lightning_gradcam.attribution.question import reading_logits
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.attribution.targets import Target, as_target
from lightning_gradcam.metrics.removal import (
    STEPS,
    area_under_curve,
    fix_predicted_classes,
    probability,
    scores_under_masks,
    signed_at_image,
    varies,
)
from lightning_gradcam.metrics.replacement import Baseline, check_number, patch_windows
from lightning_gradcam.metrics.shapes import check_same_shape, grid_letters

__all__ = ["at_patches", "deletion", "insertion", "occlusion", "occlusion_correlation", "spearman"]

Forward = Callable[[nn.Module, Batch], Any]


def occlusion(
    model: nn.Module,
    batch: Batch,
    target: Target | str | int = "label",
    patch: int | None = None,
    stride: int | None = None,
    baseline: Baseline = 0.0,
    forward_fn: Forward = default_forward,
    at_once: int | None = None,
) -> Tensor:
    """How much the score falls when a square patch of the image is replaced, at each position of the patch.

    The patch moves by ``stride`` from the upper left corner on. The last one of a row or column is moved back to end
    at the border: every patch has the same size, and together they cover the image. Of a volume or clip it is a cube,
    of a signal a span; of a shorter axis than the patch, such as a few frames, it takes all.

    Args:
        model: The model.
        batch: The samples, as the model expects them, on its device.
        target: As for :func:`~lightning_gradcam.gradcam`.
        patch: The side of the patch in pixels; ``None``: an eighth of the image's shorter side, rounded up; of
            three axes of the second longest.
        stride: The step in pixels, at most ``patch``; ``None``: ``patch``.
        baseline: What replaces the pixels, in the unit of the images: a number, one per channel, or a function
            ``images -> images``, such as a blur. 0 is the mean colour of images that were normalised by their mean.
        forward_fn: ``(model, batch) -> output``; by default ``model(batch.images)``.
        at_once: How many samples to run at a time, to save memory; ``None``: all.

    Returns:
        ``(n, rows, columns)``, or another number of axes: the score of the untouched image less that of the changed
        one, in the score's unit; positive where the patch held evidence for the target. An image of H pixels has
        ``ceil((H - patch) / stride) + 1`` rows.

    Raises:
        ValueError: If an argument is not one of these, or the target cannot read the output.
        TypeError: If an argument is of another type.

    Cost: one forward of the batch for each position and one for the untouched images, by default 65 or fewer for
    square images and 513 for cubes; one more for ``"predicted"``.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901, who look at the probability; this is the score that maps explain.
    """
    check_batch(batch, at_once)
    windows = [side.to(batch.images.device) for side in patch_windows(batch, patch, stride)]

    def masks() -> Iterator[Tensor]:
        yield torch.zeros(1, *batch.size, dtype=torch.bool, device=batch.images.device)
        yield from (torch.stack(torch.meshgrid(*sides, indexing="ij")).all(0)[None] for sides in product(*windows))

    untouched, *changed = scores_of_masked_images(model, batch, masks, target, baseline, forward_fn, at_once)
    return (untouched - torch.stack(changed)).T.reshape(-1, *map(len, windows))


def occlusion_correlation(
    model: nn.Module,
    batch: Batch,
    maps: Tensor,
    target: Target | str | int = "label",
    patch: int | None = None,
    stride: int | None = None,
    baseline: Baseline = 0.0,
    forward_fn: Forward = default_forward,
    at_once: int | None = None,
) -> Tensor:
    """The rank correlation of each map ``(n, *grid)`` with the fall of the score under :func:`occlusion`.

    This is how the Grad-CAM paper measures faithfulness (Selvaraju et al. 2017, arXiv 1610.02391): a faithful map is
    high where the model misses the pixels most. A patch takes away all that lies under it, so the map is averaged over
    each patch. Signs count on both sides: a negative cell says that the score rises without it, and is held to that.
    Pass ``maps.relu()`` to ask about the positive evidence alone.

    To compare the maps of several methods, call :func:`occlusion` once, and :func:`spearman` on it and the
    :func:`at_patches` of each. The maps are of the same samples and target; the rest is as for :func:`occlusion`.

    Returns:
        ``(n,)`` in [-1, 1]; higher is better, chance gives about 0. NaN where the map or the fall of the score is
        constant or not finite.

    Raises:
        ValueError: See :func:`occlusion`; also if the maps are not ``(n, *grid)``.
        TypeError: If an argument is of another type.

    Cost: as :func:`occlusion`.
    """
    check_batch(batch, at_once)
    means = at_patches(maps, batch, patch, stride)
    found = spearman(means, occlusion(model, batch, target, patch, stride, baseline, forward_fn, at_once))
    return torch.where(varies(maps), found, torch.nan)


def at_patches(maps: Tensor, batch: Batch, patch: int | None = None, stride: int | None = None) -> Tensor:
    """The mean of each map ``(n, *grid)`` over each patch of :func:`occlusion`, ``(n, rows, columns)`` or likewise.

    The map is first brought to the image's size as the pictures show it, bilinear.
    """
    check_maps(maps, batch)
    *others, last = (side.float() / side[0].sum() for side in patch_windows(batch, patch, stride))
    means = signed_at_image(maps, batch)
    for axis, side in enumerate(others, 1):
        means = (side @ means.movedim(axis, -2)).movedim(-2, axis)
    return means @ last.T


def deletion(
    model: nn.Module,
    batch: Batch,
    maps: Tensor,
    target: Target | str | int = "label",
    steps: int = STEPS,
    baseline: Baseline = 0.0,
    forward_fn: Forward = default_forward,
    at_once: int | None = None,
) -> Tensor:
    """The area under the probability of the target as pixels are removed, those that the map calls strongest first.

    The map is brought to the image's size as the pictures show it, bilinear. It is read with its sign: pixels that
    speak against the target go last. Pixels of the same value go in reading order. The area is taken by the trapezoid
    rule over the share of pixels removed.

    The probability is the softmax of the class; the sigmoid for a one-logit head and for multi-hot labels, of which it
    is the sum over a sample's labels. A function as target gives its raw score instead, since nothing says how to turn
    that into a probability.

    Args:
        model: The model.
        batch: The samples, as the model expects them, on its device.
        maps: Signed maps ``(n, *grid)`` of these samples for this target, at any resolution.
        target: As for :func:`~lightning_gradcam.gradcam`.
        steps: In how many equal steps to remove all pixels, at least 1.
        baseline: What replaces the pixels, see :func:`occlusion`.
        forward_fn: ``(model, batch) -> output``; by default ``model(batch.images)``.
        at_once: How many samples to run at a time, to save memory; ``None``: all.

    Returns:
        ``(n,)`` in [0, 1], of multi-hot labels up to their number, for a function in the unit of its scores; lower is
        better. It depends on how sure the model
        is as well: compare maps of one model only. NaN where a map has no positive cell, is constant, which gives
        no order, or is not finite.

    Raises:
        ValueError: If an argument is not one of these, or the target cannot read the output.
        TypeError: If an argument is of another type.

    Cost: ``steps + 1`` forwards of the batch, one more for ``"predicted"``.

    Source: Petsiuk et al. 2018 (RISE), arXiv 1806.07421.
    """
    return _area_under_curve(model, batch, maps, target, steps, baseline, forward_fn, at_once, inserting=False)


def insertion(
    model: nn.Module,
    batch: Batch,
    maps: Tensor,
    target: Target | str | int = "label",
    steps: int = STEPS,
    baseline: Baseline = 0.0,
    forward_fn: Forward = default_forward,
    at_once: int | None = None,
) -> Tensor:
    """The area under the probability of the target as pixels come back, those that the map calls strongest first.

    :func:`deletion` the other way round: from the baseline to the image. All arguments are as there. The paper starts
    from a blurred image, which shows no edges that are not in the image; so does
    ``baseline=lambda images: torchvision.transforms.functional.gaussian_blur(images, [51, 51])``.

    Returns:
        As :func:`deletion`, but higher is better.

    Raises:
        ValueError: See :func:`deletion`.
        TypeError: If an argument is of another type.

    Cost: as :func:`deletion`.

    Source: Petsiuk et al. 2018 (RISE), arXiv 1806.07421.
    """
    return _area_under_curve(model, batch, maps, target, steps, baseline, forward_fn, at_once, inserting=True)


def spearman(maps: Tensor, others: Tensor) -> Tensor:
    """The rank correlation of two maps of each sample, both ``(n, *grid)``; equal values share the mean of their ranks.

    Returns:
        ``(n,)`` in [-1, 1]: 1 where the order of the cells is the same, -1 where it is reversed. NaN where either map
        is constant or not finite.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(maps, others)
    return F.cosine_similarity(_ranks(maps), _ranks(others), dim=1).float().clamp(-1, 1)


def _ranks(maps: Tensor) -> Tensor:
    """The rank of each cell less the mean rank, ``(n, cells)`` float64; NaN where a map has none."""
    cells = maps.detach().cpu().flatten(1).contiguous()
    ordered = cells.sort(1).values
    less, not_more = (torch.searchsorted(ordered, cells, right=right) for right in (False, True))
    ranks = (less + not_more).double() / 2
    return torch.where(varies(maps)[:, None], ranks - ranks.mean(1, keepdim=True), torch.nan)


def check_batch(batch: Batch, at_once: int | None) -> None:
    """Refuse what no check can work with; raise a ``TypeError`` or ``ValueError``."""
    if not isinstance(batch, Batch):
        raise TypeError(f"`batch` must be a `Batch`, got {type(batch).__name__}; write `Batch(images, labels)`")
    if at_once is not None:
        check_number("at_once", at_once, 1)


def check_maps(maps: Tensor, batch: Batch) -> None:
    """Refuse maps that are not one for each sample; raise a ``ValueError``."""
    n, d = len(batch.images), len(batch.size)
    got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
    if not isinstance(maps, Tensor) or maps.ndim != 1 + d or len(maps) != n or not maps.numel():
        shape = ", ".join([str(n), *grid_letters(d)])
        raise ValueError(f"`maps` must be a tensor ({shape}), one map for each sample, got {got}")


def forward_on_copies(model: nn.Module, forward_fn: Forward) -> Callable[[Batch], Any]:
    """Runs the model on copies: it may change its input in place."""
    return lambda batch: forward_fn(model, batch.apply(Tensor.clone))


def scores_of_masked_images(
    model: nn.Module,
    batch: Batch,
    masks: Callable[[], Iterator[Tensor]],
    target: Target | str | int,
    baseline: Baseline,
    forward_fn: Forward,
    at_once: int | None,
    as_probability: bool = False,
) -> Tensor:
    """See :func:`scores_under_masks`; with ``as_probability`` of probabilities, but for a function as target."""
    own = as_target(target)
    stand_in = StandIn(model)

    def look(model: nn.Module) -> Tensor:
        ask, run = stand_in.of(own), forward_on_copies(model, stand_in.of(forward_fn))
        run, sigmoid = reading_logits(run, ask, batch)
        asked = batch
        if target == "predicted":
            asked, ask = fix_predicted_classes(batch, run, at_once)
        if as_probability and not callable(target):
            ask = probability(ask, sigmoid)
        return scores_under_masks(run, ask, asked, masks(), baseline, at_once)

    return stand_in.look(look)


def _area_under_curve(
    model: nn.Module,
    batch: Batch,
    maps: Tensor,
    target: Target | str | int,
    steps: int,
    baseline: Baseline,
    forward_fn: Forward,
    at_once: int | None,
    inserting: bool,
) -> Tensor:
    """See :func:`deletion` and :func:`insertion`."""
    check_batch(batch, at_once)
    check_maps(maps, batch)
    check_number("steps", steps, 1)

    def scores(masks: Callable[[], Iterator[Tensor]]) -> Tensor:
        return scores_of_masked_images(model, batch, masks, target, baseline, forward_fn, at_once, as_probability=True)

    return area_under_curve(scores, batch, maps, inserting, steps)
