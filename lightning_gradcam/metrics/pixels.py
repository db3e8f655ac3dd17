"""Whether a map's pixels rank the region first, see :mod:`lightning_gradcam.metrics.protocols`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gradcam.metrics.heights import scores_of_pixels
from lightning_gradcam.metrics.shapes import check_shapes


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
    scores, order = scores_of_pixels(maps[shown], masks.shape[1:]).flatten().cpu().sort(descending=True)
    found = inside[shown].flatten().cpu()[order].cumsum(0)
    last = torch.cat([(scores.diff() != 0).nonzero()[:, 0], torch.tensor([len(scores) - 1])])
    hits = found[last].double()
    recall = hits / hits[-1]
    return (hits / (last + 1) * recall.diff(prepend=recall.new_zeros(1))).sum().item()
