"""What a training step costs with the callback, in steps without it.

The same small network is trained with and without, in turns, an observation after each epoch. Timed is each step from
its start to its end; the ratio is taken between the medians of neighbouring runs.

    python benchmarks/training_step.py    # a minute on two cores
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import warnings
from statistics import median
from time import perf_counter

import torch
import torchvision
from long_run import BARE, Tiny
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradcam import GradCAMCallback

EPOCHS = 3


class Network(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18(weights=None, num_classes=3)


class Clock(Callback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.started = perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append(perf_counter() - self.started)


def step(data: DataLoader, callbacks: list[Callback]) -> float:
    """The median of the steps of a run, in ms."""
    torch.manual_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=False,
            default_root_dir=folder,
            callbacks=[*callbacks, clock],
            **BARE,
        )
        trainer.fit(Network(), data, data)
    return median(clock.steps) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    repeats, images, threads = (1, 8, 1) if parser.parse_args().quick else (9, 64, 2)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    data = DataLoader(TensorDataset(torch.rand(images, 3, 64, 64), torch.arange(images) % 3), 8)
    ways = {"with": lambda: [GradCAMCallback()], "without": list}
    times: dict[str, list[float]] = {way: [] for way in ways}
    step(data, [])  # warm up
    for _ in range(repeats):
        for way in random.sample(list(ways), 2):
            times[way].append(step(data, ways[way]()))
    ratios = [one / other for one, other in zip(times["with"], times["without"], strict=True)]
    print(f"a step without: {median(times['without']):.1f} ms, with: {median(times['with']):.1f} ms")
    print(f"ratio: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), {repeats} pairs of runs")


if __name__ == "__main__":
    main()
