"""What a run logs of the protocols of weakly supervised localization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_gradcam.attribution.regions import pixel_boxes
from lightning_gradcam.metrics.numbers import by_group
from lightning_gradcam.metrics.protocols import (
    iou,
    localization_errors,
    max_box_acc_v2,
    pxap,
    rank_accuracy,
    roc_auc,
    segment_boxes,
)


def localization_numbers(
    maps: Tensor,
    boxes: Tensor,
    masks: Tensor,
    labels: Tensor | None,
    target_classes: Tensor | None,
    k: int | None = None,
) -> dict[str, float]:
    """What a run logs of the protocols of weakly supervised localization for the maps of one layer.

    Args:
        maps: Signed maps ``(n k, *grid)``, those of a sample one after another.
        boxes: The true boxes ``(n k, 2 d)`` of ``d`` spatial axes, or several a sample, ``(n k, m, 2 d)``.
        masks: The regions ``(n k, *size)``.
        labels: The true classes ``(n k,)``, if there are any.
        target_classes: The classes ``(n k,)`` that the maps are of, where they are known.
        k: How many maps a sample has, those of the most probable classes, best first; ``None``: they are of others.

    Returns:
        ``max_box_acc_v2``, ``pxap`` and the means of ``roc_auc`` and ``rank_accuracy`` over the maps of the labels, or
        over all where the classes are not known; the means leave out what is NaN. With
        ``k`` and labels the errors of :func:`~lightning_gradcam.metrics.protocols.localization_errors`, else
        ``localization_error_known``, the share of these maps whose box overlaps no true one by more than a
        half.
    """
    size, numbers = tuple(masks.shape[1:]), {}
    if k is not None and target_classes is not None and labels is not None:
        of_samples = (one.unflatten(0, (-1, k)) for one in (maps, target_classes, labels, boxes))
        all_maps, classes, truths, true_boxes = of_samples
        numbers |= localization_errors(all_maps, classes, truths[:, 0], true_boxes[:, 0], size)
    if target_classes is not None and labels is not None:
        maps, boxes, masks = (one[target_classes == labels] for one in (maps, boxes, masks))
    if not numbers:
        overlaps = iou(segment_boxes(maps, size), boxes)
        missed = ~(overlaps[~overlaps.isnan()] > 0.5)
        numbers["localization_error_known"] = missed.float().mean().item()
    numbers |= {"max_box_acc_v2": max_box_acc_v2(maps, boxes, size), "pxap": pxap(maps, masks)}
    return numbers | {one.__name__: one(maps, masks).nanmean().item() for one in (roc_auc, rank_accuracy)}


def localization_of_groups(
    maps: Mapping[str, Tensor],
    region: Tensor,
    masks: Tensor,
    labels: Tensor | None,
    groups: Sequence[str],
    target_classes: Tensor | None,
    k: int | None,
    counted: Sequence[int] | None = None,
) -> dict[str, float]:
    """:func:`localization_numbers` of each layer, and of each group of samples, by full key.

    Args:
        maps: Signed maps ``(n k, *grid)`` by the prefix of the layer's keys.
        region: The region as the batch has it, boxes or masks.
        masks: As there, as ``target_classes`` and ``k``.
        labels: ``(n k,)`` or ``(n k, 1)``; of more than one a sample none counts.
        groups: The name of each row's group; may be empty.
        target_classes: As there.
        k: As there.
        counted: The positions of the samples that count; ``None``: all.
    """
    boxes = pixel_boxes(region, tuple(masks.shape[1:]))
    single = None if labels is None or labels.numel() > len(labels) else labels.flatten()
    numbers = {}
    for suffix, members in by_group(groups, len(masks), counted).items():
        truths, classes = (None if one is None else one[members] for one in (single, target_classes))
        for prefix, one in maps.items():
            found = localization_numbers(one[members], boxes[members], masks[members], truths, classes, k)
            numbers |= {f"{prefix}/{key}{suffix}": value for key, value in found.items()}
    return numbers
