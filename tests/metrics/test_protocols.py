"""Published protocols by hand, and against scipy, scikit-learn, torchvision and slow plain Python."""

import math
import sys

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lightning_gradcam.attribution.regions import box_masks
from lightning_gradcam.metrics.localization_numbers import localization_numbers
from lightning_gradcam.metrics.protocols import (
    class_average,
    iou,
    localization_errors,
    max_box_acc_v2,
    pointing_game,
    pointing_game_with_rejection,
    pxap,
    segment_boxes,
)

seeds = st.integers(0, 2**31)
UNUSABLE = {
    "zero": torch.zeros(1, 2, 2),
    "negative": torch.tensor([[[-1.0, 0.0], [0.0, -2.0]]]),
    "nan": torch.tensor([[[1.0, torch.nan], [0.0, 0.0]]]),
    "infinite": torch.tensor([[[1.0, torch.inf], [0.0, 0.0]]]),
    "minus infinite": torch.tensor([[[1.0, -torch.inf], [0.0, 0.0]]]),
}
EMPTY, INFINITE = UNUSABLE["negative"], UNUSABLE["infinite"]


def image(*rows):
    """A map ``(1, h, w)`` at image resolution, one digit a pixel."""
    return torch.tensor([[[float(digit) for digit in row] for row in rows]])


def one_pixel(y, x, size=(8, 8)):
    mask = torch.zeros(1, *size)
    mask[0, y, x] = 1
    return mask


def enlarged(cells, size):
    """The positive part of one map at ``size``, bilinearly, in plain Python."""
    (h, w), (height, width) = cells.shape, size

    def neighbours(i, old, new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        low = min(int(place), old - 1)
        return low, min(low + 1, old - 1), place - low

    result = np.zeros(size)
    for y in range(height):
        for x in range(width):
            top, bottom, down = neighbours(y, h, height)
            left, right, across = neighbours(x, w, width)
            for row, by_row in ((top, 1 - down), (bottom, down)):
                for column, by_column in ((left, 1 - across), (right, across)):
                    result[y, x] += by_row * by_column * max(float(cells[row, column]), 0)
    return result


def flooded(above):
    """Box and number of pixels of each segment, pixels at corners connected, in plain Python."""
    left = {(int(y), int(x)) for y, x in np.argwhere(above)}
    segments = []
    while left:
        edge = [min(left)]
        left.discard(edge[0])
        segment = []
        while edge:
            y, x = edge.pop()
            segment.append((y, x))
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            edge.extend(around)
        ys, xs = zip(*segment, strict=True)
        segments.append(((min(xs), min(ys), max(xs) + 1, max(ys) + 1), len(segment)))
    return segments


def test_pointing_distance_by_hand():
    # From (1, 1) to (4, 5) it is 3 down and 4 across.
    maps, masks = one_pixel(1, 1), one_pixel(4, 5)
    assert pointing_game(maps, masks, 5).tolist() == [1]
    assert pointing_game(maps, masks, 4.99).tolist() == [0]
    assert pointing_game(maps, maps, 0).tolist() == [1]
    assert pointing_game(one_pixel(2, 1), maps, 0).tolist() == [0]
    assert pointing_game(one_pixel(2, 2), maps, 2**0.5).tolist() == [1]
    assert pointing_game(maps, masks, 1e6).tolist() == [1]


def test_pointing_the_default_is_fifteen_pixels():
    maps, masks = one_pixel(0, 0, (1, 40)).repeat(2, 1, 1), torch.zeros(2, 1, 40)
    masks[0, 0, 15:] = masks[1, 0, 16:] = 1
    assert pointing_game(maps, masks).tolist() == [1, 0]


def test_pointing_a_cell_of_a_coarse_map():
    # Cells are 4 pixels wide and the largest one is in the upper right, so its centre is between columns 5 and 6;
    # beyond it, in the corner, the map is flat.
    maps = torch.tensor([[[1.0, 3.0], [-9.0, 2.0]]])
    assert pointing_game(maps, box_masks(torch.tensor([[6, 0, 8, 2]]), (8, 8)), 0).tolist() == [1]
    assert pointing_game(maps, box_masks(torch.tensor([[0, 0, 6, 8]]), (8, 8)), 0).tolist() == [0]
    assert pointing_game(maps, box_masks(torch.tensor([[0, 2, 8, 8]]), (8, 8)), 0).tolist() == [0]


def test_pointing_tied_maxima_score_their_share():
    two = one_pixel(0, 0) + one_pixel(7, 7)
    assert pointing_game(two, one_pixel(0, 0), 2).tolist() == [0.5]
    assert pointing_game(two, two, 0).tolist() == [1]
    # The corner of the larger cell is flat over 2 by 2 pixels.
    corner = torch.tensor([[[0.0, 0.0], [0.0, 0.3]]])
    assert pointing_game(corner, one_pixel(7, 7), 0).tolist() == [0.25]
    assert pointing_game(corner, one_pixel(7, 7), 1).tolist() == [0.75]
    assert pointing_game(corner, one_pixel(7, 7), 1.5).tolist() == [1]


@pytest.mark.parametrize("constant", [torch.full((1, 1, 1), 0.3), torch.full((1, 3, 5), 0.7)])
def test_pointing_a_constant_map_scores_as_chance(constant):
    left = box_masks(torch.tensor([[0, 0, 4, 8]]), (8, 8))
    assert pointing_game(constant, left, 0).tolist() == [0.5]
    assert pointing_game(constant, left, 2).tolist() == [0.75]
    assert pointing_game(constant, one_pixel(0, 0), 1).item() == 3 / 64
    assert pointing_game(constant, torch.ones(1, 8, 8), 0).tolist() == [1]


@pytest.mark.parametrize("kind", UNUSABLE)
def test_pointing_no_map_no_number(kind):
    maps = torch.cat([UNUSABLE[kind], torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])])
    assert pointing_game(maps, torch.ones(2, 8, 8)).tolist() == [pytest.approx(math.nan, nan_ok=True), 1]


