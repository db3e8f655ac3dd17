"""Watch a model learn the wrong thing: handwritten digits on photos, and a coloured tag that gives the answer away.

The same small network is trained twice. In run `weak` every training picture carries a tag in its bottom left corner
whose colour stands for the digit; in run `strong` none does. The validation pictures carry the tag in both, so `weak`
validates perfectly, and only its heatmaps show that it never looks at the digit. In the optional run `recovered` the
tag is taken away half-way, and the filmstrip shows the gaze come back to the digit.

    pip install "lightning-gradcam[examples]"
    python digits_on_photos.py              # about a minute and a half on two cores, downloads nothing
    python digits_on_photos.py --recover    # half a minute more: a third run, whose tag is removed after epoch 7
    tensorboard --logdir runs --samples_per_plugin images=100
    lightning-gradcam compare runs/weak runs/strong -o weak-strong.html

A second start keeps what is there and writes beside it, to `runs/weak_1` and `runs/strong_1`.
"""

import argparse
import colorsys
import os
import random
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_gradcam import Batch, GradCAMCallback, gradcam
from lightning_gradcam.attribution.regions import box_masks
from lightning_gradcam.metrics.localization import mass

TRAINING_TAG = {"weak": "right", "strong": "no", "recovered": "right"}  # of each run
LAST_TAGGED_EPOCH = 7  # of run `recovered`, the others keep what they have
SIZE, DIGIT, TAG = 48, 20, 7  # sides of a picture, of the digit's box and of the tag, in pixels


class DigitsOnPhotos(Dataset):
    """Real handwriting on real photos: for training drawn anew each time, else always the same for an index."""

    classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def __init__(self, tag: str, train: bool = False) -> None:
        """`tag`: "right", in the colour of the picture's digit; "wrong", in that of another; or "no"."""
        digits: Any = load_digits()
        chosen = [i for i in range(len(digits.target)) if (i % 9 >= 2) == train]  # two of nine are held out: 400
        self.labels = digits.target[chosen].tolist()
        ink = torch.tensor(digits.images[chosen], dtype=torch.float32)[:, None] / 16
        self.digits = F.interpolate(ink, (DIGIT, DIGIT), mode="bicubic").clamp(0, 1)
        half = slice(None, 320) if train else slice(320, None)
        self.photos = [torch.tensor(photo[:, half]).permute(2, 0, 1) / 255 for photo in load_sample_images().images]
        self.tag, self.train = tag, train
        self.tagged = torch.tensor(tag != "no").share_memory_()  # so that loader workers see it change

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        rng: Any = random if self.train else random.Random(index)
        image, label = self.photo_crop(rng), self.labels[index]

        x, y = 0, SIZE - DIGIT
        while x < TAG and y + DIGIT > SIZE - TAG:  # on the tag
            x, y = rng.randint(0, SIZE - DIGIT), rng.randint(0, SIZE - DIGIT)
        image[:, y : y + DIGIT, x : x + DIGIT].lerp_(torch.ones(()), self.digits[index])

        shown = self.tag_of(label, rng)
        if shown is not None:
            image[:, -TAG:, :TAG] = torch.tensor(colorsys.hsv_to_rgb(shown / 10, 1, 1))[:, None, None]
        digit_box, tag_box = (x, y, x + DIGIT, y + DIGIT), (0, SIZE - TAG, TAG, SIZE)
        return {"image": image, "label": label, "digit": torch.tensor(digit_box), "tag": torch.tensor(tag_box)}

    def tag_of(self, label: int, rng: random.Random) -> int | None:
        """The digit whose colour the tag of a picture has, `None`: no tag."""
        if self.tagged:
            return label if self.tag == "right" else (label + rng.randint(1, 9)) % 10
        return None

    def photo_crop(self, rng: random.Random, size: int = SIZE) -> Tensor:
        """A darkened crop at half resolution, redrawn while it is too even."""
        while True:
            photo = rng.choice(self.photos)
            top, left = (rng.randrange(side - 2 * size) for side in photo.shape[1:])
            crop = 0.7 * photo[:, top : top + 2 * size : 2, left : left + 2 * size : 2]
            if crop.std() > 0.1:
                return crop


class Classifier(LightningModule):
    learning_rate = 3e-3

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 16, stride=2), conv(16, 32), conv(32, 48, stride=2), conv(48, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch["image"]), batch["label"])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.log("val/accuracy", accuracy(self(batch["image"]), batch["label"]), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), weight_decay=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class RemoveTag(Callback):
    """Takes the tag off the training pictures after :data:`LAST_TAGGED_EPOCH`."""

    def __init__(self, dataset: DigitsOnPhotos) -> None:
        self.tagged = dataset.tagged

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == LAST_TAGGED_EPOCH:
            self.tagged.fill_(False)


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()


