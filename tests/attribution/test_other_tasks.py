"""Targets for segmentation and detection, by hand and against captum."""

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from lightning_gradcam import Batch, DetectionTarget, SegmentationTarget, gradcam

BOXES = torch.tensor([[0, 0, 2, 2], [1, 0, 4, 4]])


def test_segmentation_by_hand():
    pixels = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[2.0, 1.0], [5.0, 0.0]]]])  # 2 classes on 2 x 2 pixels
    image = Batch(torch.rand(1, 1, 4, 4), regions={"top": torch.tensor([[0, 0, 4, 2]]), "bit": BOXES[:1] // 2})
    # Class 1 is predicted at the left.
    assert SegmentationTarget(1)(pixels, image).tolist() == [(2 + 5) / 2]
    assert SegmentationTarget(1)({"out": pixels}, image).tolist() == [3.5]
    assert SegmentationTarget(0, "top")(pixels, image).tolist() == [(1 + 2) / 2]
    # A quarter of the first pixel is one of its pixels all the same.
    assert SegmentationTarget(0, "bit")(pixels, image).tolist() == pytest.approx([1])
    assert SegmentationTarget(2)(torch.cat([pixels, pixels[:, :1] - 9], 1), image).tolist() == [0]  # nowhere


def test_segmentation_with_one_channel():
    pixels, image = torch.tensor([[[[3.0, -1.0]]]]), Batch(torch.rand(1, 1, 1, 2))
    assert SegmentationTarget(1)(pixels, image).tolist() == [3]
    assert SegmentationTarget(0)(pixels, image).tolist() == [1]


def test_segmentation_in_half_precision():
    pixels = torch.full((1, 2, 300, 300), 0.5, dtype=torch.float16)
    pixels[:, 1] = 2
    assert SegmentationTarget(1)(pixels, Batch(torch.rand(1, 3, 300, 300))).tolist() == [2]


def detections():
    first = {
        "boxes": torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 3], [2, 2, 4, 4], [0, 0, 2, 2]]),
        "labels": torch.tensor([1, 1, 1, 2]),
        "scores": torch.tensor([0.5, 0.25, 0.125, 1]),
    }
    return [first, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}]


def test_detection_by_hand():
    batch = Batch(torch.rand(2, 1, 4, 4), regions={"object": BOXES})
    assert DetectionTarget(1)(detections(), batch).tolist() == [0.875, 0]
    # The overlaps with the object are 1, 4 / 6 and 0.
    assert DetectionTarget(1, "object")(detections(), batch).tolist() == [0.75, 0]
    assert DetectionTarget(2)(detections(), batch).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("target", "output", "message"),
    [
        (SegmentationTarget(3), torch.rand(2, 3, 4, 4), "`index` 3 is outside the model's 3 classes"),
        (
            SegmentationTarget(0),
            torch.rand(2, 3),
            r"no logits \(n, classes, H, W\) in the model's output, got \(2, 3\)",
        ),
        (SegmentationTarget(0), ["a"], r"no logits .* in the model's output, got list"),
        (
            SegmentationTarget(0, "cat"),
            torch.rand(2, 3, 4, 4),
            r"`region` 'cat' is not one of .* regions, \['mask', 'ob",
        ),
        (DetectionTarget(0), torch.rand(2, 3), r"no boxes, labels and scores of each image .* tensor \(2, 3\)"),
        (DetectionTarget(0), [{"boxes": 1}, {}], r"no boxes, labels and scores of each image .* \[\{'boxes': int\}"),
        (DetectionTarget(0, "mask"), detections(), r"`region` 'mask' must be boxes \(n, 4\), got \(2, 4, 4\)"),
    ],
)
def test_refuses_in_words(target, output, message):
    batch = Batch(torch.rand(2, 1, 4, 4), regions={"object": BOXES, "mask": torch.ones(2, 4, 4)})
    with pytest.raises(ValueError, match=message):
        target(output, batch)


@pytest.mark.parametrize("index", [-1, 1.5, True, "cat"])
@pytest.mark.parametrize("target", [SegmentationTarget, DetectionTarget])
def test_refuses_what_is_no_class(target, index):
    with pytest.raises(ValueError, match="`index` must be a class, 0 or above, got"):
        target(index)


def test_deeplab_equals_captum(deeplab):
    images = torch.rand(2, 3, 64, 64)

    def mean_logit(images):
        return deeplab(images)["out"][:, 2, 10:30, 20:50].mean((1, 2))

    layer = "backbone.16"
    theirs = LayerGradCam(mean_logit, deeplab.get_submodule(layer)).attribute(images)[:, 0]
    region = torch.tensor([[20, 10, 50, 30]]).expand(2, 4)
    target = SegmentationTarget(2, "part")
    ours = gradcam(deeplab, images, layer, lambda output, _: target(output, Batch(images, regions={"part": region})))
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_faster_rcnn_equals_captum(detector):
    images = torch.rand(2, 3, 64, 64)

    def scores(images):
        found = detector(list(images))
        return torch.stack([image["scores"][image["labels"] == 1].sum() for image in found])

    layer = detector.backbone.body["13"]
    theirs = LayerGradCam(scores, layer).attribute(images)[:, 0]
    ours = gradcam(ListOfImages(detector), images, "model.backbone.body.13", DetectionTarget(1))
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


class ListOfImages(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(list(images))
