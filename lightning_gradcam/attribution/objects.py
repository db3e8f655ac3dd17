"""Where objects lie by what a loader hands out: the region and the class of masks and of detectors' targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_gradcam.attribution.names import NO_LABEL
from lightning_gradcam.attribution.regions import box_masks, plain_region
from lightning_gradcam.attribution.spatial import Size, along_cells

_NO_CLASS = (0, 255, -1, NO_LABEL)  # of a mask's pixel: background, or not labelled


def of_mask(mask: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """The class of most pixels of each sample's mask ``(n,)``, and the mask of that class ``(n, *size)``."""
    mask = mask.as_subclass(Tensor)
    if mask.ndim == len(size) + 2 and mask.shape[1] > 1:
        # A channel a class, the first one of the background if they sum to 1.
        first = int((mask.sum(1) == 1).all())
        classes = mask[:, first:].flatten(2).sum(2).argmax(1) + first
        region = mask[torch.arange(len(mask)), classes].float()
    else:
        mask = mask.reshape(len(mask), *size).long()
        if set(mask.unique().tolist()) <= {0, 255}:
            mask = mask // 255
        classes = torch.tensor([_commonest(one, _NO_CLASS) for one in mask])
        there = along_cells(classes != NO_LABEL, mask).to(mask.device)
        region = ((mask == along_cells(classes, mask).to(mask)) & there).float()
    return torch.where(region.flatten(1).any(1).cpu(), classes.cpu(), NO_LABEL), region


def are_targets(part: Any, n: int) -> bool:
    """Whether these are what detectors of torchvision or Hugging Face learn from: a mapping with boxes a sample."""

    def fits(one: Mapping[Any, Any]) -> bool:
        boxes = one.get("boxes")
        return isinstance(boxes, Tensor) and boxes.ndim == 2 and ("labels" in one or "class_labels" in one)

    return is_list_of_mappings(part) and len(part) == n and all(map(fits, part))


def of_targets(targets: Sequence[Mapping[str, Any]], images: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """The commonest class of each sample's boxes ``(n,)``, and the region of that class.

    That is its boxes ``(n, m, 4)``, or where some targets have masks the union of its masks and boxes ``(n, H, W)``.
    """
    size = images.shape[2], images.shape[3]
    classes, objects, unions = [], [], {}
    for i, target in enumerate(targets):
        labels = target["labels"] if "labels" in target else target["class_labels"]
        classes.append(_commonest(labels))
        chosen = labels == classes[-1]
        boxes = plain_region(target["boxes"]).float()
        if "class_labels" in target:  # centre, width and height in fractions of the image
            height, width = size if sizes is None else sizes[i].tolist()
            centre, half = boxes[:, :2], boxes[:, 2:] / 2
            boxes = torch.cat([centre - half, centre + half], 1) * boxes.new_tensor([width, height, width, height])
        objects.append(torch.cat([boxes[chosen, :2].floor(), boxes[chosen, 2:].ceil()], 1).to(images.device))
        masks = target.get("masks")
        if isinstance(masks, Tensor) and masks.shape == (len(boxes), *size):
            unions[i] = (masks[chosen] > 0).any(0).float().to(images.device)
    boxes = plain_region(pad_sequence(objects, batch_first=True))
    if not unions:
        return torch.tensor(classes), boxes
    drawn = box_masks(boxes, size)
    return torch.tensor(classes), torch.stack([unions.get(i, one) for i, one in enumerate(drawn)])


def _commonest(values: Tensor, but: Sequence[int] = ()) -> int:
    """The value that there is most of, of several the least; :data:`NO_LABEL` where there is none."""
    found, counts = values.unique(return_counts=True)
    counts[torch.isin(found, found.new_tensor(but))] = 0
    return int(found[counts.argmax()]) if counts.any() else NO_LABEL


def is_list_of_mappings(value: Any) -> bool:
    """Whether it is a list of mappings, one a sample, as of targets."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(one, Mapping) for one in value)
