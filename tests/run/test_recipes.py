"""The recipes for torchvision's segmentation and detection models."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from tiny import Recorder, loader, trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_gradcam import Batch, DetectionTarget, GradCAMCallback, SegmentationTarget


class Segmenter(pl.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        images, masks = batch
        return nn.functional.cross_entropy(self(images)["out"], masks)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Detector(Segmenter):
    def training_step(self, batch, batch_idx):  # type: ignore[reportIncompatibleMethodOverride]
        images, targets = batch
        return sum(self.model(list(images), list(targets)).values())


def test_recipe_for_segmentation(deeplab):
    data = [(torch.rand(3, 64, 64), torch.full((64, 64), i % 2)) for i in range(4)]
    callback, logger = (
        GradCAMCallback(
            "model.backbone.16",
            samples=2,
            target=SegmentationTarget(1),
            batch_fn=lambda batch: Batch(batch[0], regions={"object": (batch[1] == 1).float()}),
        ),
        Recorder(),
    )
    run = trainer(callback, logger=logger, max_epochs=1)
    run.fit(Segmenter(copy.deepcopy(deeplab).train()), loader(data, 2), loader(data, 2))
    assert len(logger.values("gradcam/strength")) == 2
    assert logger.values("gradcam/prediction_flips") == []


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`", "ignore:.*tell little about places")
def test_recipe_for_detection(detector):
    boxes, labels = torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1])
    data = [(torch.rand(3, 64, 64), {"boxes": boxes, "labels": labels}) for _ in range(4)]
    batches = DataLoader(data, 2, collate_fn=lambda items: tuple(zip(*items, strict=True)))
    callback, logger = (
        GradCAMCallback(
            "model.backbone.body.13",
            samples=2,
            target=DetectionTarget(1),
            batch_fn=lambda batch: Batch(
                torch.stack(batch[0]), regions={"object": torch.cat([found["boxes"] for found in batch[1]])}
            ),
            forward_fn=lambda module, batch: module.model(list(batch.images)),
        ),
        Recorder(),
    )
    run = trainer(callback, logger=logger, max_epochs=1)
    run.fit(Detector(copy.deepcopy(detector).train()), batches, batches)
    assert len(logger.values("gradcam/strength")) == 2
    assert 0 <= logger.values("gradcam/mass_object")[0] <= 1
