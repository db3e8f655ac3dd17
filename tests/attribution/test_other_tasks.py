"""Targets for segmentation, detection, regression and embeddings, by hand and against captum."""

from types import SimpleNamespace

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from lightning_gradcam import Batch, DetectionTarget, EmbeddingTarget, RegressionTarget, SegmentationTarget, gradcam

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
            r"no logits \(n, classes, H, W\) in the model's output, got tensor \(2, 3\)",
        ),
        (SegmentationTarget(0), ["a"], r"no logits .* in the model's output, got \[str\]"),
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


def test_segmentation_of_each_samples_label():
    pixels = torch.tensor([[[[1.0, 2.0]], [[5.0, 1.0]], [[0.0, 3.0]]]]).repeat(3, 1, 1, 1)
    half = torch.tensor([[[1.0, 0.0]]]).repeat(3, 1, 1)
    batch = Batch(torch.rand(3, 1, 1, 2), torch.tensor([1, 2, -100]), {"object": half})
    target = SegmentationTarget(region="object")
    # The third has no label: the class other than 0 that stands out most, where the model itself sees it.
    assert target(pixels, batch).tolist() == [5, 0, 5]
    assert target.classes(pixels, batch).tolist() == [1, 2, 1]
    words = target.words(pixels, batch)
    assert (words.truth, words.said) == (["50%"] * 3, ["50%"] * 3)
    with pytest.raises(ValueError, match="`index=None` asks for each sample's label and the batch has none"):
        target(pixels, Batch(batch.images))


def test_detection_of_each_samples_label():
    batch = Batch(torch.rand(2, 1, 4, 4), torch.tensor([2, -100]))
    assert DetectionTarget()(detections(), batch).tolist() == [1, 0]
    assert DetectionTarget().words(detections(), batch).said == ["1 box", "0 boxes"]
    first = detections()[:1] * 2
    assert DetectionTarget()(first, batch).tolist() == [1, 1.875]  # without a label all boxes count
    assert DetectionTarget(1).words(first, batch).said == ["3 boxes"] * 2


class DetrObjectDetectionOutput(SimpleNamespace):
    """By this name the last column is of no object."""


def test_detection_of_queries_by_hand():
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]])
    places = torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]]])  # the left and the right half
    batch = Batch(torch.rand(1, 3, 4, 4), regions={"left": torch.tensor([[0, 0, 2, 4]])})
    output = DetrObjectDetectionOutput(logits=probabilities.log(), pred_boxes=places)
    assert DetectionTarget(0)(output, batch).tolist() == pytest.approx([0.625])
    assert DetectionTarget(0, "left")(output, batch).tolist() == pytest.approx([0.5])
    assert DetectionTarget(0).words(output, batch).said == ["1 box"]
    assert DetectionTarget(1).words(output, batch).said == ["0 boxes"]
    output = SimpleNamespace(logits=probabilities.logit(), pred_boxes=places)  # each class by itself
    assert DetectionTarget(2)(output, batch).tolist() == pytest.approx([1.0])
    assert DetectionTarget(2).words(output, batch).said == ["1 box"]
    with pytest.raises(ValueError, match="`index` 3 is outside the model's 3 classes"):
        DetectionTarget(3)(output, batch)


def test_regression_by_hand():
    output, batch = torch.tensor([[1.5, -2.0], [0.25, 1000.0]]), Batch(torch.rand(2, 3, 4, 4))
    assert RegressionTarget()(output, batch).tolist() == [1.5, 0.25]
    assert RegressionTarget(1)({"value": output}, batch).tolist() == [-2, 1000]
    assert RegressionTarget()(output[:, 1], batch).tolist() == [-2, 1000]
    assert RegressionTarget(1).words(output, batch).said == ["pred -2", "pred 1000"]
    with pytest.raises(ValueError, match="`column` 2 is outside the model's 2 outputs"):
        RegressionTarget(2)(output, batch)
    for wrong in (-1, None, "a", True):
        with pytest.raises(ValueError, match="`column` must be a whole number, 0 or above, got"):
            RegressionTarget(wrong)


def test_embeddings_by_hand():
    output, batch = torch.tensor([[3.0, 4.0], [0.0, -2.0]]), Batch(torch.rand(2, 3, 4, 4))
    assert EmbeddingTarget()(output, batch).tolist() == [5, 2]
    assert EmbeddingTarget([0.0, 1.0])(output, batch).tolist() == pytest.approx([0.8, -1])
    assert EmbeddingTarget(torch.tensor([0.0, 1.0])) == EmbeddingTarget((0.0, 1.0))
    assert EmbeddingTarget("view")((output, output.flip(1)), batch).tolist() == pytest.approx([24 / 25, 0])
    assert EmbeddingTarget().words(output, batch).said == ["norm 5", "norm 2"]
    assert repr(EmbeddingTarget([0.0, 1.0])).startswith("EmbeddingTarget(similar_to=2 numbers, ")
    assert repr(EmbeddingTarget([0.0, 1.0])) != repr(EmbeddingTarget([1.0, 0.0]))
    with pytest.raises(ValueError, match=r'`similar_to="view"` needs two embeddings \(n, d\), got tensor'):
        EmbeddingTarget("view")(output, batch)
    with pytest.raises(ValueError, match="`similar_to` has 3 numbers, the embedding 2"):
        EmbeddingTarget([1, 2, 3])(output, batch)
    for wrong in ("other", [], [[1.0]], [float("nan")]):
        with pytest.raises(ValueError, match=r"`similar_to` must be a finite vector \(d,\)"):
            EmbeddingTarget(wrong)


def test_what_comes_out_of_an_other_view_counts_as_given():
    output, batch = torch.rand(2, 4, requires_grad=True), Batch(torch.rand(2, 3, 4, 4))
    EmbeddingTarget("view")((output, output * 2), batch).sum().backward()
    torch.testing.assert_close(output.grad, torch.zeros(2, 4))  # along itself a vector grows no more similar
