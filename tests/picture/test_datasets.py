"""What datasets and datamodules tell of themselves, in the forms in which libraries and users keep it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split
from torchvision import transforms
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from lightning_gradcam.picture.datasets import find_class_names, find_normalization

NAMES = ["ant", "bee"]
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


class Data(Dataset):
    def __init__(self, length=4, **attributes):
        self.length = length
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


def nested(one, other):
    """Ways of holding a dataset, where two hold the same."""
    return [
        one,
        Subset(one, [0]),
        Data(dataset=one),
        Data(data=one),
        ConcatDataset([one, other]),
        random_split(ConcatDataset([one, other]), [1, len(one) + len(other) - 1])[0],
        SimpleNamespace(datasets=(one, other)),
        Data(dataset=None, data=Subset(ConcatDataset([Subset(one, [0])]), [0])),
    ]


class Broken:
    """Every attribute raises."""

    def __getattr__(self, name):
        raise RuntimeError(name)


# Class names


@pytest.mark.parametrize(
    "told",
    [
        {"classes": NAMES},
        {"classes": tuple(NAMES)},
        {"classes": np.array(NAMES)},
        {"classes": {0: "ant", 1: "bee"}},
        {"classes": [("ant", "Formicidae"), ("bee",)]},
        {"class_names": NAMES},
        {"pathologies": NAMES},
        {"labels": NAMES},
        {"class_to_idx": {"bee": 1, "ant": 0}},
        {"class_to_idx": {"ant": 0, "pismire": 0, "bee": 1}},
        {"features": {"image": object(), "label": SimpleNamespace(names=NAMES)}},
        {"features": {"coarse": SimpleNamespace(names=["animal"]), "label": SimpleNamespace(names=NAMES)}},
        {"classes": [0, 1], "class_names": NAMES},  # what is no name is skipped
    ],
)
def test_finds_the_class_names(told):
    for dataset in nested(Data(**told), Data(**told)):
        assert find_class_names(dataset) == NAMES
    assert find_class_names(Data(), SimpleNamespace(**told)) == NAMES


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"classes": "ant"},
        {"classes": ["ant", 1]},
        {"classes": [0, 1]},
        {"classes": []},
        {"classes": 2},
        {"classes": {0: "ant", 2: "bee"}},
        {"labels": ["ant", "bee", "ant"]},  # those of the samples
        {"labels": torch.tensor([0, 1])},
        {"class_to_idx": {"ant": 1, "bee": 2}},
        {"features": {"fine": SimpleNamespace(names=NAMES), "coarse": SimpleNamespace(names=["animal"])}},
        {"features": torch.rand(2, 3)},
        {"data": torch.rand(2, 3), "datasets": []},
    ],
)
def test_what_is_no_name_is_none(told):
    assert find_class_names(Data(**told)) is None


def test_joined_datasets_must_agree():
    assert find_class_names(ConcatDataset([Data(classes=NAMES), Data(classes=["cat", "dog"])])) is None
    assert find_class_names(ConcatDataset([Data(classes=NAMES), Data()])) is None


def test_the_dataset_is_asked_before_the_datamodule():
    assert find_class_names(Data(classes=NAMES), SimpleNamespace(classes=["cat", "dog"])) == NAMES
    assert find_class_names(None, None) is None


# Normalization


class ToTensors:
    """As timm makes it of its configuration: another library's, with tensors."""

    def __init__(self, mean, std):
        self.transforms = [transforms.ToTensor(), transforms.Normalize(torch.tensor(mean), torch.tensor(std))]


class Normalize:
    """As albumentations and kornia have it, by this name."""

    def __init__(self, mean, std, **more):
        vars(self).update({"mean": mean, "std": std} | more)


class OfKornia(torch.nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.flags = {"mean": torch.tensor([mean]), "std": torch.tensor([std])}


OfKornia.__name__ = "Normalize"

FORMS = [
    transforms.Normalize,
    v2.Normalize,
    lambda mean, std: transforms.Compose([transforms.Resize(8), transforms.Compose([transforms.Normalize(mean, std)])]),
    lambda mean, std: v2.Compose([v2.Resize(8), v2.Normalize(mean, std)]),
    lambda mean, std: torch.nn.Sequential(v2.Normalize(mean, std)),
    lambda mean, std: [v2.Resize(8), v2.Normalize(mean, std)],
    ToTensors,
    lambda mean, std: SimpleNamespace(transforms=[Normalize(tuple(mean), np.array(std))]),
    lambda mean, std: Normalize(torch.tensor(mean).reshape(3, 1, 1), std, normalization="standard"),
    OfKornia,
]


@pytest.mark.parametrize("form", FORMS)
def test_finds_the_normalization(form):
    one, other = (FakeData(2, (3, 4, 4), 2, transform=form(MEAN, STD)) for _ in range(2))
    for dataset in nested(one, other):
        assert find_normalization(dataset, 3) == (pytest.approx(MEAN), pytest.approx(STD))
    assert find_normalization(one, 4) == (None, None)
    assert find_normalization(Data(), 3, SimpleNamespace(normalize=form(MEAN, STD)))[0] == pytest.approx(MEAN)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"mean": torch.tensor(MEAN), "std": torch.tensor(STD)}, True),
        ({"mean": MEAN, "std": STD, "normalize": True}, True),
        ({"mean": MEAN, "std": STD, "normalize": False}, False),
        ({"mean": torch.tensor(0), "std": torch.tensor(255)}, False),  # torchgeo's, to bring bytes to 0 to 1
        ({"mean": MEAN, "std": [0, 0, 0]}, False),
        ({"mean": MEAN}, False),
        ({"mean": lambda: 0, "std": lambda: 1}, False),
        ({"mean": MEAN[:2], "std": STD[:2]}, False),
    ],
)
def test_the_normalization_of_a_datamodule(told, found):
    mean, std = find_normalization(Data(), 3, SimpleNamespace(**told))
    assert (mean is not None, std is not None) == (found, found)
    assert find_normalization(Data(**told), 3) == (None, None)  # a dataset's may be what it is without being used


@pytest.mark.parametrize(
    "transform", [None, transforms.Resize(8), Normalize(MEAN, STD, normalization="image"), Normalize("a", "b"), "text"]
)
def test_no_normalization(transform):
    assert find_normalization(Data(transform=transform), 3) == (None, None)


def test_joined_datasets_must_be_normalized_alike():
    one, other = Data(transform=v2.Normalize(MEAN, STD)), Data(transform=v2.Normalize(STD, STD))
    assert find_normalization(ConcatDataset([one, other]), 3) == (None, None)


def test_datasets_and_transforms_that_hold_themselves_or_raise():
    data = Data(transform=[])
    data.dataset = data.data = data
    data.datasets = [data, data]
    data.transform.append(data.transform)
    for one in (data, Broken(), Data(dataset=Broken()), Data(transform=Broken(), features={"label": Broken()})):
        assert find_normalization(one, 3, one) == (None, None)
        assert find_class_names(one, one) is None
