"""Whether time and memory stay flat over a thousand observations, with TensorBoard and W&B (offline) at once.

python benchmarks/soak.py                  # five minutes on one core
python benchmarks/soak.py --epochs 200
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from pathlib import Path
from statistics import median

import torch
from long_run import BARE, Tiny
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradcam import GradCAMCallback


class Watch(Callback):
    """Notes resident memory in MiB and the seconds of the observation at the end of every epoch."""

    def __init__(self) -> None:
        self.memory: list[float] = []
        self.seconds: list[float] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.seconds.append(trainer.callback_metrics["gradcam/seconds"].item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    args = parser.parse_args()
    epochs = 10 if args.quick else args.epochs
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    os.environ["WANDB_SILENT"] = "true"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = DataLoader(TensorDataset(torch.rand(64, 3, 32, 32), torch.arange(64) % 3), 32)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        wandb = WandbLogger(save_dir=folder, offline=True)
        loggers = [TensorBoardLogger(folder), wandb]
        callbacks = [GradCAMCallback(samples=16), watch]
        trainer = Trainer(accelerator="cpu", max_epochs=epochs, logger=loggers, callbacks=callbacks, **BARE)
        trainer.fit(Tiny(), data, data)
        wandb.experiment.finish()
    tenth = epochs // 10
    print("| epochs | ms an observation, median | resident memory at the end, MiB |\n| --- | ---: | ---: |")
    for start in range(0, epochs, tenth):
        part = slice(start, start + tenth)
        print(
            f"| {start} to {start + tenth - 1} | {median(watch.seconds[part]) * 1000:.0f} "
            f"| {watch.memory[part][-1]:.0f} |"
        )


if __name__ == "__main__":
    main()