def test_pointing_no_region_no_number():
    assert pointing_game(torch.rand(2, 3, 3), torch.zeros(2, 9, 9)).isnan().all()
    assert pointing_game(torch.rand(1, 3, 3), torch.full((1, 9, 9), 0.5)).isnan().all()
    assert pointing_game(torch.rand(0, 3, 3), torch.zeros(0, 9, 9)).shape == (0,)


def test_pointing_types_and_extreme_values():
    maps, masks = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), box_masks(torch.tensor([[0, 0, 2, 2]]), (8, 8))
    for factor in (1e-44, 3e38):
        assert pointing_game(factor * maps, masks, 0).tolist() == [1]
    assert pointing_game(maps.half(), masks.bool(), 0).tolist() == [1]
    assert pointing_game(maps.double().requires_grad_(), masks.long(), 0).tolist() == [1]


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0, 12), st.booleans())
def test_pointing_against_distances_of_scipy(seed, tolerance, ties):
    generator = np.random.default_rng(seed)
    maps = generator.integers(-1, 3, (3, 4, 3)) if ties else generator.normal(size=(3, 4, 3))
    masks = generator.random((3, 13, 16)) > 0.98
    values = pointing_game(torch.from_numpy(maps).float(), torch.from_numpy(masks), tolerance)
    for cells, mask, value in zip(maps, masks, values.tolist(), strict=True):
        heights = enlarged(cells, (13, 16))
        if not mask.any() or not heights.any():
            assert math.isnan(value)
            continue
        hits = scipy.ndimage.distance_transform_edt(~mask) <= tolerance
        assert value == pytest.approx(hits[heights > heights.max() * (1 - 1e-5)].mean())


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([[1], [2], [1, 2]]), st.integers(1, 9))
def test_pointing_a_mirrored_image_scores_the_same(seed, axes, h):
    generator = np.random.default_rng(seed)
    maps = torch.from_numpy(generator.integers(-1, 3, (3, h, 5)) / 3)
    masks = torch.from_numpy(generator.random((3, 23, 31)) > 0.95)
    torch.testing.assert_close(
        pointing_game(maps.flip(axes), masks.flip(axes), 3), pointing_game(maps, masks, 3), equal_nan=True
    )


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_pointing_an_impossible_tolerance(tolerance):
    with pytest.raises(ValueError, match=f"`tolerance` must be a number of pixels, at least 0, got {tolerance}"):
        pointing_game(torch.rand(1, 2, 2), torch.ones(1, 4, 4), tolerance)


def test_pointing_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`masks` must have the shape \(n, H, W\), n = 2, got \(1, 4, 4\); give"):
        pointing_game(torch.rand(2, 2, 2), torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match=r"`maps` must have the shape \(n, h, w\), got \(2, 1, 2, 2\)"):
        pointing_game(torch.rand(2, 1, 2, 2), torch.ones(2, 4, 4))


