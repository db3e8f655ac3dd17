"""Watch a model learn to see motion: clips of a handwritten digit that moves left, right, up or down.

A small convolutional network reads every frame by itself, and a GRU what it found, frame after frame: the commonest
form of a model for clips. The callback finds the layer in the network for frames and puts the maps of a clip's frames
in order again. The digit stands on a photo and starts anywhere, so no single frame tells where it is going.

    pip install "lightning-gradcam[examples]"
    python clip.py              # about a minute on two cores, downloads nothing
    tensorboard --logdir runs --samples_per_plugin images=100
    lightning-gradcam report runs/clip -o clip.html

Under Images `gradcam/clip` plays; the page has a slider for the frame. A second start writes to `runs/clip_1`.
"""

import argparse
import random
from typing import Any

import torch
import torch.nn.functional as F
from digits_on_photos import Classifier, DigitsOnPhotos, accuracy, conv, fit_on, free_ending, make_logger
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradcam import Batch, GradCAMCallback, gradcam
from lightning_gradcam.metrics.localization import mass

SIDE, DIGIT, FRAMES, STEP = (
    40,
    20,
    8,
    2,
)  # of a frame and of the digit, frames of a clip, and pixels from one to the next
UNIFORM = DIGIT**2 / SIDE**2  # the share of a uniform map that lies on the digit
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


class MovingDigits(DigitsOnPhotos):
    """Clips ``(t, c, h, w)``: for training drawn anew each time, else always the same for an index."""

    classes = tuple(DIRECTIONS)

    def __init__(self, train: bool = False) -> None:
        super().__init__("no", train)

    def __getitem__(self, index: int) -> dict:
        """The clip as `image`, the `label` of its direction, and the square of the `digit`, a mask ``(t, h, w)``."""
        rng: Any = random if self.train else random.Random(index)
        label = rng.randrange(len(DIRECTIONS)) if self.train else index % len(DIRECTIONS)
        across, down = DIRECTIONS[self.classes[label]]
        way, room = STEP * (FRAMES - 1), SIDE - DIGIT
        x, y = (rng.randint(way * (towards < 0), room - way * (towards > 0)) for towards in (across, down))

        clip = self.photo_crop(rng, SIDE).repeat(FRAMES, 1, 1, 1)
        digit = torch.zeros(FRAMES, SIDE, SIDE)
        for t in range(FRAMES):
            left, top = x + STEP * t * across, y + STEP * t * down
            clip[t, :, top : top + DIGIT, left : left + DIGIT].lerp_(torch.ones(()), self.digits[index])
            digit[t, top : top + DIGIT, left : left + DIGIT] = 1
        return {"image": clip, "label": label, "digit": digit}


class ClipClassifier(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 12, stride=2), conv(12, 24, stride=2), conv(24, 16))
        self.memory = nn.GRU(16 * (SIDE // 8) ** 2, 32, batch_first=True)
        self.head = nn.Linear(32, len(DIRECTIONS))

    def forward(self, images: Tensor) -> Tensor:
        n, t = images.shape[:2]
        maps = F.avg_pool2d(self.features(images.flatten(0, 1)), 2)  # not over the whole frame: places are what matters
        return self.head(self.memory(maps.reshape(n, t, -1))[0][:, -1])


def read_batch(batch: dict) -> Batch:
    """Tell the callback what is what; the frames of `(n, t, c, h, w)` are axis 1, so the masks are `(n, t, h, w)`."""
    return Batch(batch["image"], batch["label"], {"digit": batch["digit"]}, time_axis=1)


def fit(model: ClipClassifier, logger: Logger, epochs: int) -> None:
    train, val = MovingDigits(train=True), MovingDigits()
    fit_on(model, train, val, logger, epochs, [GradCAMCallback(batch_fn=read_batch)])


@torch.no_grad()
def measure(model: ClipClassifier) -> dict[str, Tensor]:
    """Accuracy on held-out clips, and how much of the heatmaps lies on the digit, frame by frame."""
    model.eval()
    clips, labels, digit = next(iter(DataLoader(MovingDigits(), batch_size=400))).values()
    maps = gradcam(model, clips, target="label", labels=labels, time_axis=1)
    return {"accuracy": accuracy(model(clips), labels), "map on digit": mass(maps, digit).nanmean()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # as in `digits_on_photos.py`
    seed_everything(args.seed)
    model, name = ClipClassifier(), "clip" + free_ending(["clip"])
    fit(model, make_logger("tensorboard", name), args.epochs)

    found = measure(model)
    print(f"\nAccuracy on 400 held-out clips: {found['accuracy']:.2f}")
    print(f"Share of the Grad-CAM maps on the digit: {found['map on digit']:.2f}, of a uniform map: {UNIFORM:.2f}")
    print("\nNow see it play, under Images:  tensorboard --logdir runs --samples_per_plugin images=100")
    print(f"Or go through its frames:  lightning-gradcam report runs/{name} -o clip.html")


if __name__ == "__main__":
    main()
