"""What a user writes who checks types strictly; it is type-checked and run by tests/test_types.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradcam import (
    Batch,
    DetectionTarget,
    Display,
    Drift,
    EmbeddingTarget,
    GradCAMCallback,
    Localization,
    Record,
    RegressionTarget,
    SegmentationTarget,
    TopTarget,
    __version__,
    balanced,
    compare,
    explain,
    gradcam,
    guided_backprop,
    guided_gradcam,
    neuron_importance,
    show,
)
from lightning_gradcam.metrics.confidence import average_drop, average_increase
from lightning_gradcam.metrics.faithfulness import deletion, insertion, occlusion_correlation
from lightning_gradcam.metrics.protocols import localization_errors, max_box_acc_v2, pointing_game, pxap
from lightning_gradcam.metrics.randomization import randomization

Sample = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.net = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batch_fn(batch: Sample) -> Batch:
    boxes = torch.tensor([[0, 0, 16, 8]] * len(batch[0]))
    return Batch(batch[0], labels=batch[1], regions={"object": boxes}, groups=["a", "b"] * (len(batch[0]) // 2))


def forward_fn(module: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = module(batch.images)
    return logits


def margin(output: Tensor, batch: Batch) -> Tensor:
    return output[:, 0] - output[:, 1]


def positive(activations: Tensor, gradients: Tensor) -> Tensor:
    return (activations * gradients).sum(1).relu()


def callbacks(data: TensorDataset, module: Classifier) -> list[pl.Callback]:
    """A run with most arguments, and other forms of them."""
    return [
        GradCAMCallback(
            "net.0",
            samples=6,
            pictures=[0, 1, 2],
            target="label",
            method="hirescam",
            every_n_epochs=1,
            batch_fn=batch_fn,
            forward_fn=forward_fn,
            grid=(8, 8),
            drift=Drift(reference="first", noise_floor=True, alert_above=0.5),
            display=Display(mean=0.5, std=(0.2, 0.2, 0.2), class_names=["ant", "bee", "crab"], counterfactual=True),
            guided=True,
            localization=Localization("object", samples="all"),
            checks=True,
            record=Path("record"),
            prefix="cam",
            on_error="raise",
        ),
        GradCAMCallback([module.net[0], "net.0.2"], samples=balanced(data, 6), target=TopTarget(2), prefix="top"),
        GradCAMCallback(samples=data, target=[0, 1], guided=3, display=Display(window=(0, 1)), prefix="two"),
        GradCAMCallback(samples=6, target=margin, method=positive, record="other", prefix="margin"),
    ]


def maps_without_a_trainer(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Image, list[str]]:
    maps: Tensor = gradcam(model, images, "net.0", target="label", labels=labels)
    several: Tensor = gradcam(model, images, target=[0, 1])
    pixels: Tensor = guided_backprop(model, images) + guided_gradcam(model, images, "net.0", target=margin)
    alpha: Tensor = neuron_importance(model, images, "net.0", target=0)
    reasons = [f"{name}: {weight:.2f}" for one in explain(alpha, k=2) for name, weight in one.strongest]
    picture: Image = show(images, maps, mean=[0.5] * 3, std=[0.2] * 3)
    assert several.shape[1] == 2
    assert pixels.shape == images.shape
    return picture, reasons


def protocols(model: nn.Module, images: Tensor, labels: Tensor) -> Mapping[str, float]:
    batch, boxes = Batch(images, labels), torch.tensor([[0, 0, 16, 8]] * len(images))
    masks, size = torch.zeros(len(images), 16, 16), (16, 16)
    masks[:, :8] = 1
    maps = gradcam(model, images, "net.0", target="label", labels=labels).abs()
    hits: Tensor = pointing_game(maps, masks)
    curves: tuple[Tensor, Tensor] = deletion(model, batch, maps), insertion(model, batch, maps)
    agreement: Tensor = occlusion_correlation(model, batch, maps)
    randomized: dict[str, Tensor] = randomization(model, batch, "net.0")
    return localization_errors(maps[:, None], labels[:, None], labels, boxes, size) | {
        "max_box_acc_v2": max_box_acc_v2(maps, boxes, size),
        "pxap": pxap(maps, masks),
        "pointing_game": hits.mean().item(),
        "average_drop": average_drop(model, batch, maps),
        "average_increase": average_increase(model, batch, maps),
        "deletion": curves[0].mean().item() + curves[1].mean().item(),
        "occlusion": agreement.mean().item(),
        "randomization": sum(value.mean().item() for value in randomized.values()),
    }


def what_runs_left(folder: str | Path, other: str | Path) -> list[dict[str, float]]:
    record: Record = Record.open(folder)
    maps: np.ndarray[Any, np.dtype[Any]] = record.maps["cam"]
    assert maps.shape[1:] == (6, 8, 8)
    assert [row["epoch"] for row in record.table()] == record.epochs.tolist()
    comparison = compare({"one": [record], "other": [other]}, by="fraction", samples="all")
    agreement: dict[tuple[str, str], float] = comparison.agreements()
    print(comparison, agreement, comparison.most_different()[0])
    return compare(record, other).table()


def other_targets() -> list[GradCAMCallback]:
    return [
        GradCAMCallback(target=SegmentationTarget(1, region="object")),
        GradCAMCallback(target=DetectionTarget(1)),
        GradCAMCallback(target=RegressionTarget(0)),
        GradCAMCallback(target=EmbeddingTarget(torch.ones(8))),
        GradCAMCallback(target="predicted", drift=Drift(reference=3, reference_run=Path("record"))),
    ]


def mistakes() -> None:
    """Never called: a checker that has lost the types would find an ignore without a mistake here."""
    from lightning_gradcam import GradCamCallback  # type: ignore[attr-defined]  # noqa: F401

    GradCAMCallback(sample=3)  # type: ignore[call-arg]
    GradCAMCallback(target="lable")  # type: ignore[arg-type]
    Display(means=0.5)  # type: ignore[call-arg]
    Record.open("run").number  # type: ignore[attr-defined]  # noqa: B018
    _: str = gradcam(nn.ReLU(), torch.ones(1, 3, 8, 8))  # type: ignore[assignment]


def main() -> None:
    pl.seed_everything(0, verbose=False)
    images, labels = torch.rand(12, 3, 16, 16), torch.arange(12) % 3
    data, module = TensorDataset(images, labels), Classifier()
    loader = DataLoader(data, batch_size=6)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=callbacks(data, module),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, loader)
    model = module.eval()
    picture, reasons = maps_without_a_trainer(model, images[:2], labels[:2])
    numbers = protocols(model, images[:6], labels[:6])
    rows = what_runs_left("record", "other")
    print(__version__, picture.size, reasons, sorted(numbers), len(rows), len(other_targets()))


if __name__ == "__main__":
    main()
