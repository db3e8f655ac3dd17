"""The numbers of signals, volumes and clips: by hand, against scipy, numpy and plain Python, and as those of images."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from sklearn.metrics import average_precision_score

from lightning_gradcam.attribution.regions import box_masks
from lightning_gradcam.metrics.drift import agreement, centroid_shift, chance, concentration, similarity, topk_iou
from lightning_gradcam.metrics.evidence import empty, explain_empty_maps, strength
from lightning_gradcam.metrics.localization import lift, mass
from lightning_gradcam.metrics.localization_numbers import localization_numbers, localization_of_groups
from lightning_gradcam.metrics.numbers import describe
from lightning_gradcam.metrics.protocols import (
    iou,
    localization_errors,
    max_box_acc_v2,
    pointing_game,
    pointing_game_with_rejection,
    pxap,
    segment_boxes,
)

SIGNAL, LATER = torch.tensor([[3.0, 0.0, 1.0, -5.0]]), torch.tensor([[2.0, 3.0, 0.0, 1.0]])
VOLUME = torch.tensor([[[[3.0, 0.0], [0.0, -5.0]], [[1.0, 0.0], [0.0, 0.0]]]])
MOVED = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, -1.0], [4.0, 3.0]]]])
GRIDS = {"signal": ((5,), (17,)), "volume": ((2, 4, 3), (5, 11, 8))}


def spots(size, *places):
    """A map ``(1, *size)`` of ones at these places and zeros elsewhere."""
    found = torch.zeros(1, *size)
    for place in places:
        found[0][place] = 1
    return found


def drawn(seed, grid, size, n=4):
    """Random maps with a positive cell, masks and boxes, of the last sample nothing."""
    generator = np.random.default_rng(seed)
    maps = torch.from_numpy(generator.normal(size=(n, *grid)).astype("float32"))
    starts = np.stack([generator.integers(0, side, n) for side in size[::-1]], 1)
    ends = np.stack([generator.integers(start + 1, side + 1) for start, side in zip(starts.T, size[::-1], strict=True)])
    boxes = torch.from_numpy(np.concatenate([starts, ends.T], 1))
    masks = torch.from_numpy(generator.random((n, *size)) > 0.9).float()
    maps.view(n, -1)[:, 1].abs_()
    masks.view(n, -1)[:, 3] = 1
    masks[-1], boxes[-1] = 0, 0
    return maps, masks, boxes


def enlarged(cells, size):
    """The positive part of one map at ``size``, linear in every axis, by numpy."""
    heights = np.maximum(cells, 0).astype(float)
    for axis, (old, new) in enumerate(zip(cells.shape, size, strict=True)):
        places = (np.arange(new) + 0.5) * old / new - 0.5
        heights = np.apply_along_axis(lambda row, to=places: np.interp(to, np.arange(len(row)), row), axis, heights)
    return heights


def flooded(above):
    """Box and number of voxels of each segment in reading order, connected at corners too, in plain Python."""
    left = set(map(tuple, np.argwhere(above).tolist()))
    segments = []
    while left:
        edge = [min(left)]
        left.discard(edge[0])
        segment = []
        while edge:
            place = edge.pop()
            segment.append(place)
            steps = product((-1, 0, 1), repeat=len(place))
            around = {tuple(map(sum, zip(place, step, strict=True))) for step in steps} & left
            left -= around
            edge.extend(around)
        sides = list(zip(*segment, strict=True))[::-1]
        segments.append(([min(side) for side in sides] + [max(side) + 1 for side in sides], len(segment)))
    return segments


def overlap(box, other, size):
    """Intersection over union, counted in voxels."""
    one, two = (box_masks(torch.as_tensor(each)[None], size).bool() for each in (box, other))
    return ((one & two).sum() / (one | two).sum()).item()


# By hand


def test_drift_by_hand():
    # P is 3/4, 0, 1/4, 0 and Q 1/3, 1/2, 0, 1/6; their centres lie at 1/2 and 1.
    assert similarity(SIGNAL, LATER).item() == pytest.approx(1 / 3)
    assert centroid_shift(SIGNAL, LATER).item() == pytest.approx(0.5 / 4)
    assert topk_iou(SIGNAL, LATER, share=0.5).item() == pytest.approx(1 / 3)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert concentration(SIGNAL).item() == pytest.approx(1 - entropy / math.log(4))
    # P is 3/4 at (0, 0, 0) and 1/4 at (1, 0, 0); Q 1/8 at (0, 0, 0), 1/2 at (1, 1, 0), 3/8 at (1, 1, 1).
    assert similarity(VOLUME, MOVED).item() == 1 / 8
    # Centres (1/4, 0, 0) and (7/8, 7/8, 3/8); the diagonal is sqrt(12).
    assert centroid_shift(VOLUME, MOVED).item() == pytest.approx((25 + 49 + 9) ** 0.5 / 8 / 12**0.5)
    assert topk_iou(VOLUME, MOVED).item() == 0  # two cells each
    assert topk_iou(VOLUME, MOVED, share=3 / 8).item() == 1 / 4  # two and three
    assert concentration(VOLUME).item() == pytest.approx(1 - entropy / math.log(8))
    assert chance(torch.cat([VOLUME, -VOLUME.abs(), MOVED])).tolist() == [7 / 8]


def test_agreement_of_grids_by_hand():
    assert agreement(VOLUME, MOVED.mean(1, keepdim=True)).item() == 1 / 8  # of one slice the positive parts 1, 0, 4, 3
    # Of two cells each: 3/4 and 1/4, 5/6 and 1/6.
    assert agreement(SIGNAL, LATER.unflatten(1, (2, 2)).mean(2)).item() == pytest.approx(3 / 4 + 1 / 6)


def test_evidence_by_hand():
    for maps, total in ((SIGNAL, -1), (VOLUME, -1), (MOVED, 7)):
        assert strength(maps).tolist() == [total]
        both = torch.cat([maps, -maps.abs(), maps * torch.nan])
        assert empty(both).tolist() == [False, True, False]
        assert set(explain_empty_maps(both)) == {"not finite", "negative"}


def test_mass_and_lift_by_hand():
    front, corner = box_masks(torch.tensor([[0, 0, 0, 4, 4, 2], [0, 0, 0, 1, 1, 1]]), (4, 4, 4)).split(1)
    assert (mass(VOLUME, front).item(), lift(VOLUME, front).item()) == (0.75, 1.5)
    assert mass(VOLUME, corner).item() == 0.75 / 8  # an eighth of one cell
    start = box_masks(torch.tensor([[0, 1]]), (8,))
    assert (mass(SIGNAL, start).item(), lift(SIGNAL, start).item()) == (0.375, 3)
    assert mass(-VOLUME.abs(), front).isnan().all()
    assert mass(VOLUME, 0 * front).isnan().all()


def test_pointing_by_hand():
    # From (0, 0, 0) to (1, 2, 2) the distance is 3, and along a signal it is the difference.
    maps, masks = spots((3, 4, 5), (0, 0, 0)), spots((3, 4, 5), (1, 2, 2))
    assert [pointing_game(maps, masks, tolerance).item() for tolerance in (2.99, 3, 1e12)] == [0, 1, 1]
    maps, masks = spots((30,), 4, 25), spots((30,), 9)
    assert [pointing_game(maps, masks, tolerance).item() for tolerance in (4.99, 5, 15, 16)] == [0, 0.5, 0.5, 1]
    shown = torch.stack([masks, 0 * masks], 1)
    assert pointing_game_with_rejection(torch.stack([maps, maps], 1), shown, 0.5, 5).tolist() == [[0.5, 0]]
    assert pointing_game_with_rejection(torch.stack([maps, maps], 1), shown, 1.5, 5).tolist() == [[0, 1]]


def test_segments_by_hand():
    # Two voxels that touch at a corner outdo one of a larger value; x of the last axis comes first.
    maps = spots((2, 4, 5), (0, 1, 2), (1, 2, 3)) + 9 * spots((2, 4, 5), (0, 3, 0))
    assert segment_boxes(maps, (2, 4, 5), 0.1).tolist() == [[2, 1, 0, 4, 3, 2]]
    assert segment_boxes(maps, (2, 4, 5)).tolist() == [[0, 3, 0, 1, 4, 1]]
    assert segment_boxes(torch.tensor([[0.0, 9.0, 0.0, 2.0, 2.0]]), (5,)).tolist() == [[3, 5]]
    assert segment_boxes(torch.ones(1, 1, 1, 1), (2, 3, 4)).tolist() == [[0, 0, 0, 4, 3, 2]]
    assert segment_boxes(-torch.ones(1, 2), (4,)).tolist() == [[0, 0]]


def test_iou_by_hand():
    boxes, others = torch.tensor([[0, 0, 0, 2, 2, 2], [0, 0, 0, 2, 2, 2]]), torch.tensor([[1] * 3 + [3] * 3, [1] * 6])
    assert iou(boxes, others).tolist() == [pytest.approx(1 / 15), pytest.approx(math.nan, nan_ok=True)]
    assert iou(torch.tensor([[0, 4]]), torch.tensor([[2, 6]])).item() == pytest.approx(2 / 6)


def test_errors_and_best_boxes_by_hand():
    size, truth = (8,), torch.tensor([[0, 4], [4, 8]])
    left, right = box_masks(truth, size)
    maps = torch.stack(
        [torch.stack([left, right]), torch.stack([left, right])]
    )  # of the second sample in a wrong place
    classes, labels = torch.tensor([[3, 5]]).repeat(2, 1), torch.tensor([3, 3])
    found = localization_errors(maps, classes, labels, truth, size)
    assert list(found.values()) == [0, 0.5, 0, 0.5]
    # Of the overlaps 1 and 1/2 with boxes of half of the front all reach 0.3 and one 0.7.
    front = box_masks(torch.tensor([[0, 0, 0, 4, 4, 2]]), (4, 4, 4)).repeat(2, 1, 1, 1)
    boxes = torch.tensor([[0, 0, 0, 4, 4, 2], [0, 0, 0, 4, 2, 2]])
    assert max_box_acc_v2(front, boxes, (4, 4, 4), 2) == pytest.approx((1 + 1 + 0.5) / 3)
    # Falling: inside, outside, then inside and outside together.
    scores, inside = torch.tensor([[[[9.0, 5.0], [3.0, 3.0]]]]), torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    assert pxap(scores, inside) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    assert pxap(scores.flatten(1), inside.flatten(1)) == pytest.approx(0.75)


# Against others


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("seed", range(3))
def test_drift_against_scipy(kind, seed):
    grid, size = GRIDS[kind]
    maps, others = (drawn(number, grid, size)[0] for number in (seed, seed + 9))
    for i, arrays in enumerate(zip(maps.double().numpy(), others.double().numpy(), strict=True)):
        p, q = (np.clip(array, 0, None) / np.clip(array, 0, None).sum() for array in arrays)
        assert similarity(maps, others)[i].item() == pytest.approx(1 - np.abs(p - q).sum() / 2, abs=1e-5)
        shift = np.subtract(scipy.ndimage.center_of_mass(p), scipy.ndimage.center_of_mass(q))
        expected = np.linalg.norm(shift) / np.linalg.norm(grid)
        assert centroid_shift(maps, others)[i].item() == pytest.approx(expected, abs=1e-5)
        expected = 1 - scipy.stats.entropy(p.ravel()) / math.log(math.prod(grid))
        assert concentration(maps)[i].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("grid", [(6,), (2, 3, 4)])
def test_mass_against_numpy_at_full_resolution(grid):
    size = tuple(4 * side for side in grid)
    maps, masks, _ = drawn(0, grid, size)
    positive = np.kron(np.maximum(maps.numpy(), 0), np.ones((1, *[4] * len(grid)), dtype="float32"))
    axes = tuple(range(1, positive.ndim))
    expected = torch.from_numpy((positive * masks.numpy()).sum(axes) / positive.sum(axes))
    expected[-1] = torch.nan  # no mask
    torch.testing.assert_close(mass(maps, masks), expected, equal_nan=True)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("seed", range(4))
def test_protocols_against_scipy_and_plain_python(kind, seed):
    grid, size = GRIDS[kind]
    maps, masks, boxes = drawn(seed, grid, size)
    tolerance, thresholds, best = 0.7 * seed, 7, []
    heights = [enlarged(cells, size) for cells in maps.numpy()]
    pointed, found = pointing_game(maps, masks, tolerance), segment_boxes(maps, size)
    for i, height in enumerate(heights[:-1]):
        near = scipy.ndimage.distance_transform_edt(masks[i].numpy() <= 0.5) <= tolerance
        assert pointed[i].item() == pytest.approx(near[height > height.max() * (1 - 1e-5)].mean())
        segments = flooded(height > 0.15 * height.max())
        most = max(voxels for _, voxels in segments)
        assert found[i].tolist() == next(box for box, voxels in segments if voxels == most)
        assert iou(found[i : i + 1], boxes[i : i + 1]).item() == pytest.approx(overlap(found[i], boxes[i], size))
        score = (height - height.min()) / (height.max() - height.min())
        levels = [flooded(score > t / thresholds) for t in range(thresholds)]
        best.append([max(overlap(box, boxes[i], size) for box, _ in level) for level in levels])
    assert pointed[-1].isnan()
    accuracies = [(np.array(best) >= least).mean(0).max() for least in (0.3, 0.5, 0.7)]
    assert max_box_acc_v2(maps, boxes, size, thresholds) == pytest.approx(np.mean(accuracies))
    scores = [(height - height.min()) / (height.max() - height.min()) for height in heights[:-1]]
    expected = average_precision_score(masks[:-1].numpy().ravel(), np.float32(scores).ravel())
    assert pxap(maps, masks) == pytest.approx(expected, abs=1e-3)


# As those of images


def with_axis(boxes, axis):
    """Boxes with one more axis of length 1, which is ``axis`` of the maps."""
    place = boxes.shape[1] // 2 + 1 - axis
    starts, ends = (side.unbind(1) for side in boxes.chunk(2, 1))
    nothing, all_of_it = torch.zeros_like(boxes[:, 0]), torch.ones_like(boxes[:, 0])
    sides = [*starts[:place], nothing, *starts[place:], *ends[:place], all_of_it, *ends[place:]]
    return torch.stack(sides, 1) * (boxes.amax(1) > 0)[:, None]


@pytest.mark.parametrize(("grid", "size"), [((5, 6), (13, 17)), ((7,), (40,))], ids=["image", "signal"])
@pytest.mark.parametrize("place", [1, 2, -1])
@pytest.mark.parametrize("seed", range(3))
def test_one_more_axis_of_one_cell_changes_nothing(grid, size, place, seed):
    maps, masks, boxes = drawn(seed, grid, size)
    others = drawn(seed + 9, grid, size)[0]
    axis = place % (maps.ndim + 1)
    thin = [one.unsqueeze(axis) for one in (maps, others, masks)]
    more, thin_boxes = tuple(thin[2].shape[1:]), with_axis(boxes, axis)
    assert torch.equal(box_masks(thin_boxes, more), box_masks(boxes, size).unsqueeze(axis))

    def same(found, expected):
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-6)

    def same_numbers(found, expected):
        # PxAP ranks the pixels: two of nearly one score may change places, since the kernels of images round otherwise.
        for key in [key for key in expected if "pxap" in key]:
            assert found.pop(key) == pytest.approx(expected.pop(key), abs=1e-4, nan_ok=True)
        same(found, expected)

    for measure in (similarity, agreement, topk_iou):
        same(measure(*thin[:2]), measure(maps, others))
    diagonals = [sum(side**2 for side in one.shape[1:]) ** 0.5 for one in (maps, thin[0])]
    same(centroid_shift(*thin[:2]) * diagonals[1], centroid_shift(maps, others) * diagonals[0])
    same(chance(thin[0]), chance(maps))
    same(describe(thin[0], True, {"here": thin[2]}), describe(maps, True, {"here": masks}))
    same(pointing_game(thin[0], thin[2], 2), pointing_game(maps, masks, 2))
    top, thin_top = torch.stack([maps, others], 1), torch.stack(thin[:2], 1)
    shown = [torch.stack([one, 0 * one], 1) for one in (masks, thin[2])]
    expected = pointing_game_with_rejection(top, shown[0], 1.5, 2)
    same(pointing_game_with_rejection(thin_top, shown[1], 1.5, 2), expected)
    same(segment_boxes(thin[0], more), with_axis(segment_boxes(maps, size), axis))
    same(iou(segment_boxes(thin[0], more), thin_boxes), iou(segment_boxes(maps, size), boxes))
    classes, labels = torch.tensor([[0, 1]] * 4), torch.tensor([0, 1, 1, 0])
    expected = localization_errors(top, classes, labels, boxes, size)
    same(localization_errors(thin_top, classes, labels, thin_boxes, more), expected)
    expected = localization_numbers(maps, boxes, masks, labels, classes[:, 0])
    same_numbers(localization_numbers(thin[0], thin_boxes, thin[2], labels, classes[:, 0]), expected)
    expected = localization_of_groups({"cam": maps}, masks, masks, labels, "abab", None, None)
    same_numbers(localization_of_groups({"cam": thin[0]}, thin[2], thin[2], labels, "abab", None, None), expected)


# Refusals


def test_maps_of_different_shapes_are_refused():
    for measure in (similarity, centroid_shift, topk_iou):
        with pytest.raises(ValueError, match=r"same shape, got \(2, 2, 3\) and \(2, 2, 2, 3\); bring both to one grid"):
            measure(torch.rand(2, 2, 3), torch.rand(2, 2, 2, 3))
    with pytest.raises(ValueError, match=r"as many axes, got \(2, 2, 3\) and \(2, 3\); compare maps of the same"):
        agreement(torch.rand(2, 2, 3), torch.rand(2, 3))


def test_shapes_that_do_not_fit():
    volumes, tail = torch.rand(2, 2, 3, 3), "; give one row for each sample, and all with the same spatial axes"
    for function in (mass, lift, pointing_game, pxap):
        with pytest.raises(
            ValueError, match=rf"`masks` must have the shape \(n, D, H, W\), n = 2, got \(1, 4, 4, 4\){tail}"
        ):
            function(volumes, torch.ones(1, 4, 4, 4))
        with pytest.raises(ValueError, match=r"`maps` must have the shape \(n, h, w\), got \(2, 2, 3, 3\)"):
            function(volumes, torch.ones(2, 4, 4))
        with pytest.raises(ValueError, match=r"`masks` must have the shape \(n, D, H, W\), n = 2, got \(2, 9\)"):
            function(volumes, torch.ones(2, 9))
    with pytest.raises(ValueError, match=r"`maps` must have the shape \(n, w\), got \(2, 2, 3, 3\)"):
        segment_boxes(volumes, (9,))
    with pytest.raises(ValueError, match=r"`boxes` must have the shape \(n, 6\), n = 2, got \(2, 4\)"):
        max_box_acc_v2(volumes, torch.ones(2, 4), (4, 6, 6))
    with pytest.raises(ValueError, match=r"`others` must have the shape \(n, 2\), n = 2, got \(2, 6\)"):
        iou(torch.ones(2, 2), torch.ones(2, 6))