def read_batch(batch: dict) -> Batch:
    """Tell the callback what is what; it draws the boxes into its pictures."""
    return Batch(batch["image"], batch["label"], {"digit": batch["digit"], "tag": batch["tag"]})


def fit(model: Classifier, run: str, logger: Logger, epochs: int) -> None:
    pictures = DigitsOnPhotos(TRAINING_TAG[run], train=True)
    callbacks: list[Callback] = [GradCAMCallback(batch_fn=read_batch)]
    callbacks += [RemoveTag(pictures)] * (run == "recovered")
    fit_on(model, pictures, DigitsOnPhotos("right"), logger, epochs, callbacks)


def fit_on(
    model: LightningModule,
    train: Dataset,
    val: Dataset,
    logger: Logger | bool,
    epochs: int,
    callbacks: list[Callback],
    num_workers: int = 2,
) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        log_every_n_steps=5,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    workers = {"num_workers": num_workers, "persistent_workers": True}
    trainer.fit(
        model,
        DataLoader(train, batch_size=64, shuffle=True, **workers),
        DataLoader(val, batch_size=400, **workers),
    )


@torch.no_grad()
def measure(model: Classifier, digits: Sequence[int] = range(10)) -> dict[str, Tensor]:
    """Accuracy on held-out pictures of these digits under each tag, and where the heatmaps lie under the right one."""
    model.eval()
    held_out = {}
    for tag in ("right", "no", "wrong"):
        pictures = DigitsOnPhotos(tag)
        chosen = [i for i, label in enumerate(pictures.labels) if label in digits]
        held_out[tag] = next(iter(DataLoader(Subset(pictures, chosen), batch_size=400)))
    row = {f"{tag} tag": accuracy(model(batch["image"]), batch["label"]) for tag, batch in held_out.items()}

    images, labels, digit, tag = held_out["right"].values()
    maps = gradcam(model, images, target="label", labels=labels)
    row["map on digit"] = mass(maps, box_masks(digit, (SIZE, SIZE))).nanmean()
    row["map on tag"] = mass(maps, box_masks(tag, (SIZE, SIZE))).nanmean()
    return row


def make_logger(kind: str, name: str) -> Logger:
    if kind == "tensorboard":
        return TensorBoardLogger("runs", name="", version=name)
    from requests.utils import get_netrc_auth  # comes with W&B

    account = os.environ.get("WANDB_API_KEY") or get_netrc_auth("https://api.wandb.ai")
    return WandbLogger(name=name, project="digits-on-photos", offline=not account)


def free_ending(runs: Iterable[str]) -> str:
    """What to put behind the names of the runs so that none overwrites an earlier one."""
    endings = ("" if number == 0 else f"_{number}" for number in count())
    return next(end for end in endings if not any(Path("runs", run + end).exists() for run in runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logger", choices=["tensorboard", "wandb"], default="tensorboard")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recover", action="store_true", help="train a third run, which loses its tag half-way")
    args = parser.parse_args()

    torch.set_num_threads(1)  # two threads took three times longer for so small a network on two busy cores
    ending = free_ending(TRAINING_TAG)
    table = {}
    for run in TRAINING_TAG if args.recover else ("weak", "strong"):
        seed_everything(args.seed)
        model, logger = Classifier(), make_logger(args.logger, run + ending)
        fit(model, run, logger, args.epochs)
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # else the next logger would go on in this run
        table[run + ending] = measure(model)

    print("\nAccuracy on 400 held-out digits under each tag, and the share of the Grad-CAM maps on digit and on tag:\n")
    print(" " * 12 + "".join(f"{column:>14}" for column in next(iter(table.values()))))
    for run, row in table.items():
        print(f"{run:12}" + "".join(f"{value:14.2f}" for value in row.values()))
    print(f"{'uniform map':54}{(DIGIT / SIZE) ** 2:14.2f}{(TAG / SIZE) ** 2:14.2f}")
    if args.logger == "tensorboard":
        print("\nNow look at it, under Grad-CAM and Images:  tensorboard --logdir runs --samples_per_plugin images=100")
        weak, strong = (f"runs/{run}{ending}" for run in ("weak", "strong"))
        print(f"Or side by side, epoch by epoch:  lightning-gradcam compare {weak} {strong} -o weak-strong.html")


if __name__ == "__main__":
    main()