def test_average_by_hand():
    # Class 7 has 1/2, class 2 has 1; over the samples it would be 2/3.
    assert class_average(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([7, 7, 2])) == 0.75


def test_average_nan_is_left_out_and_so_is_a_class_of_it():
    values = torch.tensor([1.0, torch.nan, 0.0, torch.nan])
    assert class_average(values, torch.tensor([0, 0, 1, 5])) == 0.5
    assert math.isnan(class_average(values[1:2], torch.tensor([0])))
    assert math.isnan(class_average(torch.tensor([]), torch.tensor([], dtype=torch.int64)))


def test_average_any_shape():
    assert class_average(torch.tensor([[1, 0], [1, 1]]), torch.tensor([[0, 1], [0, 1]])) == 0.75
    with pytest.raises(ValueError, match=r"`classes` must have the shape of `values`, \(2,\), got \(3,\)"):
        class_average(torch.ones(2), torch.ones(3))


def test_rejection_every_case_by_hand():
    here, there, none = one_pixel(0, 0)[0], one_pixel(7, 7)[0], torch.zeros(8, 8)
    #              rejected        points at it   points elsewhere   empty
    maps = torch.stack([0.4 * here, here, there, none - 1])
    shown = torch.stack([here, here, here, here])
    hits = pointing_game_with_rejection(torch.stack([maps, maps]), torch.stack([shown, 0 * shown]), 0.5, 3)
    assert hits.tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]


def test_rejection_the_threshold_itself_points():
    maps = torch.tensor([[[[0.5]]]])
    assert pointing_game_with_rejection(maps, torch.ones(1, 1, 4, 4), 0.5).tolist() == [[1]]
    assert pointing_game_with_rejection(maps, torch.ones(1, 1, 4, 4), 0.51).tolist() == [[0]]


def test_rejection_the_maximum_is_that_of_the_map_and_not_of_the_enlarged_one():
    # Enlarged fourfold the cell in the middle reaches no pixel with its full height.
    maps = one_pixel(1, 1, (3, 3))[None]
    assert pointing_game_with_rejection(maps, torch.ones(1, 1, 12, 12), 1).tolist() == [[1]]


def test_rejection_not_finite_is_no_number_and_an_empty_map_is_rejected_at_any_threshold():
    maps = torch.cat([EMPTY, INFINITE, UNUSABLE["nan"], UNUSABLE["minus infinite"]])[None]
    masks = torch.ones(1, 4, 4, 4)
    for shown, expected in ((masks, 0), (0 * masks, 1)):
        hits = pointing_game_with_rejection(maps, shown, -5)
        assert hits[0, 0] == expected
        assert hits[0, 1:].isnan().all()


def test_rejection_no_threshold_is_the_pointing_game_of_each_class():
    maps, masks = torch.randn(3, 2, 4, 4) + 2, (torch.rand(3, 2, 20, 20) > 0.99).float()
    masks[:, :, 3, 4] = 1
    hits = pointing_game_with_rejection(maps, masks, 0, 2)
    for k in range(2):
        assert hits[:, k].tolist() == pointing_game(maps[:, k], masks[:, k], 2).tolist()


def test_rejection_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`masks` must have the shape \(n, k, H, W\), n = 2, k = 3, got \(2, 2,"):
        pointing_game_with_rejection(torch.rand(2, 3, 2, 2), torch.ones(2, 2, 4, 4), 0.5)


def test_segment_boxes_by_hand():
    maps = torch.cat(
        [
            image("00900", "09000", "00000", "11099"),  # above 1.35: two at a corner, two in a row
            image("99000", "00000", "00022", "00022"),  # four of 2 outdo two of 9
            image("00100", "00100", "00100", "00009"),  # 1 lies below 1.35
        ]
    )
    boxes = segment_boxes(maps, (4, 5))
    assert boxes.dtype == torch.int64
    assert boxes.tolist() == [[1, 0, 3, 2], [3, 2, 5, 4], [4, 3, 5, 4]]
    assert segment_boxes(maps[2:], (4, 5), share=0.1).tolist() == [[2, 0, 3, 3]]


def test_segment_boxes_a_pixel_at_the_share_itself_is_out():
    assert segment_boxes(image("80004"), (1, 5), share=0.5).tolist() == [[0, 0, 1, 1]]
    assert segment_boxes(image("80044"), (1, 5), share=0.5).tolist() == [[0, 0, 1, 1]]
    assert segment_boxes(image("80055"), (1, 5), share=0.5).tolist() == [[3, 0, 5, 1]]


def test_segment_boxes_degenerate_maps():
    assert segment_boxes(torch.cat(list(UNUSABLE.values())), (6, 9)).tolist() == [[0, 0, 0, 0]] * 5
    for constant in (torch.full((1, 3, 4), 0.3), torch.full((1, 1, 1), 1e-30)):
        assert segment_boxes(constant, (6, 9)).tolist() == [[0, 0, 9, 6]]
    assert segment_boxes(torch.rand(0, 2, 2), (6, 9)).shape == (0, 4)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([0, 0.15, 0.47, 0.83]))
