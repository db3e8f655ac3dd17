"""Whether an observation of a long run costs more than one of a short run.

A tiny network is trained for 100 epochs with TensorBoard. Shown are medians of the logged ``gradcam/seconds`` over the
epochs 10 to 19 and 90 to 99 of the same run, the size of the filmstrip's picture, and what the callback adds to a
checkpoint.

    python benchmarks/long_run.py
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
import warnings
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradcam import GradCAMCallback

# What the trainers of these scripts leave out.
BARE: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Tiny(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), *pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least of everything, to see that it still runs")
    epochs, threads = (10, 1) if parser.parse_args().quick else (100, 2)
    tenth = epochs // 10
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    data = DataLoader(TensorDataset(torch.rand(64, 3, 32, 32), torch.arange(64) % 3), 32)
    callback = GradCAMCallback(samples=16)
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        trainer = Trainer(accelerator="cpu", max_epochs=epochs, logger=logger, callbacks=[callback], **BARE)
        trainer.fit(Tiny(), data, data)
        events = EventAccumulator(logger.log_dir, {"images": 0, "scalars": 0})
        events.Reload()
        seconds = [scalar.value for scalar in events.Scalars("gradcam/seconds")][1:]
        strips = [len(image.encoded_image_string) for image in events.Images("gradcam/filmstrip")]
    state = io.BytesIO()
    torch.save(callback.state_dict(), state)
    early, late = median(seconds[tenth : 2 * tenth]), median(seconds[-tenth:])
    print(f"ms an observation, epochs {tenth} to {2 * tenth - 1}: {early * 1000:.1f}", end=", ")
    print(f"epochs {epochs - tenth} to {epochs - 1}: {late * 1000:.1f}")
    print(f"ratio: {late / early:.2f}")
    print(f"kB of the filmstrip, epoch {2 * tenth - 1}: {strips[2 * tenth] / 1000:.0f}", end=", ")
    print(f"epoch {epochs - 1}: {strips[-1] / 1000:.0f}")
    print(f"kB in a checkpoint: {state.tell() / 1000:.0f}")


if __name__ == "__main__":
    main()
