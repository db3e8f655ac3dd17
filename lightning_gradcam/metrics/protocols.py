"""The published protocols that score maps against boxes and masks of the image.

All functions take signed maps, no finer than the image, and look at their positive part alone. It is brought to the
image's resolution, ``H`` by ``W`` pixels, bilinearly (``align_corners=False``). An empty map has no positive cell. A
pixel is inside a mask where the mask is above 0.5; an empty mask has no such pixel. Boxes are x0, y0, x1, y1 in pixels,
right and bottom exclusive; a true box without an area says that the sample has none.

The papers have images. Signals, volumes and clips are scored alike, with ``d`` = 1 or 3 spatial axes for 2: a pixel is
a sample of the signal or a voxel, the map is linear in every axis, distances are Euclidean, and a box has ``2 d``
numbers, all starts before all ends and the last axis first.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lightning_gradcam.attribution.spatial import Size, along_cells, cell_axes, upsampled
from lightning_gradcam.metrics.shapes import check_shapes

# Share of the maximum. Interpolating a map and its mirror image differs by up to 9e-6 of it, on a grid of 112.
_ROUNDING = 1e-5


def pointing_game(maps: Tensor, masks: Tensor, tolerance: float = 15.0) -> Tensor:
    """Whether each map's maximum points at the region: the pointing game.

    The maximum is a pixel of the map at image resolution. It is a hit if a pixel of the mask lies within the tolerance
    of it. Where several pixels are tied for the maximum, to 1e-5 of it, the value is the share of them that are
    hits, which is what one drawn at random scores on average. A constant map, and so one of a single cell, is tied
    everywhere and scores as chance does. The value of a mirrored image is the same.

    Source: Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018, arXiv 1608.00507.

    Args:
        maps: Signed maps ``(n, *grid)``.
        masks: ``(n, *size)``, 1 inside the region.
        tolerance: Largest distance of a hit from the region, centre to centre, in pixels of the image; at least 0.

    Returns:
        ``(n,)`` in [0, 1]: 1 is a hit, 0 a miss. NaN for a map that is empty or not finite and for an empty mask.

    Raises:
        ValueError: If the shapes do not fit, or the tolerance is negative or not finite.
    """
    check_shapes(maps=(maps, "ng"), masks=(masks, "ns"))
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"`tolerance` must be a number of pixels, at least 0, got {tolerance}")
    inside = masks > 0.5
    tied = _at_image(maps, masks.shape[1:]) >= 1 - _ROUNDING
    axes = cell_axes(masks)
    hits = (tied & _nearby(inside, tolerance)).sum(axes) / tied.sum(axes)
    return torch.where(inside.flatten(1).any(1), hits, torch.nan)  # 0 / 0 where no map is


def class_average(values: Tensor, classes: Tensor) -> float:
    """The mean of each class over its samples, and of the classes then, so that rare classes count as common ones do.

    Args:
        values: One number a sample, any shape. NaN is left out, and so is a class that has nothing else.
        classes: The class of each sample, whole numbers, of the same shape.

    Returns:
        The average, within the range of the values; NaN if no value is left.

    Raises:
        ValueError: If the shapes differ.
    """
    if values.shape != classes.shape:
        raise ValueError(
            f"`classes` must have the shape of `values`, {tuple(values.shape)}, got {tuple(classes.shape)}; "
            "give one class for each value"
        )
    known = ~values.isnan()
    _, index = classes[known].cpu().unique(return_inverse=True)
    totals = torch.bincount(index, weights=values[known].detach().cpu().double())
    return (totals / torch.bincount(index)).mean().item()


def pointing_game_with_rejection(maps: Tensor, masks: Tensor, threshold: float, tolerance: float = 15.0) -> Tensor:
    """The pointing game over the top ``k`` predicted classes of each image, whose maps may be rejected.

    A map is rejected if its maximum at its own resolution lies below the threshold; an empty map always is. For a
    class that the image does not show, a rejection is a hit and pointing anywhere is a miss. For one that it shows, a
    rejection is a miss and pointing counts as in :func:`pointing_game`.

    Source: Selvaraju et al., ICCV 2017, arXiv 1610.02391, the section on the pointing game.

    Args:
        maps: Signed maps ``(n, k, *grid)`` of the ``k`` classes.
        masks: ``(n, k, *size)``, 1 inside the region of the class; empty where the image does not show it.
        threshold: Least maximum of a map that points, in the unit of the maps.
        tolerance: As for :func:`pointing_game`, in pixels.

    Returns:
        ``(n, k)`` in [0, 1]: 1 is a hit, 0 a miss. NaN for a map that is not finite.

    Raises:
        ValueError: As for :func:`pointing_game`.
    """
    check_shapes(maps=(maps, "nkg"), masks=(masks, "nks"))
    n_k, maps, masks = maps.shape[:2], maps.flatten(0, 1), masks.flatten(0, 1)
    pointed = pointing_game(maps, masks, tolerance)
    highest = maps.float().amax(cell_axes(maps))
    rejected = (highest < threshold) | (highest <= 0)
    absent = ~(masks > 0.5).flatten(1).any(1)
    hits = torch.where(rejected, absent.float(), torch.where(absent, 0, pointed))
    return torch.where(_finite(maps), hits, torch.nan).view(n_k)


def segment_boxes(maps: Tensor, size: Size, share: float = 0.15) -> Tensor:
    """The box around the largest connected segment of each map at image resolution.

    The map is binarized: a pixel belongs to a segment if it lies above ``share`` of the maximum. Pixels that touch at
    a corner are connected (8-connectivity): the paper leaves it open, and so are the contours of OpenCV, by which the
    code of :func:`max_box_acc_v2` finds its boxes. The largest segment has most pixels; of equal ones it is the first
    in reading order.

    Source: Selvaraju et al., ICCV 2017, arXiv 1610.02391, the section on weakly supervised localization.

    Args:
        maps: Signed maps ``(n, *grid)``.
        size: Height and width of the image in pixels, or another number of axes.
        share: Share of the maximum, in [0, 1).

    Returns:
        Boxes ``(n, 2 d)``, int64. The whole image for a constant map that is positive, and 0 throughout for a map that
        is empty or not finite.

    Raises:
        ValueError: If the shape or the share does not fit.
        ImportError: If scipy is missing.
    """
    check_shapes(size, maps=(maps, "ng"))
    _check_share(share=share)
    boxes = torch.zeros(len(maps), 2 * len(size), dtype=torch.int64)
    for box, above in zip(boxes, (_at_image(maps, size) > share).cpu().numpy(), strict=True):
        found, pixels = _segments(above)
        if len(found):
            box.copy_(found[pixels.argmax()])
    return boxes.to(maps.device)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The overlap of two boxes of each row: intersection over union.

    Args:
        boxes: Boxes that were found, ``(n, 2 d)``.
        others: The true boxes, ``(n, 2 d)``.

    Returns:
        ``(n,)`` in [0, 1]: 1 where the two agree. NaN where the true box has no area, else 0 where the found one has
        none.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shapes(boxes=(boxes, "nb"), others=(others, "nb"))
    d, boxes, others = boxes.shape[1] // 2, boxes.float(), others.float()
    corners = [torch.maximum(boxes[:, :d], others[:, :d]), torch.minimum(boxes[:, d:], others[:, d:])]
    both, truth = _area(torch.cat(corners, 1)), _area(others)
    return torch.where(truth > 0, both / (_area(boxes) + truth - both), torch.nan)


def localization_errors(
    maps: Tensor,
    classes: Tensor,
    labels: Tensor,
    boxes: Tensor,
    size: Size,
    share: float = 0.15,
    overlap: float = 0.5,
) -> dict[str, float]:
    """The errors of classification and of weakly supervised localization, at top 1 and at top ``k``.

    A sample is classified if its label is among the top classes. It is localized if, besides, the box of the label's
    map, as in :func:`segment_boxes`, overlaps the true box by more than ``overlap``. A map that is empty or not finite
    localizes nothing. Samples without a box are left out of the errors of localization alone, so that these may be
    the smaller ones. Boxes are drawn of the maps of the labels only.

    Source: the protocol of ILSVRC (Russakovsky et al. 2015, arXiv 1409.0575) as used in Selvaraju et al., ICCV 2017,
    arXiv 1610.02391.

    Args:
        maps: Signed maps ``(n, k, *grid)`` of the ``k`` classes.
        classes: The predicted classes ``(n, k)``, best first.
        labels: The true classes ``(n,)``.
        boxes: The true boxes ``(n, 2 d)``.
        size: As for :func:`segment_boxes`.
        share: As for :func:`segment_boxes`.
        overlap: Intersection over union that a localization must exceed, in [0, 1).

    Returns:
        ``classification_error_top1`` and ``localization_error_top1``, and for ``k > 1`` the same of the top ``k``, as
        ``classification_error_top5``. Each is a share of samples in [0, 1], smaller is better; NaN without a sample.

    Raises:
        ValueError: If the shapes, the share or the overlap do not fit.
        ImportError: If scipy is missing.
    """
    check_shapes(size, maps=(maps, "nkg"), classes=(classes, "nk"), labels=(labels, "n"), boxes=(boxes, "nb"))
    _check_share(share=share, overlap=overlap)
    boxed = _area(boxes) > 0
    named = classes == labels[:, None]
    drawn = named & boxed[:, None]
    truth = boxes[:, None].expand(-1, classes.shape[1], -1)
    placed = torch.zeros_like(named)
    placed[drawn] = iou(segment_boxes(maps[drawn], size, share), truth[drawn]) > overlap
    errors = {}
    for k in sorted({1, classes.shape[1]}):
        errors[f"classification_error_top{k}"] = _share(~named[:, :k].any(1))
        errors[f"localization_error_top{k}"] = _share(~placed[boxed, :k].any(1))
    return errors


def max_box_acc_v2(maps: Tensor, boxes: Tensor, size: Size, thresholds: int = 100) -> float:
    """MaxBoxAccV2: how often a box of the map overlaps the true one, at the threshold that serves the data set best.

    Each map is scaled to scores in [0, 1] at image resolution, minimum to 0 and maximum to 1. At each threshold ``t /
    thresholds``, ``t`` from 0, the pixels above it fall into segments, connected as in :func:`segment_boxes`, and the
    best overlap of any segment's box with the true one counts. ``acc(d, t)`` is the share of samples where it is at
    least ``d``. The result is the mean over ``d`` in 0.3, 0.5, 0.7 of the maximum over ``t`` of ``acc(d, t)``.

    A map that is empty, not finite or constant scores 0 everywhere and is a miss. Samples without a box are left out.
    The threshold is chosen on the samples that are scored, so that of few samples the result is too high.

    It labels each image once a threshold: a sample of 224 pixels takes about 25 ms on one core, and 0.6 s where the map
    is noise of single pixels and falls into thousands of segments.

    Source: Choe et al., Evaluating weakly supervised object localization methods right, CVPR 2020, arXiv 2001.07437,
    and V2 in its extension, arXiv 2007.04178.

    Args:
        maps: Signed maps ``(n, *grid)``.
        boxes: The true boxes ``(n, 2 d)``.
        size: As for :func:`segment_boxes`.
        thresholds: Number of thresholds, at least 1.

    Returns:
        A share in [0, 1], larger is better; NaN if no sample has a box.

    Raises:
        ValueError: If the shapes or the number of thresholds do not fit.
        ImportError: If scipy is missing.
    """
    check_shapes(size, maps=(maps, "ng"), boxes=(boxes, "nb"))
    if not isinstance(thresholds, int) or thresholds < 1:
        raise ValueError(f"`thresholds` must be a number of thresholds, at least 1, got {thresholds}")
    boxed = _area(boxes) > 0
    if not boxed.any():
        return math.nan
    scores, truths = _scores(maps[boxed], size).cpu().numpy(), boxes[boxed].cpu()
    best = torch.stack([_best_overlaps(score, truth, thresholds) for score, truth in zip(scores, truths, strict=True)])
    accuracies = [(best >= least).float().mean(0).max() for least in (0.3, 0.5, 0.7)]
    return torch.stack(accuracies).mean().item()


def pxap(maps: Tensor, masks: Tensor) -> float:
    """PxAP: the average precision of the scores of all pixels of all images together.

    Each map is scaled to scores as for :func:`max_box_acc_v2`. With ``P`` the precision and ``R`` the recall of the
    pixels that score at least a threshold, this is ``sum_l P_l (R_l - R_(l-1))`` over falling thresholds. They are the
    scores that occur, so pixels of one score enter together and the sum is exact; the paper takes evenly spaced ones.

    A map that is empty, not finite or constant scores 0 everywhere. Samples with an empty mask are left out. It sorts
    all pixels and holds some 80 bytes for each; a million pixels take about 0.1 s on one core.

    Source: Choe et al., CVPR 2020, arXiv 2001.07437, the section on evaluation metrics.

    Args:
        maps: Signed maps ``(n, *grid)``.
        masks: ``(n, *size)``, 1 inside the region.

    Returns:
        A share in [0, 1], larger is better; constant maps have the regions' share of the images. NaN if every mask is
        empty.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shapes(maps=(maps, "ng"), masks=(masks, "ns"))
    inside = masks > 0.5
    shown = inside.flatten(1).any(1)
    if not shown.any():
        return math.nan
    scores, order = _scores(maps[shown], masks.shape[1:]).flatten().cpu().sort(descending=True)
    found = inside[shown].flatten().cpu()[order].cumsum(0)
    last = torch.cat([(scores.diff() != 0).nonzero()[:, 0], torch.tensor([len(scores) - 1])])
    hits = found[last].double()
    recall = hits / hits[-1]
    return (hits / (last + 1) * recall.diff(prepend=recall.new_zeros(1))).sum().item()


