"""How a batch is read, and what is refused."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from lightning_gradcam import Batch
from lightning_gradcam.attribution.batch import joined, shift
from lightning_gradcam.attribution.reading import default_batch, read_batch, structure
from lightning_gradcam.attribution.regions import are_boxes

IMAGES = torch.rand(2, 3, 4, 4)
VOLUMES = torch.rand(2, 1, 3, 4, 5)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        {"image": IMAGES, "label": LABELS},
        {"images": IMAGES, "labels": LABELS, "id": "a"},
        {"pixel_values": IMAGES, "labels": LABELS},
    ],
)
def test_reads_the_usual_batches(batch):
    read = default_batch(batch)
    assert read.images is IMAGES
    assert read.labels is LABELS


def test_reads_a_batch_without_labels():
    assert default_batch({"image": IMAGES}).labels is None


@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        (IMAGES.long(), r"tensor \(2, 3, 4, 4\) int64"),
        ((LABELS, [1, 2]), r"\(tensor \(2,\) int64, \[2 x int\]\)"),
        ({"z": IMAGES[0, 0]}, r"\{'z': tensor \(4, 4\) float32\}"),
        ((IMAGES[0, 0], LABELS), r"\(tensor \(4, 4\) float32, tensor \(2,\) int64\)"),
        ({"a": IMAGES, "b": IMAGES}, r".*; images may be any of batch\['a'\], batch\['b'\]"),
        ("text", "str"),
    ],
)
def test_shows_what_it_cannot_read(batch, shown):
    with pytest.raises(ValueError, match=f"cannot read the batch .*{shown}.*pass `batch_fn=lambda batch: Batch"):
        default_batch(batch)


def test_structure_of_long_lists():
    assert structure(list(range(100))) == "[100 x int]"
    assert structure([1, "a"] * 50) == "[" + "int, str, " * 4 + "...]"
    ragged = [{"boxes": torch.zeros(i, 4)} for i in range(9)]
    assert structure(ragged) == "[9 like {'boxes': tensor (0, 4) float32}]"
    assert structure({"a": {"b": {"c": {"d": 1}}}}) == "{'a': {'b': {'c': dict of 1}}}"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"images": "x"}, TypeError, "`images` must be a tensor, got str"),
        ({"images": IMAGES[0, 0]}, ValueError, r"`images` must be \(n, c, H, W\), .* and not empty, got \(4, 4\)"),
        ({"images": IMAGES[:0]}, ValueError, r"`images` must be .* got \(0, 3, 4, 4\)"),
        ({"images": IMAGES, "labels": [0, 1]}, TypeError, "`labels` must be a tensor, got list"),
        (
            {"images": IMAGES, "labels": LABELS[:1]},
            ValueError,
            r"`labels` must be \(2,\) or \(2, classes\), got \(1,\)",
        ),
        (
            {"images": IMAGES, "regions": {"dog": torch.zeros(2, 5)}},
            ValueError,
            r"region 'dog' must be boxes \(2, 4\), \(2, m, 4\) or masks \(2, 4, 4\), got \(2, 5\)",
        ),
        ({"images": IMAGES, "ids": ["a"]}, ValueError, "`ids` must name 2 samples, got 1"),
        (
            {"images": IMAGES, "time_axis": 1},
            ValueError,
            r"`time_axis` must be 2 .* got 1 for images \(2, 3, 4",
        ),
        ({"images": VOLUMES, "time_axis": 0}, ValueError, "`time_axis` must be 2 of clips .* got 0"),
        (
            {"images": VOLUMES, "spacing": (1, 1)},
            ValueError,
            r"`spacing` must be 3 numbers .* got \(1.0, 1.0\)",
        ),
        ({"images": VOLUMES, "spacing": (1, 0, 1)}, ValueError, "`spacing` must be 3 numbers above 0"),
        (
            {"images": VOLUMES, "regions": {"tumour": torch.zeros(2, 4)}},
            ValueError,
            r"region 'tumour' must be boxes \(2, 6\), \(2, m, 6\) or masks \(2, 3, 4, 5\), got \(2, 4\); of clips .*",
        ),
    ],
)
def test_batch_refuses_wrong_shapes(fields, error, message):
    with pytest.raises(error, match=message):
        Batch(**fields)


@pytest.mark.parametrize(
    ("shape", "time_axis", "size", "time"),
    [
        ((2, 1, 50), None, (50,), None),
        ((2, 3, 6, 5), None, (6, 5), None),
        ((2, 6, 5, 3), None, (6, 5), None),
        ((2, 1, 7, 6, 5), None, (7, 6, 5), None),
        ((2, 3, 7, 6, 5), 2, (7, 6, 5), 0),
        ((2, 7, 3, 6, 5), 1, (7, 6, 5), 0),
        ((2, 1, 6, 5, 7), 4, (6, 5, 7), 2),
    ],
)
def test_spatial_axes(shape, time_axis, size, time):
    batch = Batch(torch.rand(shape), time_axis=time_axis)
    assert (batch.size, batch.time, batch.pictures.shape[2:]) == (size, time, size)
    if shape[1] == 7:
        assert torch.equal(batch.pictures[:, 2, 4], batch.images[:, 4, 2])
    moved, images = shift(batch).pictures, batch.pictures
    assert torch.equal(moved[..., 1:], images[..., :-1])
    assert torch.equal(moved[..., 0], images[..., 0])


def test_what_images_know_of_themselves():
    """MONAI's carry an affine, of which the class is enough here; torchvision's videos are (n, t, c, H, W)."""

    class MetaTensor(torch.Tensor):
        pixdim = None

    volumes = VOLUMES.as_subclass(MetaTensor)
    for given, expected in [
        (torch.tensor([1.0, 2.0, 0.5]), (1, 2, 0.5)),
        ([torch.tensor([1.0, 2.0, 0.5])] * 2, (1, 2, 0.5)),
        ([torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 2.0, 0.7])], None),
        (torch.tensor([1.0, 2.0, torch.nan]), None),
        (torch.ones(2), None),
    ]:
        volumes.pixdim = given
        batch = Batch(volumes)
        assert (batch.spacing, type(batch.images)) == (expected, torch.Tensor)
        left_out = "leaves out the voxel spacing, which is not one and the same for all samples"
        assert (left_out in read_batch(volumes).notes) == (expected is None)
    assert Batch(volumes, spacing=(3, 3, 1)).spacing == (3, 3, 1)
    video = Batch(tv_tensors.Video(torch.rand(2, 7, 3, 6, 5)))
    assert (video.time_axis, type(video.images)) == (1, torch.Tensor)


def test_regions_of_torchvision():
    boxes = tv_tensors.BoundingBoxes([[1, 1, 2, 3], [0, 0, 4, 4]], format="XYWH", canvas_size=(4, 4))
    masks = tv_tensors.Mask(torch.ones(2, 4, 4))
    batch = Batch(IMAGES, regions={"dog": boxes, "cat": masks})
    assert batch.regions["dog"].tolist() == [[1, 1, 3, 4], [0, 0, 4, 4]]
    assert {type(region) for region in batch.regions.values()} == {torch.Tensor}
    with pytest.raises(TypeError, match=r"`regions` must hold tensors, got list; `torch.nn.utils.rnn.pad_sequence\("):
        Batch(IMAGES, regions={"dog": [torch.tensor([[1, 2, 3, 4]])]})


@pytest.mark.parametrize("images", [torch.rand(2, 1, 9), IMAGES, VOLUMES])
def test_several_boxes_a_sample(images):
    d = images.ndim - 2
    boxes = torch.zeros(2, 3, 2 * d)
    boxes[:, :2, d:] = torch.tensor([[1.0, 2], [3, 0]])[..., None]
    batch = Batch(images, regions={"dog": boxes}, ids=["a", "b"])
    assert torch.equal(batch.regions["dog"], boxes)
    assert torch.equal(batch.part(slice(1, 2)).regions["dog"], boxes[1:])
    assert torch.equal(batch.repeated(2).regions["dog"], boxes[[0, 0, 1, 1]])
    assert torch.equal(joined(batch, images).regions["dog"], boxes[[0, 1, 0, 1]])
    none = Batch(images, regions={"dog": boxes[:, :0]}).regions["dog"]
    assert torch.equal(none, torch.zeros(2, 1, 2 * d))
    for wrong in (boxes[..., 1:], boxes[:1], boxes[None]):
        with pytest.raises(ValueError, match=rf"region 'dog' must be boxes \(2, {2 * d}\), \(2, m, {2 * d}\) or masks"):
            Batch(images, regions={"dog": wrong})


def test_what_may_be_boxes_or_masks_of_narrow_images_is_masks():
    assert not are_boxes(Batch(IMAGES, regions={"dog": torch.ones(2, 4, 4)}).regions["dog"], (4, 4))


def test_shift_moves_the_images_by_one_pixel():
    moved = shift(Batch(IMAGES, LABELS))
    assert torch.equal(moved.images[..., 1:], IMAGES[..., :-1])
    assert torch.equal(moved.images[..., 0], IMAGES[..., 0])
    assert moved.labels is LABELS


def test_first_of_a_batch():
    tokens = {"tokens": torch.arange(10).reshape(2, 5), "scale": torch.tensor(3.0), "prompt": "a"}
    batch = Batch(IMAGES, LABELS, {"dog": torch.ones(2, 4)}, tokens, ["x", "y"]).part(slice(1))
    assert torch.equal(batch.images, IMAGES[:1])
    assert batch.labels.tolist() == [0]
    assert batch.regions["dog"].shape == (1, 4)
    assert batch.inputs["tokens"].tolist() == [[0, 1, 2, 3, 4]]
    assert batch.inputs["scale"] == 3
    assert batch.ids == ["x"]


def test_groups_are_names_of_the_samples():
    images = torch.zeros(3, 1, 2, 2)
    assert Batch(images, groups=torch.tensor([0, 1, 0])).groups == ["0", "1", "0"]
    assert Batch(images, groups=list(np.array([1, 2, 1]))).groups == ["1", "2", "1"]
    with pytest.raises(TypeError, match="`groups` must name each sample, got one text, 'abc'"):
        Batch(images, groups="abc")
    assert Batch(images, groups=["a", "b", "a"]).part(slice(1, None)).groups == ["b", "a"]
    with pytest.raises(ValueError, match="`groups` must name 3 samples, got 2"):
        Batch(images, groups=["a", "b"])
    with pytest.raises(ValueError, match=r"the name of a group must be up to 64 letters.* got 'a/b'"):
        Batch(images, groups=["a", "a/b", "a"])
