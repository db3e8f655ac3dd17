"""Boxes that maps draw against true ones, see :mod:`lightning_gradcam.metrics.protocols`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lightning_gradcam.attribution.spatial import Size
from lightning_gradcam.metrics.heights import at_image, scores_of_pixels
from lightning_gradcam.metrics.shapes import check_shapes


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
    for box, above in zip(boxes, (at_image(maps, size) > share).cpu().numpy(), strict=True):
        found, pixels = _segments(above)
        if len(found):
            box.copy_(found[pixels.argmax()])
    return boxes.to(maps.device)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """The overlap of two boxes of each row: intersection over union.

    Args:
        boxes: Boxes that were found, ``(n, 2 d)``.
        others: The true boxes, ``(n, 2 d)``; or several, ``(n, m, 2 d)``, of which the one counts that it overlaps
            most.

    Returns:
        ``(n,)`` in [0, 1]: 1 where the two agree. NaN where no true box has an area, else 0 where the found one has
        none.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shapes(boxes=(boxes, "nb"), others=(others, _letters(others)))
    d, boxes, others = boxes.shape[1] // 2, boxes[:, None].float(), _several(others).float()
    corners = [torch.maximum(boxes[..., :d], others[..., :d]), torch.minimum(boxes[..., d:], others[..., d:])]
    both, truth = _area(torch.cat(corners, -1)), _area(others)
    overlaps = torch.where(truth > 0, both / (_area(boxes) + truth - both), -1).amax(1)
    return torch.where(overlaps < 0, torch.nan, overlaps)


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
    map, as in :func:`segment_boxes`, overlaps a true box by more than ``overlap``. A map that is empty or not finite
    localizes nothing. Samples without a box are left out of the errors of localization alone, so that these may be
    the smaller ones. Boxes are drawn of the maps of the labels only.

    Source: the protocol of ILSVRC (Russakovsky et al. 2015, arXiv 1409.0575) as used in Selvaraju et al., ICCV 2017,
    arXiv 1610.02391.

    Args:
        maps: Signed maps ``(n, k, *grid)`` of the ``k`` classes.
        classes: The predicted classes ``(n, k)``, best first.
        labels: The true classes ``(n,)``.
        boxes: The true boxes ``(n, 2 d)``, or several a sample, ``(n, m, 2 d)``.
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
    letters = _letters(boxes)
    check_shapes(size, maps=(maps, "nkg"), classes=(classes, "nk"), labels=(labels, "n"), boxes=(boxes, letters))
    _check_share(share=share, overlap=overlap)
    boxes = _several(boxes)
    boxed = (_area(boxes) > 0).any(1)
    named = classes == labels[:, None]
    drawn = named & boxed[:, None]
    truth = boxes[:, None].expand(-1, classes.shape[1], -1, -1)
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
    best overlap of any segment's box with any true one counts. ``acc(d, t)`` is the share of samples where it is at
    least ``d``. The result is the mean over ``d`` in 0.3, 0.5, 0.7 of the maximum over ``t`` of ``acc(d, t)``.

    A map that is empty, not finite or constant scores 0 everywhere and is a miss. Samples without a box are left out.
    The threshold is chosen on the samples that are scored, so that of few samples the result is too high.

    It labels each image once a threshold: a sample of 224 pixels takes about 25 ms on one core, and 0.6 s where the map
    is noise of single pixels and falls into thousands of segments.

    Source: Choe et al., Evaluating weakly supervised object localization methods right, CVPR 2020, arXiv 2001.07437,
    and V2 in its extension, arXiv 2007.04178.

    Args:
        maps: Signed maps ``(n, *grid)``.
        boxes: The true boxes ``(n, 2 d)``, or several a sample, ``(n, m, 2 d)``.
        size: As for :func:`segment_boxes`.
        thresholds: Number of thresholds, at least 1.

    Returns:
        A share in [0, 1], larger is better; NaN if no sample has a box.

    Raises:
        ValueError: If the shapes or the number of thresholds do not fit.
        ImportError: If scipy is missing.
    """
    check_shapes(size, maps=(maps, "ng"), boxes=(boxes, _letters(boxes)))
    if not isinstance(thresholds, int) or thresholds < 1:
        raise ValueError(f"`thresholds` must be a number of thresholds, at least 1, got {thresholds}")
    boxes = _several(boxes)
    boxed = (_area(boxes) > 0).any(1)
    if not boxed.any():
        return math.nan
    scores, truths = scores_of_pixels(maps[boxed], size).cpu().numpy(), boxes[boxed].cpu()
    best = torch.stack([_best_overlaps(score, truth, thresholds) for score, truth in zip(scores, truths, strict=True)])
    accuracies = [(best >= least).float().mean(0).max() for least in (0.3, 0.5, 0.7)]
    return torch.stack(accuracies).mean().item()


def _best_overlaps(scores: np.ndarray, truth: Tensor, thresholds: int) -> Tensor:
    """The best overlap of the segments' boxes with true ones ``(m, 2 d)`` at each threshold, ``(thresholds,)``."""
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
        overlaps = iou(torch.cat(found), truth.expand(sum(numbers), -1, -1))
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


def _letters(boxes: Tensor) -> str:
    """How true boxes are spelled for :func:`check_shapes`: one a sample or several."""
    return "nmb" if boxes.ndim == 3 else "nb"


def _several(boxes: Tensor) -> Tensor:
    """True boxes as ``(n, m, 2 d)`` with ``m`` of at least 1; what has no area is none."""
    boxes = boxes if boxes.ndim == 3 else boxes[:, None]
    return boxes if boxes.shape[1] else boxes.new_zeros(len(boxes), 1, boxes.shape[2])


def _area(boxes: Tensor) -> Tensor:
    """The area of boxes ``(..., 2 d)``, of other than two axes their length or volume."""
    starts, ends = boxes.tensor_split(2, -1)
    return (ends - starts).clamp_min(0).prod(-1)


def _check_share(**arguments: float) -> None:
    for name, value in arguments.items():
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` must be a share in [0, 1), got {value}; 0.15 is 15 percent")
