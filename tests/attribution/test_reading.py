"""A loader's batch of any form: what is taken for images, labels, masks and boxes."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torchvision import tv_tensors

from lightning_gradcam.attribution.batch import Batch, joined
from lightning_gradcam.attribution.names import NO_LABEL
from lightning_gradcam.attribution.reading import AskError, default_batch, read_batch

IMAGES = torch.rand(2, 3, 8, 8)
LABELS = torch.tensor([1, 0])
Pair = namedtuple("Pair", ["picture", "category"])


@dataclass(frozen=True)
class Item:
    image: torch.Tensor
    gt_label: torch.Tensor


@pytest.mark.parametrize(
    "raw",
    [
        (IMAGES, LABELS, ["a.png", "b.png"]),
        (IMAGES, LABELS, torch.arange(2)),
        (IMAGES, LABELS, torch.rand(2, 5)),
        {"img": IMAGES, "lab": LABELS, "idx": torch.arange(2)},
        {"idx": torch.arange(2), "X": IMAGES, "Y": LABELS},
        {"image": IMAGES, "target": LABELS, "other": torch.rand(2, 3, 8, 8)},
        {"picture": IMAGES, "class_label": LABELS},
        Item(IMAGES, LABELS),
        Pair(IMAGES, LABELS),
        ({"image": IMAGES, "name": ["a", "b"]}, LABELS),
        {"inputs": {"image": IMAGES}, "labels": LABELS},
        ([IMAGES, IMAGES + 1], LABELS),
        (IMAGES, [1, 0]),
        {"image": IMAGES, "label": LABELS, "bbox": torch.rand(2, 4)},
        (torch.tensor([7, 9]), IMAGES, LABELS),
        {"image": IMAGES, "class_weight": torch.ones(2), "target_size": torch.ones(2, 2), "class_id": LABELS},
        (IMAGES, torch.tensor([0.5, 0.25]), LABELS),
        {"image": IMAGES, "instances": torch.ones(2, 8, 8), "semantic": torch.ones(2, 8, 8), "y": LABELS},
    ],
)
def test_images_and_labels_are_found_by_what_they_are(raw):
    read = default_batch(raw)
    assert read.images is IMAGES
    assert read.labels.tolist() == [1, 0]
    assert read.regions == {}


@pytest.mark.parametrize("raw", [IMAGES, [IMAGES, IMAGES + 1], {"image": IMAGES, "idx": LABELS}, (IMAGES, ["a", "b"])])
def test_images_without_labels(raw):
    read = default_batch(raw)
    assert read.images is IMAGES
    assert read.labels is None


def test_what_was_taken_for_what_is_told_as_one_would_write_it():
    read = read_batch({"x": {"img": IMAGES}, "y": LABELS, "idx": LABELS, "bbox": torch.rand(2, 4)})
    assert read.notes == (
        "reads images from `batch['x']['img']`, labels from `batch['y']`",
        "sets aside `batch['idx']`, `batch['bbox']`",
    )
    assert read_batch(Item(IMAGES, LABELS)).notes == ("reads images from `batch.image`, labels from `batch.gt_label`",)


def test_what_cannot_be_told_is_asked_for():
    with pytest.raises(AskError, match=r"images may be any of batch\['left'\], batch\['right'\]") as raised:
        read_batch({"left": IMAGES, "right": IMAGES})
    assert raised.value.arguments == {"batch_fn": "lambda batch: Batch(images=batch['left'])"}
    with pytest.raises(AskError, match=r"cannot read the batch \{'volume': tensor \(2, 1, 1, 4, 8, 8\) float32\}"):
        read_batch({"volume": torch.rand(2, 1, 1, 4, 8, 8)})


VOLUMES = torch.rand(2, 1, 4, 6, 5)
CLIPS = torch.rand(2, 4, 3, 6, 5)  # (n, t, c, H, W)
TUMOURS = torch.zeros(2, 4, 6, 5, dtype=torch.uint8)
TUMOURS[0, 1:3, 2:4, 1] = 2
TUMOURS[1, 0, 0, 0] = 1


@pytest.mark.parametrize(
    ("raw", "images", "labels"),
    [
        ((VOLUMES, LABELS), "batch[0]", "batch[1]"),
        ({"volume": VOLUMES, "embedding": torch.rand(2, 7, 9), "label": LABELS}, "batch['volume']", "batch['label']"),
        ({"video": CLIPS, "thumbnail": torch.rand(2, 3, 6, 5), "label": LABELS}, "batch['video']", "batch['label']"),
        ((torch.rand(2, 3, 50), LABELS), "batch[0]", "batch[1]"),
        ({"ecg": torch.rand(2, 12, 50), "other": torch.rand(2, 8, 8), "y": LABELS}, "batch['ecg']", "batch['y']"),
    ],
)
def test_volumes_clips_and_signals(raw, images, labels):
    assert read_batch(raw).notes[0] == f"reads images from `{images}`, labels from `{labels}`"


def test_images_come_before_signals():
    """A sequence of vectors beside images, such as embedded words, is no signal."""
    assert read_batch((torch.rand(2, 7, 9), IMAGES, LABELS)).notes[0] == (
        "reads images from `batch[1]`, labels from `batch[2]`"
    )


def test_masks_of_volumes():
    for mask in (TUMOURS, TUMOURS[:, None], TUMOURS.float()):
        read = read_batch({"image": VOLUMES, "label": mask})
        assert read.main_classes.tolist() == [2, 1]
        assert torch.equal(read.batch.regions["object"], (TUMOURS > 0).float())
    one_hot = torch.nn.functional.one_hot(TUMOURS.long(), 3).movedim(-1, 1).float()
    assert read_batch({"image": VOLUMES, "label": one_hot}).main_classes.tolist() == [2, 1]


def test_a_mask_tells_which_axis_is_time():
    batch = read_batch((CLIPS, TUMOURS, LABELS)).batch
    assert (batch.time_axis, batch.size) == (1, (4, 6, 5))
    assert torch.equal(batch.regions["object"], (TUMOURS > 0).float())


def test_other_images_of_few_values_are_no_masks():
    binary = (torch.rand(2, 3, 8, 8) > 0.5).float()
    for first, second in ((binary, 1 - binary), (binary[:, :1], 1 - binary[:, :1]), (IMAGES, binary)):
        assert read_batch((first, second, LABELS)).batch.regions == {}
    read = read_batch((IMAGES, torch.ones(2, 8, 8), squares(2, 3)))  # of a mask that holds all the other one counts
    assert read.batch.regions["object"].sum((1, 2)).tolist() == [4, 9]


def test_of_several_labels_by_names_of_their_own_none_is_guessed():
    with pytest.raises(AskError, match=r"labels may be any of batch\['coarse_label'\], batch\['fine_label'\]"):
        read_batch({"img": IMAGES, "coarse_label": LABELS, "fine_label": LABELS + 1})


def test_of_several_labels_together_none_is_guessed():
    with pytest.raises(AskError, match=r"labels may be any of batch\[1\]\[0\], batch\[1\]\[1\]; pass") as raised:
        read_batch((IMAGES, (LABELS, LABELS + 1)))
    assert raised.value.arguments == {"batch_fn": "lambda batch: Batch(images=batch[0], labels=batch[1][0])"}


def squares(*sides, value=1, size=8):
    """Masks with a square of each side in the upper left corner."""
    masks = torch.zeros(len(sides), size, size, dtype=torch.long)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = value
    return masks


@pytest.mark.parametrize(
    "mask",
    [
        squares(2, 3),
        squares(2, 3)[:, None],
        squares(2, 3).float(),
        squares(2, 3).bool(),
        squares(2, 3, value=255).byte(),
        torch.stack([1 - squares(2, 3), squares(2, 3)], 1),  # a channel a class, of which the first is the background
    ],
    ids=["long", "a channel", "float", "bool", "255", "channels"],
)
@pytest.mark.parametrize("name", ["mask", "label", "anything"])
def test_a_mask_is_one_by_its_size_and_values_whatever_its_name(mask, name):
    read = read_batch({"image": IMAGES, name: mask})
    assert read.batch.labels is None
    assert read.main_classes.tolist() == [1, 1]
    assert torch.equal(read.batch.regions["object"], squares(2, 3).float())
    assert default_batch((IMAGES, mask)).labels.tolist() == [1, 1]


def test_the_class_of_most_pixels_is_that_of_no_background_and_none_that_is_not_labelled():
    mask = torch.zeros(2, 8, 8, dtype=torch.long)
    mask[0, 0, :5], mask[0, 1, :3], mask[0, 2:4] = 3, 2, 255
    mask[1, 0] = -1
    read = read_batch((IMAGES, mask))
    assert read.main_classes.tolist() == [3, NO_LABEL]
    assert read.batch.regions["object"].sum((1, 2)).tolist() == [5, 0]


def test_what_is_no_mask():
    for other in (torch.rand(2, 8, 8), torch.rand(2, 1, 8, 8), torch.rand(2, 3, 8, 8), squares(2, 3, size=4)):
        read = read_batch((IMAGES, other))
        assert read.batch.regions == {}
        assert read.main_classes is None


def test_a_mask_beside_labels():
    read = read_batch({"image": IMAGES, "label": LABELS, "mask": squares(2, 3)})
    assert read.batch.labels.tolist() == [1, 0]
    assert read.batch.regions["object"].sum((1, 2)).tolist() == [4, 9]


TARGETS = [
    {"boxes": torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 4], [0, 0, 1, 1]]), "labels": torch.tensor([5, 5, 7])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]


def test_targets_of_torchvision():
    read = read_batch(((torch.rand(3, 8, 8), torch.rand(3, 6, 7)), tuple(TARGETS)))
    assert read.batch.images.shape == (2, 3, 8, 8)
    assert not read.batch.images[1, :, 6:].any()
    assert read.sizes.tolist() == [[8, 8], [6, 7]]
    assert read.main_classes.tolist() == [5, NO_LABEL]
    none = [0, 0, 0, 0]
    assert read.batch.regions["object"].tolist() == [[[0, 0, 4, 4], [2, 2, 6, 4]], [none, none]]


def test_targets_without_any_box():
    read = read_batch((list(IMAGES), [TARGETS[1]] * 2))
    assert read.batch.regions["object"].tolist() == [[[0, 0, 0, 0]]] * 2
    assert read.main_classes.tolist() == [NO_LABEL] * 2


def test_boxes_that_do_not_fit_are_left_out_and_their_classes_stay():
    away = TARGETS[0] | {"boxes": TARGETS[0]["boxes"] + 50}
    read = read_batch((list(IMAGES), [away, TARGETS[1]]))
    assert read.batch.regions == {}
    assert read.main_classes.tolist() == [5, NO_LABEL]
    assert "leaves out `batch[1]`: region 'object' has boxes outside the images of 8 x 8 pixels" in read.notes[1]


def test_targets_with_masks_and_boxes_in_another_format():
    boxes = tv_tensors.BoundingBoxes([[0, 0, 4, 2]], format="XYWH", canvas_size=(8, 8))
    plain = {"boxes": boxes, "labels": torch.tensor([1])}
    masked = plain | {"masks": squares(3)}
    read = read_batch((list(IMAGES), [plain, masked]))
    assert read.batch.regions["object"].sum((1, 2)).tolist() == [8, 9]


def test_targets_of_hugging_face():
    targets = [{"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.25, 1.0, 0.5]])}] * 2
    read = read_batch({"pixel_values": IMAGES, "pixel_mask": torch.ones(2, 8, 8).long(), "labels": targets})
    assert read.main_classes.tolist() == [2, 2]
    assert read.batch.regions["object"].tolist() == [[[0, 0, 8, 4]]] * 2


def test_a_box_a_sample_is_a_region_only_where_it_says_what_it_is():
    boxes = tv_tensors.BoundingBoxes([[1, 1, 2, 3], [0, 0, 4, 4]], format="XYWH", canvas_size=(8, 8))
    read = read_batch({"image": IMAGES, "bbox": boxes, "label": LABELS})
    assert read.batch.regions["object"].tolist() == [[1, 1, 3, 4], [0, 0, 4, 4]]
    assert default_batch({"image": IMAGES, "bbox": torch.rand(2, 4), "label": LABELS}).regions == {}


def test_what_does_not_fit_is_left_out_with_a_word():
    boxes = tv_tensors.BoundingBoxes([[1, 1, 2, 3], [90, 90, 99, 99]], format="XYXY", canvas_size=(99, 99))
    read = read_batch({"image": IMAGES, "bbox": boxes, "label": LABELS})
    assert read.batch.regions == {}
    assert read.notes[1].startswith("leaves out `batch['bbox']`: region 'object' has boxes outside the images")


def test_of_several_masks_the_one_that_is_named_so_counts_and_one_of_pixels_that_count_never():
    padding, edges = torch.ones(2, 8, 8).long(), squares(1, 1)
    read = read_batch({"pixel_values": IMAGES, "pixel_mask": padding, "labels": LABELS})
    assert (read.batch.regions, read.batch.labels.tolist()) == ({}, [1, 0])
    read = read_batch({"image": IMAGES, "edges": edges, "mask": squares(2, 3)})
    assert read.batch.regions["object"].sum((1, 2)).tolist() == [4, 9]


def test_inputs_of_any_form_are_cut_and_joined_with_the_samples():
    inputs = {"image": IMAGES, "names": ["a", "b"], "item": Item(IMAGES, LABELS), "pair": Pair(IMAGES, LABELS), "n": 2}
    batch = Batch(IMAGES, LABELS, inputs=inputs)
    one, both = batch.part(slice(1)).inputs, joined(batch, IMAGES).inputs
    assert (one["names"], both["names"]) == (["a"], ["a", "b", "a", "b"])
    assert (one["item"].gt_label.tolist(), both["pair"].category.tolist()) == ([1], [1, 0, 1, 0])
    assert inputs["names"] == ["a", "b"]
    assert one["n"] == 2