def _at_image(maps: Tensor, size: Size) -> Tensor:
    """Bring the positive part to image resolution, the maximum 1: ``(n, *size)``; 0 where empty or not finite."""
    cells = torch.where(along_cells(_finite(maps), maps), maps.detach().float().relu(), 0)
    # Scaled before as well, so that values at either end of the range of float32 survive the weights.
    return _to_unit_maximum(upsampled(_to_unit_maximum(cells), size))


def _to_unit_maximum(heights: Tensor) -> Tensor:
    highest = heights.amax(cell_axes(heights), keepdim=True)
    return torch.where(highest > 0, heights / highest, 0)


def _scores(maps: Tensor, size: Size) -> Tensor:
    """Scale maps to [0, 1] at image resolution, ``(n, *size)``; 0 where empty, not finite or constant."""
    heights = _at_image(maps, size)
    lowest = heights.amin(cell_axes(heights), keepdim=True)
    return torch.where(lowest < 1 - _ROUNDING, (heights - lowest) / (1 - lowest), 0)


def _nearby(inside: Tensor, tolerance: float) -> Tensor:
    """Which pixels lie within ``tolerance`` of one that is inside, both ``(n, *size)`` bool."""
    far = sum(side**2 for side in inside.shape[1:])
    # The squared distance to the next one inside, first along one axis alone: each further axis adds its own steps.
    distances = torch.where(inside, 0, far)
    for axis in cell_axes(inside):
        without, side = distances.clone(), inside.shape[axis]
        for step in range(1, min(int(tolerance), side - 1) + 1):
            for here, there in ((0, step), (step, 0)):
                moved = without.narrow(axis, there, side - step) + step**2
                nearest = distances.narrow(axis, here, side - step)
                torch.minimum(nearest, moved, out=nearest)
    return distances <= min(int(tolerance**2), far - 1)


