"""What a capture costs where a forward takes next to no time: on a GPU, or on a CPU with one small picture.

There what is not the forward shows. In turns, in an order drawn anew in each repeat and with the device waited for at
either end: a plain forward without gradients in eval mode; an observation's capture, by a stand-in that is kept; the
same as ``gradcam()`` does it, with a named layer and nothing kept; captum, torchcam and pytorch-grad-cam. Shown is the
forward's milliseconds and, of the others, the median of the ratios to the forward of the same repeat.

On a GPU also the peak memory of each, by ``torch.cuda.max_memory_allocated``, in that of the forward; one whole
observation of a ``Trainer`` with TensorBoard, without its look at the model and with it; and a training step with the
callback in steps without it.

    python benchmarks/gpu_cost.py    # on a GPU 224 px, batches of 16 and 128; else one picture of 64 px, one thread
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from capture_cost import Task, captum, grad_cam, ours, table, torchcam, vit_b_16
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from lightning_gradcam import GradCAMCallback, gradcam
from lightning_gradcam.attribution.layers import find_layer
from lightning_gradcam.attribution.layout import Layout, Tokens, channels_first
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.run.observer import Observer
from lightning_gradcam.run.session import Session

GPU = torch.cuda.is_available()


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ResNet-18": (models.resnet18, "layer4"),
    "ResNet-50": (models.resnet50, "layer4"),
    "MobileNetV3-L": (models.mobilenet_v3_large, "features"),
    "ConvNeXt-T": (models.convnext_tiny, "features"),
    "EfficientNet-B4": (models.efficientnet_b4, "features"),
    "ViT-B/16": (vit_b_16, "encoder.layers[-1].ln_1"),
}


def build(name: str, samples: int, pixels: int) -> Task:
    torch.manual_seed(0)
    make, layer = MODELS[name]
    is_vit = make is vit_b_16
    side = pixels // 16
    layout: Layout = Tokens((side, side)) if is_vit else channels_first
    device = "cuda" if GPU else "cpu"
    model = (vit_b_16(image_size=pixels) if is_vit else make()).eval().to(device)
    images, labels = torch.randn(samples, 3, pixels, pixels), torch.randint(1000, (samples,))
    layers = find_layer(model, layer)
    return Task(model, *layers, layout, images.to(device), labels.to(device), StandIn(model, kept=True))


@torch.no_grad()
def forward(task: Task) -> Tensor:
    return task.model(task.images)


def alone(task: Task) -> Tensor:
    return gradcam(task.model, task.images, task.name, "label", labels=task.labels)


WAYS: dict[str, Callable[[Task], Tensor]] = {
    "forward": forward,
    "ours, kept": ours,
    "gradcam()": alone,
    "captum": captum,
    "torchcam": torchcam,
    "grad-cam": grad_cam,
}


def waited() -> float:
    """The time once all that the device has to do is done."""
    if GPU:
        torch.cuda.synchronize()
    return perf_counter()


def measure(task: Task, repeats: int, warmup: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds and, on a GPU, peak memory in bytes of each way."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    memory: dict[str, int] = {}
    shuffle = random.Random(0).shuffle
    for _ in range(warmup + repeats):
        order = list(WAYS)
        shuffle(order)
        for way in order:
            gc.collect()
            if GPU:
                torch.cuda.reset_peak_memory_stats()
            started = waited()
            WAYS[way](task)
            seconds[way].append(waited() - started)
            memory[way] = torch.cuda.max_memory_allocated() if GPU else 0
            task.model.zero_grad()  # grad-cam fills the parameters' gradients
    return {way: values[warmup:] for way, values in seconds.items()}, memory


def row(name: str, seconds: dict[str, list[float]]) -> list[str]:
    ratios = {way: [one / plain for one, plain in zip(seconds[way], seconds["forward"], strict=True)] for way in WAYS}
    return [name, f"{median(seconds['forward']) * 1000:.1f}", *(f"{median(ratios[way]):.2f}" for way in list(WAYS)[1:])]


class Classifier(LightningModule):
    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.model = make(num_classes=10)
        self.steps: list[float] = []
        self.started = 0.0

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.started = waited()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(waited() - self.started)


@contextmanager
def timed(kind: type, name: str, seconds: list[float]) -> Iterator[None]:
    """Note how long each call of a method takes."""
    own = getattr(kind, name)

    def call(*args: Any, **options: Any) -> Any:
        started = waited()
        result = own(*args, **options)
        seconds.append(waited() - started)
        return result

    setattr(kind, name, call)
    try:
        yield
    finally:
        setattr(kind, name, own)


def train(make: Callable[..., nn.Module], pixels: int, epochs: int, callbacks: list[Any]) -> list[float]:
    """Seconds of each training step but the first."""
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.rand(64, 3, pixels, pixels), torch.arange(64) % 10), 16)
    module = Classifier(make)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="gpu" if GPU else "cpu",
            devices=1,
            max_epochs=epochs,
            logger=TensorBoardLogger(folder),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data, data)
    return module.steps[1:]


def observe(pixels: int, epochs: int) -> list[list[str]]:
    """A whole observation and a training step of a ResNet-50 on a GPU, of a ResNet-18 elsewhere."""
    make = models.resnet50 if GPU else models.resnet18
    whole: list[float] = []
    looks: list[float] = []
    with timed(Session, "observe", whole), timed(Observer, "look", looks):
        looked_at = train(make, pixels, epochs, [GradCAMCallback("layer4", samples=16, record=False)])
    plain = train(make, pixels, epochs, [])
    whole, looks = whole[2:], looks[2:]  # without those that draw everything for the first time
    rest = [one - other for one, other in zip(whole, looks, strict=True)]
    figures = [f"{median(values) * 1000:.1f}" for values in (whole, looks, rest, plain, looked_at)]
    return [[make.__name__, *figures]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--samples", nargs="+", type=int, default=[16, 128] if GPU else [1], help="batches of so many")
    parser.add_argument("--pixels", type=int, default=224 if GPU else 64, help="side of a picture")
    parser.add_argument("--repeats", type=int, default=25, help="timed runs of everything")
    parser.add_argument("--warmup", type=int, default=3, help="runs of everything before these")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--epochs", type=int, default=8, help="of the training with an observation in each")
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(models=["ResNet-18", "ViT-B/16"], samples=[1], pixels=64, repeats=1, warmup=1, epochs=3)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # values that random weights let shrink to nothing, and that trained ones do not
    device = torch.cuda.get_device_name() if GPU else f"CPU, {options.threads} threads"
    print(f"torch {torch.__version__}, {device}, {options.pixels} px, medians of {options.repeats}")
    for samples in options.samples:
        times, peaks = [], []
        for name in options.models:
            seconds, memory = measure(build(name, samples, options.pixels), options.repeats, options.warmup)
            times.append(row(name, seconds))
            if GPU:
                others = [f"{memory[way] / memory['forward']:.2f}" for way in list(WAYS)[1:]]
                peaks.append([name, f"{memory['forward'] / 2**20:.0f}", *others])
        print(table(f"Time with {samples} pictures, in forwards", ["forward, ms", *list(WAYS)[1:]], times))
        if GPU:
            print(table(f"Peak memory with {samples} pictures, in the forward's", ["MiB", *list(WAYS)[1:]], peaks))
    header = ["observation, ms", "of it the look", "and the rest", "training step", "with the callback"]
    print(table("A run with 16 samples and TensorBoard", header, observe(options.pixels, options.epochs)))


if __name__ == "__main__":
    main()