def test_segment_boxes_against_plain_python(seed, share):
    maps = np.random.default_rng(seed).normal(size=(3, 5, 4))
    boxes = segment_boxes(torch.from_numpy(maps), (12, 14), share)
    for cells, box in zip(maps, boxes.tolist(), strict=True):
        heights = enlarged(cells, (12, 14))
        segments = flooded(heights > share * heights.max())
        most = max((pixels for _, pixels in segments), default=0)
        assert tuple(box) == next((one for one, pixels in segments if pixels == most), (0, 0, 0, 0))


@pytest.mark.parametrize("share", [-0.1, 1, 15, math.nan])
def test_segment_boxes_an_impossible_share(share):
    with pytest.raises(ValueError, match=rf"`share` must be a share in \[0, 1\), got {share}; 0.15 is 15 percent"):
        segment_boxes(torch.rand(1, 2, 2), (4, 4), share)


def test_segment_boxes_without_scipy(monkeypatch):
    monkeypatch.delitem(sys.modules, "scipy.ndimage")
    monkeypatch.setitem(sys.modules, "scipy", None)
    maps, boxes = torch.rand(1, 2, 2), torch.tensor([[0, 0, 2, 2]])
    for function in (
        lambda: segment_boxes(maps, (4, 4)),
        lambda: max_box_acc_v2(maps, boxes, (4, 4)),
        lambda: localization_errors(maps[None], torch.zeros(1, 1), torch.zeros(1), boxes, (4, 4)),
    ):
        with pytest.raises(
            ImportError, match=r"scipy, which is not installed: pip install .lightning-gradcam.localization"
        ):
            function()
    assert pointing_game(maps, torch.ones(1, 4, 4)).tolist() == [1]
    assert pxap(maps, torch.ones(1, 4, 4)) == 1


def test_iou_by_hand():
    boxes = torch.tensor([[0, 0, 4, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 3, 3]])
    others = torch.tensor([[2, 0, 6, 2], [2, 0, 4, 2], [0, 0, 2, 2], [0, 0, 4, 4]])
    assert iou(boxes, others).tolist() == [pytest.approx(4 / 12), 0, 1, 0.25]


def test_iou_boxes_without_area():
    some, none, turned = [0, 0, 2, 2], [1, 1, 1, 5], [2, 2, 1, 1]
    assert iou(torch.tensor([none, turned]), torch.tensor([some, some])).tolist() == [0, 0]
    assert iou(torch.tensor([some, none, none]), torch.tensor([none, turned, none])).isnan().all()


def test_iou_the_best_of_several_true_boxes_counts():
    found, none = torch.tensor([[0, 0, 4, 2]]), torch.zeros(1, 1, 4)
    others = torch.tensor([[[2, 0, 6, 2], [0, 0, 4, 4], [9, 9, 10, 10]]])
    assert iou(found, others).tolist() == [0.5]
    assert iou(found, torch.cat([none, others], 1)).tolist() == [0.5]
    assert iou(0 * found, others).tolist() == [0]
    assert iou(found, torch.cat([none, none], 1)).isnan().all()
    assert iou(found, none[:, :0]).isnan().all()
    assert iou(torch.tensor([[2, 4]]), torch.tensor([[[0, 1], [2, 6]]])).tolist() == [0.5]


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_iou_against_torchvision(seed):
    corners = np.sort(np.random.default_rng(seed).integers(0, 30, (2, 12, 2, 2)), axis=2)
    corners[:, :, 1] += 1
    boxes, others = torch.from_numpy(corners.reshape(2, 12, 4))
    torch.testing.assert_close(iou(boxes, others), torchvision.ops.box_iou(boxes.float(), others.float()).diag())


