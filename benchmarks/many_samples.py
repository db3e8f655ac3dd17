"""What it costs to measure many samples and draw few: time, memory and room on disk, beside the usual sixteen.

A ResNet-18 is trained on random images of 224 px, batches of 32 in training and validation, each kind of run in a
process of its own: without the callback, with ``samples=16``, and with ``samples=256``, whose images and shifted images
run in chunks of the validation batch. Reported are ``gradcam/seconds`` of the last observation, the median training
step past the first epoch, the process's peak memory (``VmHWM`` of Linux, from its start), and the size of an
observation on disk. Loading the fixed batch is in no time, its tensors are in the memory.

    python benchmarks/many_samples.py    # some minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median

import torch
from capture_cost import peak
from long_run import BARE
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset
from training_step import Clock, Network

from lightning_gradcam import GradCAMCallback, Record

WAYS = {"without": 0, "samples=16": 16, "samples=256": 256}


class Forget(Callback):
    """Makes the first epoch's steps no part of what is timed."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 1:
            self.clock.steps.clear()


def measure(samples: int, pixels: int, images: int, epochs: int) -> dict[str, float]:
    """Train in this process; milliseconds, MiB and KiB."""
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(images, 3, pixels, pixels), torch.arange(images) % 3)
    clock, found = Clock(), {}
    with tempfile.TemporaryDirectory() as folder:
        looks = [GradCAMCallback(samples=samples, record=Path(folder, "record"))] if samples else []
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            limit_train_batches=6,
            limit_val_batches=1,
            logger=False,
            default_root_dir=folder,
            callbacks=[*looks, clock, Forget(clock)],
            **BARE,
        )
        trainer.fit(Network(), DataLoader(data, 32), DataLoader(data, 32))
        if samples:
            found["observation"] = 1000 * trainer.callback_metrics["gradcam/seconds"].item()
            record = Record.open(Path(folder, "record"))
            files = list(record.path.glob("observation=*"))
            found["disk"] = sum(file.stat().st_size for file in files) / len(files) / 1024
    return {"step": 1000 * median(clock.steps), "memory": peak(), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    options = parser.parse_args()
    size = (32, 512, 1) if options.quick else (224, 512, 3)
    if options.way:
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1 if options.quick else 2)
        print(json.dumps(measure(WAYS[options.way], *size)))
        return
    print("| run | an observation, ms | a training step, ms | peak memory, MiB | an observation on disk, KiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *["--quick"] * options.quick]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        cells = (f"{found[name]:.0f}" if name in found else "" for name in ("observation", "step", "memory", "disk"))
        print(f"| {' | '.join([way, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
