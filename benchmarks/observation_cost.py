"""What one whole observation costs, from the fixed batch to the loggers, against the plain way to do the same.

A ResNet-18 is trained for one step by a real ``Trainer`` with a ``TensorBoardLogger`` and an offline ``WandbLogger``.
After its validation, in the hook in which the callback itself works, three ways to look at 16 photos of 224 px take
turns, in an order drawn anew in each repeat:

- ours: first ``Session.observe``, which is all that the callback does and the last row of the table; then its parts,
  one after the other, each with a clock. Filmstrip, noise floor and record, which the plain ways do not have, stand in
  rows of their own;
- a figure: what one finds in notebooks. Maps by ``pytorch_grad_cam.GradCAM``, ``show_cam_on_image`` for each sample, a
  matplotlib figure of 4 x 4 titled axes drawn to an array, ``add_image`` and ``wandb.Image`` with their defaults;
- make_grid: the same with ``torchvision.utils.make_grid`` instead of the figure, so without any text.

Timed is the calling thread, which is the thread that trains. TensorBoard writes on a thread of its own, which is
waited for between the turns, so that no turn pays for another. Shown are medians; a ratio is the median of the ratios
within each repeat, with the smallest and the largest. Ours loads once a run; loading is in no total.

    python benchmarks/observation_cost.py
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import wandb
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from torchvision.utils import make_grid

from lightning_gradcam import Display, Drift, GradCAMCallback
from lightning_gradcam.run.history import Moment
from lightning_gradcam.run.observer import Observer
from lightning_gradcam.run.outlets import log_numbers_directly
from lightning_gradcam.run.pictures import Look, layer_pictures
from lightning_gradcam.run.session import Session

PIXELS = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Clock:
    """Seconds of each part of one observation."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[part] = perf_counter() - started


