"""Names and scale that a run finds by itself, and a word where the scale does not fit."""

import pytest
import pytorch_lightning as pl
import torch
from tiny import Images, TinyModule, loader, trainer
from torch.utils.data import ConcatDataset, Subset

from lightning_gradcam import Display, GradCAMCallback


class Plain(Images):
    """Tells nothing of itself."""

    classes = None


class Data(pl.LightningDataModule):
    class_names = ("ant", "bee", "crab")
    mean, std = torch.tensor([0.5, 0.25, 0.5]), torch.tensor([0.5, 0.25, 0.5])

    def train_dataloader(self):
        return loader(Plain())

    def val_dataloader(self):
        return loader(Plain())


def test_a_datamodule_tells_names_and_scale():
    callback = GradCAMCallback(samples=4)
    trainer(callback, max_epochs=1).fit(TinyModule(), datamodule=Data())
    probe = callback._session.probe
    assert probe.class_names == ["ant", "bee", "crab"]
    photos = probe.batch.images * Data.std[:, None, None] + Data.mean[:, None, None]
    expected = (photos * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    torch.testing.assert_close(probe.photos, expected)


def test_a_dataset_of_the_users_own_tells_for_itself():
    callback = GradCAMCallback(samples=Plain(4))
    trainer(callback, max_epochs=1).fit(TinyModule(), datamodule=Data())
    assert callback._session.probe.class_names is None


def test_names_within_joined_parts():
    callback = GradCAMCallback(samples=4)
    joined = Subset(ConcatDataset([Images(9), Images(12)]), range(15))
    trainer(callback, max_epochs=1).fit(TinyModule(), loader(), loader(joined))
    assert callback._session.probe.class_names == list(Images.classes)


def test_a_scale_that_does_not_fit_is_a_warning_once():
    callback = GradCAMCallback(samples=4, display=Display(mean=(100, 100, 100), std=(50, 50, 50)))
    with pytest.warns(UserWarning, match=r"`mean` \[100, 100, 100\] and `std` \[50, 50, 50\] bring .* to 150") as told:
        trainer(callback, max_epochs=2).fit(TinyModule(), loader(), loader())
    assert sum("bring the images" in str(one.message) for one in told) == 1
