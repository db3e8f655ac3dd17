"""A tiny model, tiny data and a Trainer without noise, for the tests of the callback."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

CLASSES = 3


class Images(Dataset):
    """Noise with labels; the same for the same index, whoever asks."""

    classes = ("ant", "bee", "crab")

    def __init__(self, length=24, channels=3, size=16):
        generator = torch.Generator().manual_seed(length)
        self.images = torch.rand(length, channels, size, size, generator=generator)
        self.labels = torch.arange(length) % CLASSES

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Augmented(Images):
    """Adds noise from the global random state at every access, as random augmentations do."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn(()), label


def tiny_net(channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


class TinyModule(pl.LightningModule):
    def __init__(self, channels=3):
        super().__init__()
        self.net = tiny_net(channels)

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loader(dataset=None, batch_size=8, **options):
    return DataLoader(Images() if dataset is None else dataset, batch_size, **options)


def trainer(*callbacks, **options):
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **defaults | options)