def sample_photos() -> TensorDataset:
    """Overlapping crops of the two photos that come with scikit-learn, normalized."""
    photos = torch.stack([torch.from_numpy(photo.copy()) for photo in load_sample_images().images]).permute(0, 3, 1, 2)
    crops = photos.unfold(2, PIXELS, 67).unfold(3, PIXELS, 138).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, PIXELS, PIXELS)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return TensorDataset((crops / 255 - mean) / std, torch.arange(len(crops)) % 10)


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = resnet18(num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def ours(
    session: Session, observers: tuple[Observer, Observer], trainer: Trainer, module: Classifier
) -> dict[str, float]:
    """One observation as the callback makes it, and one by its parts."""
    clock, step, moment = Clock(), trainer.global_step, Moment(0, True)
    history, outlets = session.history, session.outlets
    assert outlets is not None
    with clock("whole"):
        session.observe(trainer, module, step, moment, log_numbers_directly)
    probe = session.probe
    assert probe is not None
    with clock("capture"):
        observers[0].look(probe)
    with clock("capture with floor"):
        seen = observers[1].look(probe)
    with clock("metrics"):
        measured = history.measure(seen.maps, seen.shifted, seen.prediction, probe.regions, (), seen.target_classes)
        history.add(measured, seen.maps, seen.prediction, moment, seen.target_classes)
    look = Look(probe, seen, measured, moment, "epoch 0")
    pictures = layer_pictures(look, history)
    for part in ("grid", "places", "filmstrip"):
        with clock(part):
            picture = next(pictures)
        with clock(f"log {part}"):
            outlets.send_pictures(trainer, [picture], step)
    with clock("record"):
        outlets.record(trainer, look)
    with clock("log numbers"):
        log_numbers_directly(trainer, module, measured.numbers, step)
    return clock.seconds


def plain(draw: Callable[..., np.ndarray], key: str, trainer: Trainer, module: Classifier) -> dict[str, float]:
    """Grad-CAM in a validation hook as one would write it by hand; it logs no numbers."""
    clock, loader = Clock(), trainer.val_dataloaders
    loggers: list[Any] = trainer.loggers
    assert loader is not None
    with clock("load"):
        images, labels = next(iter(loader))
    with clock("whole"):
        with clock("capture"), torch.enable_grad():
            targets: list[Any] = [ClassifierOutputTarget(label) for label in labels.tolist()]
            with GradCAM(module.model, [module.model.layer4]) as extractor:
                maps = extractor(images, targets)
            predicted = extractor.outputs.argmax(1)
        with clock("grid"):
            mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
            photos = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
            overlays = [show_cam_on_image(photo, cam, use_rgb=True) for photo, cam in zip(photos, maps, strict=True)]
            picture = draw(overlays, labels, predicted)
        with clock("log grid"):
            tensorboard, run = (logger.experiment for logger in loggers)
            tensorboard.add_image(key, picture, trainer.global_step, dataformats="HWC")
            run.log({key: wandb.Image(picture)})
    module.zero_grad()
    return clock.seconds


def figure(overlays: list[np.ndarray], labels: Tensor, predicted: Tensor) -> np.ndarray:
    fig, axes = plt.subplots(len(overlays) // 4, 4, figsize=(10, 10))
    for axis, overlay, label, guess in zip(axes.flat, overlays, labels, predicted, strict=True):
        axis.imshow(overlay)
        axis.set_title(f"label {label}, predicted {guess}", fontsize=8)
        axis.axis("off")
    fig.tight_layout()
    fig.canvas.draw()
    assert isinstance(fig.canvas, FigureCanvasAgg)
    picture = np.asarray(fig.canvas.buffer_rgba())[..., :3].copy()
    plt.close(fig)
    return picture


def image_grid(overlays: list[np.ndarray], labels: Tensor, predicted: Tensor) -> np.ndarray:
    tiles = torch.from_numpy(np.stack(overlays)).permute(0, 3, 1, 2)
    return make_grid(tiles, nrow=4).permute(1, 2, 0).numpy()


class Measure(Callback):
    """Takes all ways in turns after the validation, where ``GradCAMCallback`` looks."""

    def __init__(self, session: Session, repeats: int, warmup: int) -> None:
        self.session, self.repeats, self.warmup = session, repeats, warmup
        self.seconds: dict[str, list[dict[str, float]]] = {"ours": [], "figure": [], "make_grid": []}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        assert isinstance(trainer.logger, TensorBoardLogger)
        ways = {
            "ours": lambda: ours(self.session, observers, trainer, pl_module),
            "figure": lambda: plain(figure, "plain/figure", trainer, pl_module),
            "make_grid": lambda: plain(image_grid, "plain/make_grid", trainer, pl_module),
        }
        self.session.observe(trainer, pl_module, 0, Moment(-1, False), log_numbers_directly)  # as before training
        settings, probe = self.session.settings, self.session.probe
        assert probe is not None
        without_floor = replace(settings, drift=Drift(noise_floor=False))
        observers = Observer(trainer, pl_module, without_floor), Observer(trainer, pl_module, settings)
        for observer in observers:
            observer.look(probe)  # the first of a run finds out more
        shuffle = random.Random(0).shuffle
        for _ in range(self.warmup + self.repeats):
            order = list(ways)
            shuffle(order)
            for way in order:
                gc.collect()
                self.seconds[way].append(ways[way]())
                trainer.logger.experiment.flush()
        for turns in self.seconds.values():
            del turns[: self.warmup]


def run(samples: int, repeats: int, warmup: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part, in each repeat, of each way."""
    torch.manual_seed(0)
    photos = sample_photos()
    callback = GradCAMCallback("layer4", samples=samples, display=Display(mean=MEAN, std=STD), on_error="raise")
    measure = Measure(Session(callback.settings), repeats, warmup)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=1,
            num_sanity_val_steps=0,
            logger=[TensorBoardLogger(folder), WandbLogger(save_dir=folder, project="benchmark", offline=True)],
            callbacks=[measure],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(), DataLoader(photos, samples), DataLoader(photos, samples))
        wandb.finish()
    return measure.seconds


def table(seconds: dict[str, list[dict[str, float]]]) -> str:
    """A row for each part and each sum: milliseconds of each way, and how often ours goes into the plain ones."""
    rows = {
        "load": ("load",),
        "capture": ("capture",),
        "metrics": ("metrics",),
        "grid": ("grid",),
        "log of the grid": ("log grid",),
        "grid + its log": ("grid", "log grid"),
        "log of the numbers": ("log numbers",),
        "**total of these**": ("capture", "metrics", "grid", "log grid", "log numbers"),
        "positional bias, picture and log": ("places", "log places"),
        "filmstrip": ("filmstrip",),
        "log of the filmstrip": ("log filmstrip",),
        "capture with the noise floor": ("capture with floor",),
        "record": ("record",),
        "**total with all**": ("whole",),
    }
    lines = ["| ms | ours | figure | make_grid | figure / ours | make_grid / ours |"]
    lines.append("| --- |" + " ---: |" * 5)
    for title, parts in rows.items():
        sums = {way: [sum(turn.get(part, 0) for part in parts) for turn in turns] for way, turns in seconds.items()}
        times = [f"{median(values) * 1000:.1f}" if any(values) else "" for values in sums.values()]
        both = [any(sums[way]) and any(sums["ours"]) for way in ("figure", "make_grid")]
        ways = zip(("figure", "make_grid"), both, strict=True)
        ratios = [ratio(sums[way], sums["ours"]) if has else "" for way, has in ways]
        lines.append(f"| {' | '.join([title, *times, *ratios])} |")
    return "\n".join(lines)


def ratio(plain: list[float], ours: list[float]) -> str:
    ratios = [one / other for one, other in zip(plain, ours, strict=True)]
    return f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16, help="photos, in rows of four")
    parser.add_argument("--repeats", type=int, default=9, help="timed observations of each way")
    parser.add_argument("--warmup", type=int, default=1, help="observations of each way before these")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(samples=4, repeats=1, warmup=0, threads=1)
    torch.set_num_threads(options.threads)
    matplotlib.use("Agg")
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seconds = run(options.samples, options.repeats, options.warmup)
    print(f"torch {torch.__version__}, {options.threads} threads, medians of {options.repeats}\n")
    print(table(seconds))


if __name__ == "__main__":
    main()
