"""Boxes and masks."""

import torch

from lightning_gradcam.attribution.regions import box_masks, outline_boxes


def test_box_masks():
    masks = box_masks(torch.tensor([[1, 0, 3, 2], [0, 0, 0, 0]]), (3, 4))
    assert masks[0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert masks[1].sum() == 0


def test_boxes_around_masks():
    masks = torch.zeros(2, 6, 8)
    masks[0, 1:3, 2:7] = 1
    assert outline_boxes(masks).tolist() == [[2, 1, 7, 3], [0, 0, 0, 0]]
    boxes = torch.tensor([[1, 2, 3, 4]])
    assert outline_boxes(boxes).tolist() == [[1, 2, 3, 4]]
