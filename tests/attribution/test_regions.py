"""Boxes and masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradcam.attribution.regions import (
    are_boxes,
    box_masks,
    check_boxes,
    cut_region,
    outline_boxes,
    pixel_boxes,
    region_masks,
)


def test_box_masks():
    masks = box_masks(torch.tensor([[1, 0, 3, 2], [0, 0, 0, 0]]), (3, 4))
    assert masks[0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert masks[1].sum() == 0


def test_boxes_around_masks():
    masks = torch.zeros(2, 6, 8)
    masks[0, 1:3, 2:7] = 1
    assert outline_boxes(masks, (6, 8)).tolist() == [[[2, 1, 7, 3]], [[0, 0, 0, 0]]]
    boxes = torch.tensor([[1, 2, 3, 4]])
    assert outline_boxes(boxes, (6, 8)).tolist() == [[[1, 2, 3, 4]]]


def test_boxes_of_volumes_and_signals():
    box = torch.tensor([[1, 0, 2, 3, 2, 4]])  # x from 1 to 3, y from 0 to 2, z from 2 to 4
    mask = box_masks(box, (5, 3, 4))
    inside = mask.nonzero()
    assert len(inside) == 8
    assert inside[:, 1:].amin(0).tolist() == [2, 0, 1]
    assert inside[:, 1:].amax(0).tolist() == [3, 1, 2]
    assert torch.equal(outline_boxes(mask, (5, 3, 4))[:, 0].long(), box)
    assert box_masks(torch.tensor([[2, 4]]), (5,)).tolist() == [[0, 0, 1, 1, 0]]
    assert outline_boxes(torch.tensor([[0, 0, 1, 1, 0.0]]), (5,)).tolist() == [[[2, 4]]]


def test_masks_of_a_signal_are_no_boxes():
    assert are_boxes(torch.zeros(3, 2), (10,))
    assert not are_boxes(torch.zeros(3, 10), (10,))
    assert torch.equal(region_masks(torch.ones(3, 10), (10,)), torch.ones(3, 10))


@pytest.mark.parametrize(
    ("box", "size", "message"),
    [
        (
            [3, 0, 2, 1, 2, 4],
            (5, 3, 4),
            "an end before its start, as boxes of starts and lengths have; .* all starts",
        ),
        ([0, 0, 5, 2, 2, 9], (5, 3, 4), "boxes outside the images of 5 x 3 x 4 pixels"),
        ([10, 12], (10,), "boxes outside the images of 10 pixels.* boxes as start, end in pixels"),
        ([0.1, 0.1, 0.2, 0.5, 0.5, 0.9], (5, 3, 4), "values from 0 to 1 alone"),
    ],
)
def test_boxes_in_another_form_are_refused(box, size, message):
    with pytest.raises(ValueError, match=message):
        check_boxes("tumour", torch.tensor([box]), size)


def test_several_boxes_are_one_mask():
    boxes = torch.tensor([[[0, 0, 2, 1], [1, 0, 3, 2], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 3])
    assert are_boxes(boxes, (2, 4))
    assert region_masks(boxes, (2, 4)).tolist() == [[[1, 1, 1, 0], [0, 1, 1, 0]], [[0, 0, 0, 0]] * 2]
    assert torch.equal(outline_boxes(boxes, (2, 4)).long(), boxes)
    assert region_masks(torch.tensor([[[0, 1], [3, 5]]]), (5,)).tolist() == [[1, 0, 0, 1, 1]]


def test_a_slice_cuts_each_of_several_boxes():
    boxes = torch.tensor([[[1, 0, 2, 3, 2, 4], [0, 0, 3, 1, 1, 5]], [[0, 0, 0, 0, 0, 0], [0, 1, 0, 4, 3, 1]]])
    found = cut_region(boxes, (5, 3, 4), 0, torch.tensor([2, 0]))
    assert found.tolist() == [[[1, 0, 3, 2], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 1, 4, 3]]]


def test_several_boxes_are_checked_one_by_one():
    check_boxes("dog", torch.tensor([[[0.0, 0, 2, 2], [-1, -1, -1, -1]], [[0, 0, 0, 0], [3, 3, 8, 8]]]), (8, 8))
    for box, problem in (([4, 4, 2, 6], "a right or bottom edge before"), ([8, 0, 9, 4], "boxes outside the images")):
        with pytest.raises(ValueError, match=f"region 'dog' has {problem}"):
            check_boxes("dog", torch.tensor([[[0, 0, 2, 2], box], [[0, 0, 0, 0]] * 2]), (8, 8))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 12, width=16), min_size=4, max_size=4))
def test_boxes_of_pixels_are_those_that_are_drawn(edges):
    x0, x1, y0, y1 = *sorted(edges[:2]), *sorted(edges[2:])
    box = torch.tensor([[x0, y0, x1, y1]])
    drawn = box_masks(box, (9, 7))
    assert torch.equal(box_masks(pixel_boxes(box, (9, 7)), (9, 7)), drawn)
    if drawn.any():
        assert torch.equal(pixel_boxes(box, (9, 7)), pixel_boxes(drawn, (9, 7)))
