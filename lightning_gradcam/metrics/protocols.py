"""The published protocols that score maps against boxes and masks of the image.

All functions take signed maps, no finer than the image, and look at their positive part alone. It is brought to the
image's resolution, ``H`` by ``W`` pixels, bilinearly (``align_corners=False``). An empty map has no positive cell. A
pixel is inside a mask where the mask is above 0.5; an empty mask has no such pixel. Boxes are x0, y0, x1, y1 in pixels,
right and bottom exclusive; a true box without an area says that the sample has none. Where a sample has several true
boxes, any of them counts.

The papers have images. Signals, volumes and clips are scored alike, with ``d`` = 1 or 3 spatial axes for 2: a pixel is
a sample of the signal or a voxel, the map is linear in every axis, distances are Euclidean, and a box has ``2 d``
numbers, all starts before all ends and the last axis first.
"""

from lightning_gradcam.metrics.boxes import iou, localization_errors, max_box_acc_v2, segment_boxes
from lightning_gradcam.metrics.pixels import pxap, rank_accuracy, roc_auc
from lightning_gradcam.metrics.pointing import class_average, pointing_game, pointing_game_with_rejection

__all__ = [
    "class_average",
    "iou",
    "localization_errors",
    "max_box_acc_v2",
    "pointing_game",
    "pointing_game_with_rejection",
    "pxap",
    "rank_accuracy",
    "roc_auc",
    "segment_boxes",
]