def test_iou_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`others` must have the shape \(n, 4\), n = 2, got \(3, 4\)"):
        iou(torch.ones(2, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"`boxes` must have the shape \(n, 4\), got \(2, 5\)"):
        iou(torch.ones(2, 5), torch.ones(2, 4))


LEFT, RIGHT = torch.tensor([0, 0, 4, 8]), torch.tensor([4, 0, 8, 8])


def scene():
    """Maps that mark the left and the right half of an 8 by 8 image."""
    left, right = box_masks(torch.stack([LEFT, RIGHT]), (8, 8))
    maps = torch.stack(
        [
            torch.stack([left, right]),  # first class right, in the right place
            torch.stack([left, right]),  # first class right, in the wrong place
            torch.stack([left, right]),  # second class right, in the right place
            torch.stack([left, right]),  # second class right, in the wrong place
            torch.stack([left, left]),  # neither class right, in the right place
        ]
    )
    classes, labels = torch.tensor([[3, 5]]).repeat(5, 1), torch.tensor([3, 3, 5, 5, 9])
    boxes = torch.stack([LEFT, RIGHT, RIGHT, LEFT, LEFT])
    return maps, classes, labels, boxes


def test_errors_by_hand():
    errors = localization_errors(*scene(), (8, 8))
    assert errors == pytest.approx(
        {
            "classification_error_top1": 3 / 5,
            "localization_error_top1": 4 / 5,
            "classification_error_top2": 1 / 5,
            "localization_error_top2": 3 / 5,
        }
    )


def test_errors_one_class():
    maps, classes, labels, boxes = scene()
    errors = localization_errors(maps[:, :1], classes[:, :1], labels, boxes, (8, 8))
    assert errors == pytest.approx({"classification_error_top1": 3 / 5, "localization_error_top1": 4 / 5})


def test_errors_one_sample():
    first = [one[:1] for one in scene()]
    assert set(localization_errors(*first, (8, 8)).values()) == {0}
    second = [one[1:2] for one in scene()]
    assert list(localization_errors(*second, (8, 8)).values()) == [0, 1, 0, 1]


def test_errors_a_sample_without_a_box_counts_for_classification_alone():
    maps, classes, labels, boxes = scene()
    boxes[1:] = 0
    errors = localization_errors(maps, classes, labels, boxes, (8, 8))
    assert list(errors.values()) == pytest.approx([3 / 5, 0, 1 / 5, 0])
    errors = localization_errors(maps, classes, labels, 0 * boxes, (8, 8))
    assert list(errors.values()) == pytest.approx([3 / 5, math.nan, 1 / 5, math.nan], nan_ok=True)


def test_errors_no_sample():
    errors = localization_errors(*(one[:0] for one in scene()), (8, 8))
    assert len(errors) == 4
    assert all(math.isnan(error) for error in errors.values())


def test_errors_the_overlap_must_be_exceeded():
    maps, classes, labels = torch.ones(1, 1, 2, 2), torch.tensor([[0]]), torch.tensor([0])
    boxes = LEFT[None]  # half of the image, which a constant map marks whole
    assert localization_errors(maps, classes, labels, boxes, (8, 8))["localization_error_top1"] == 1
    assert localization_errors(maps, classes, labels, boxes, (8, 8), overlap=0.49)["localization_error_top1"] == 0
    whole = torch.tensor([[0, 0, 8, 8]])
    assert localization_errors(maps, classes, labels, whole, (8, 8))["localization_error_top1"] == 0


@pytest.mark.parametrize("kind", UNUSABLE)
def test_errors_no_map_localizes_nothing(kind):
    found = localization_errors(
        UNUSABLE[kind][None], torch.tensor([[4]]), torch.tensor([4]), LEFT[None], (8, 8), overlap=0
    )
    assert found == {"classification_error_top1": 0, "localization_error_top1": 1}


def test_errors_the_share_is_passed_on():
    maps = image("99992222")[None]
    label, truth = torch.tensor([0]), torch.tensor([[0, 0, 4, 1]])
    assert localization_errors(maps, label[None], label, truth, (1, 8))["localization_error_top1"] == 1
    assert localization_errors(maps, label[None], label, truth, (1, 8), share=0.3)["localization_error_top1"] == 0


def test_errors_boxes_are_drawn_of_the_maps_of_the_labels_alone(monkeypatch):
    drawn = []

    def counted(maps, *args):
        drawn.append(len(maps))
        return segment_boxes(maps, *args)

    monkeypatch.setattr("lightning_gradcam.metrics.boxes.segment_boxes", counted)
    maps, classes, labels, boxes = scene()
    boxes[0] = 0
    localization_errors(maps, classes, labels, boxes, (8, 8))
    assert drawn == [3]


def test_errors_arguments_that_do_not_fit():
    maps, classes, labels, boxes = scene()
    with pytest.raises(ValueError, match=r"`classes` must have the shape \(n, k\), n = 5, k = 2, got \(5, 1\)"):
        localization_errors(maps, classes[:, :1], labels, boxes, (8, 8))
    with pytest.raises(ValueError, match=r"`labels` must have the shape \(n\), n = 5, got \(5, 1\)"):
        localization_errors(maps, classes, labels[:, None], boxes, (8, 8))
    with pytest.raises(ValueError, match=r"`overlap` must be a share in \[0, 1\), got 50"):
        localization_errors(maps, classes, labels, boxes, (8, 8), overlap=50)


def slow_max_box_acc_v2(maps, boxes, size, thresholds):
    hits = {least: [0] * thresholds for least in (0.3, 0.5, 0.7)}
    for cells, (x0, y0, x1, y1) in zip(maps, boxes, strict=True):
        heights = enlarged(cells, size)
        spread = heights.max() - heights.min()
        scores = (heights - heights.min()) / spread if spread else np.zeros(size)
        truth = {(x, y) for x in range(x0, x1) for y in range(y0, y1)}
        for t in range(thresholds):
            best = 0
            for (left, top, right, bottom), _ in flooded(scores > t / thresholds):
                found = {(x, y) for x in range(left, right) for y in range(top, bottom)}
                best = max(best, len(found & truth) / len(found | truth))
            for least, counts in hits.items():
                counts[t] += best >= least
    return sum(max(counts) for counts in hits.values()) / 3 / len(maps)


def test_max_box_by_hand():
    row = torch.tensor([[0, 0, 10, 1]])
    # A box of 3, 5, 7 of the 10 pixels, whatever the threshold; 0.3 itself counts.
    assert max_box_acc_v2(image("90900000000"), row, (1, 11)) == 0
    assert max_box_acc_v2(image("99900000000"), row, (1, 11)) == pytest.approx(1 / 3)
    assert max_box_acc_v2(image("99999000000"), row, (1, 11)) == pytest.approx(2 / 3)
    assert max_box_acc_v2(image("99999990000"), row, (1, 11)) == 1
    # The weak rest is within the box at low thresholds.
    assert max_box_acc_v2(image("99911111110"), row, (1, 11)) == 1
    # Any segment's box may be the right one.
    assert max_box_acc_v2(image("99911100000"), torch.tensor([[3, 0, 6, 1]]), (1, 11)) == pytest.approx(2 / 3)
    assert max_box_acc_v2(image("99910999990"), torch.tensor([[5, 0, 10, 1]]), (1, 11)) == 1


def test_max_box_one_threshold_serves_all_samples():
    # The first is right above 1 / 9 alone and the second below 2 / 9 alone; else the overlap is 2 / 9.
    maps = torch.cat([image("9911111110"), image("9922222220")])
    boxes = torch.tensor([[0, 0, 2, 1], [0, 0, 9, 1]])
    assert max_box_acc_v2(maps, boxes, (1, 10), thresholds=100) == 1  # between 1 / 9 and 2 / 9 both are
    assert max_box_acc_v2(maps, boxes, (1, 10), thresholds=2) == 0.5  # 0 and 1 / 2: one or the other


def test_max_box_each_overlap_has_a_threshold_of_its_own():
    # Overlaps of 0.3 and 0.4 at the lower threshold, and of 0.2 and 0.8 at the upper one.
    maps = torch.cat([image("99111111110"), image("99991111110")])
    boxes = torch.tensor([[0, 0, 3, 1], [0, 0, 4, 1]])
    low, high = max_box_acc_v2(maps, boxes, (1, 11), 1), max_box_acc_v2(maps, boxes, (1, 11), 2)
    assert low == pytest.approx((1 + 0 + 0) / 3)
    assert high == pytest.approx((1 + 1 + 0.5) / 3)


def test_max_box_samples_without_a_box_are_left_out():
    maps, boxes = image("9999990").repeat(2, 1, 1), torch.tensor([[0, 0, 6, 1], [2, 0, 2, 1]])
    assert max_box_acc_v2(maps, boxes, (1, 7)) == 1
    assert math.isnan(max_box_acc_v2(maps, 0 * boxes, (1, 7)))
    assert math.isnan(max_box_acc_v2(maps[:0], boxes[:0], (1, 7)))


@pytest.mark.parametrize("kind", [*UNUSABLE, "constant", "one cell"])
def test_max_box_no_map_is_a_miss(kind):
    constant = {"constant": torch.full((1, 2, 2), 0.3), "one cell": torch.full((1, 1, 1), 0.3)}
    maps = (UNUSABLE | constant)[kind]
    whole = torch.tensor([[0, 0, 9, 7]])
    assert max_box_acc_v2(maps, whole, (7, 9)) == 0


def test_any_of_several_true_boxes_counts_as_the_only_one_does():
    """The map lies in the lower right: each sample has that box, alone or among others, or other boxes only."""
    maps, hit, away, none = one_pixel(7, 7).repeat(4, 1, 1), [7, 7, 8, 8], [0, 0, 3, 3], [0, 0, 0, 0]
    boxes = torch.tensor([[away, hit], [hit, none], [away, none], [none, none]])
    labels = torch.zeros(4).long()
    errors = localization_errors(maps[:, None], labels[:, None], labels, boxes, (8, 8))
    assert errors["localization_error_top1"] == pytest.approx(1 / 3)  # the last has no box
    assert max_box_acc_v2(maps, boxes, (8, 8)) == pytest.approx(2 / 3)
    numbers = localization_numbers(maps, boxes, box_masks(boxes, (8, 8)), None, None)
    assert numbers["localization_error_known"] == pytest.approx(1 / 3)
    for one in (boxes[:2, :0], 0 * boxes[:2]):
        assert math.isnan(max_box_acc_v2(maps[:2], one, (8, 8)))
        found = localization_errors(maps[:2, None], labels[:2, None], labels[:2], one, (8, 8))
        assert math.isnan(found["localization_error_top1"])


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_several_true_boxes_against_one_at_a_time(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, 4, 4, generator=generator)
    starts = torch.randint(0, 6, (3, 2, 2), generator=generator)
    boxes = torch.cat([starts, starts + torch.randint(1, 6, (3, 2, 2), generator=generator)], -1)
    found = segment_boxes(maps, (12, 12))
    best = torch.maximum(*(iou(found, one) for one in boxes.unbind(1)))
    assert torch.equal(iou(found, boxes), best)
    # One threshold, one sample: the better of both boxes.
    one = [max_box_acc_v2(maps[:1], part, (12, 12), 1) for part in (boxes[:1], boxes[:1, 0], boxes[:1, 1])]
    assert one[0] == max(one[1:])
    same = max_box_acc_v2(maps, boxes[:, 0], (12, 12), 5)
    assert max_box_acc_v2(maps, boxes[:, [0, 0]], (12, 12), 5) == same


def test_max_box_and_pxap_scale_the_minimum_to_zero():
    assert max_box_acc_v2(image("99888"), torch.tensor([[0, 0, 2, 1]]), (1, 5), 2) == 1
    # Scores of 1, 0, 0 and of 1, 5 / 9, 0.
    assert pxap(torch.cat([image("988"), image("950")]), torch.cat([image("100"), image("110")])) == 1


def test_max_box_a_box_over_the_whole_image():
    # All but one pixel in the middle lie above 0.
    assert max_box_acc_v2(image("111", "101", "111"), torch.tensor([[0, 0, 3, 3]]), (3, 3)) == 1


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_max_box_against_plain_python(seed):
    generator = np.random.default_rng(seed)
    maps = generator.normal(size=(4, 4, 3))
    corners = np.sort(generator.integers(0, 11, (4, 2, 2)), axis=1)
    corners[:, 1] += 1
    boxes = corners.reshape(4, 4)
    value = max_box_acc_v2(torch.from_numpy(maps), torch.from_numpy(boxes), (11, 14), 17)
    assert value == pytest.approx(slow_max_box_acc_v2(maps, boxes.tolist(), (11, 14), 17))


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([2.0**-90, 0.5, 2.0**90]))  # powers of two, so that nothing is rounded
def test_max_box_the_unit_and_the_negative_part_of_a_map_do_not_matter(seed, factor):
    generator = np.random.default_rng(seed)
    maps = torch.from_numpy(generator.normal(size=(3, 4, 4)).astype(np.float32))
    boxes = torch.tensor([[0, 0, 5, 9], [3, 3, 12, 12], [0, 6, 12, 12]])
    value = max_box_acc_v2(maps, boxes, (12, 12), 10)
    assert max_box_acc_v2(factor * maps.relu(), boxes, (12, 12), 10) == value
    masks = box_masks(boxes, (12, 12))
    assert pxap(factor * maps.relu(), masks) == pxap(maps, masks)