def _best_overlaps(scores: np.ndarray, truth: Tensor, thresholds: int) -> Tensor:
    """The best overlap of the segments' boxes with the true box ``(2 d,)`` at each threshold, ``(thresholds,)``."""
    found, numbers = [], []
    d, starts, ends = scores.ndim, [0] * scores.ndim, list(scores.shape[::-1])
    for t in range(thresholds):
        # Segments only shrink as the threshold rises, so the rest of the image is spared.
        part = tuple(map(slice, starts[::-1], ends[::-1]))
        boxes, _ = _segments(scores[part] > t / thresholds)
        if not len(boxes):
            break
        boxes += torch.tensor(starts * 2)
        starts, ends = boxes[:, :d].amin(0).tolist(), boxes[:, d:].amax(0).tolist()
        found.append(boxes)
        numbers.append(len(boxes))
    best = torch.zeros(thresholds)
    if found:
        overlaps = iou(torch.cat(found), truth.expand(sum(numbers), -1))
        best.scatter_reduce_(0, torch.arange(len(found)).repeat_interleave(torch.tensor(numbers)), overlaps, "amax")
    return best


def _segments(above: np.ndarray) -> tuple[Tensor, Tensor]:
    """The boxes ``(m, 2 d)`` and numbers of pixels ``(m,)`` of a bool image's connected segments, reading order."""
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError(
            "segments of a map are found by scipy, which is not installed: "
            'pip install "lightning-gradcam[localization]"'
        ) from error
    labels = np.zeros(above.shape, dtype=np.int32)
    ndimage.label(above, structure=np.ones((3,) * above.ndim), output=labels)
    found = (one[::-1] for one in ndimage.find_objects(labels))
    boxes = [[side.start for side in sides] + [side.stop for side in sides] for sides in found]
    pixels = np.bincount(labels.ravel(), minlength=1)[1:]
    return torch.tensor(boxes, dtype=torch.int64).view(-1, 2 * above.ndim), torch.from_numpy(pixels)


def _share(which: Tensor) -> float:
    """The share that is true, NaN of none."""
    return which.float().mean().item()


def _area(boxes: Tensor) -> Tensor:
    """The area of boxes, of other than two axes their length or volume."""
    d = boxes.shape[1] // 2
    return (boxes[:, d:] - boxes[:, :d]).clamp_min(0).prod(1)


def _finite(maps: Tensor) -> Tensor:
    return maps.isfinite().flatten(1).all(1)


def _check_share(**arguments: float) -> None:
    for name, value in arguments.items():
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` must be a share in [0, 1), got {value}; 0.15 is 15 percent")