def test_max_box_no_threshold():
    with pytest.raises(ValueError, match="`thresholds` must be a number of thresholds, at least 1, got 0"):
        max_box_acc_v2(torch.rand(1, 2, 2), torch.ones(1, 4), (4, 4), 0)


def test_pxap_by_hand():
    # Falling: inside, outside, inside and outside together, outside. Precision 1 to recall 1/2, then 2/4 to 1.
    assert pxap(image("95330"), image("10100")) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    assert pxap(image("99000"), image("11000")) == 1
    assert pxap(image("00099"), image("11000")) == pytest.approx(2 / 5)


@pytest.mark.parametrize("kind", [*UNUSABLE, "constant"])
def test_pxap_no_map_has_the_share_of_the_region(kind):
    maps = (UNUSABLE | {"constant": torch.full((1, 3, 3), 0.3)})[kind]
    assert pxap(maps, box_masks(torch.tensor([[0, 0, 2, 8]]), (8, 8))) == 0.25
    assert pxap(maps, torch.ones(1, 8, 8)) == 1


def test_pxap_samples_without_a_mask_are_left_out():
    maps, masks = torch.cat([image("950"), image("999")]), torch.cat([image("100"), image("000")])
    assert pxap(maps, masks) == 1
    assert math.isnan(pxap(maps, 0 * masks))
    assert math.isnan(pxap(maps[:0], masks[:0]))


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_pxap_against_scikit_learn(seed, enlarge):
    # A few scores, tied within and across images, or one map of twice the size. Either is exact in float32: an
    # equal score of two pixels that is rounded apart changes the order.
    generator = np.random.default_rng(seed)
    maps = generator.integers(-9, 65, (1, 5, 6)) if enlarge else generator.integers(-1, 5, (3, 24, 30))
    maps[:, 2, 2] = 64 if enlarge else 4
    size = (10, 12) if enlarge else (24, 30)
    masks = generator.random((len(maps), *size)) > 0.7
    scores = np.stack([enlarged(cells, size) for cells in maps])
    lowest, highest = scores.min((1, 2), keepdims=True), scores.max((1, 2), keepdims=True)
    expected = average_precision_score(masks.ravel(), ((scores - lowest) / (highest - lowest)).ravel())
    assert pxap(torch.from_numpy(maps), torch.from_numpy(masks)) == pytest.approx(expected, abs=1e-9)


def test_pxap_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"`masks` must have the shape \(n, H, W\), n = 1, got \(1, 4\)"):
        pxap(torch.rand(1, 2, 2), torch.ones(1, 4))


def test_classes_that_are_not_ranked_count_where_they_are_the_label():
    boxes = torch.tensor([[0, 0, 4, 2]] * 4)
    masks, labels = box_masks(boxes, (4, 4)), torch.tensor([0, 0, 1, 1])
    upper, lower = torch.zeros(4, 4), torch.zeros(4, 4)
    upper[:2], lower[2:] = 1, 1
    maps = torch.stack([upper, lower, upper, lower])
    assert (
        localization_numbers(maps, boxes, masks, labels, torch.tensor([0, 1, 0, 1]))["localization_error_known"] == 0.5
    )
    assert localization_numbers(maps, boxes, masks, labels, torch.tensor([0, 1, 1, 0]))["localization_error_known"] == 0
    assert localization_numbers(maps, boxes, masks, None, torch.tensor([0, 1, 1, 0]))["localization_error_known"] == 0.5
    assert math.isnan(localization_numbers(maps, boxes, masks, labels, torch.full((4,), 7))["localization_error_known"])
