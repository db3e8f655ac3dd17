"""Watch a model learn the wrong thing in three dimensions: handwritten digits in noise, and a marker that tells them.

The same small network is trained twice on volumes of 24 x 24 x 24 voxels. In run `volume_weak` every training volume
has a bright marker in one corner, a bar whose direction stands for the digit, as a scanner's label may stand for
a clinic; in run `volume_strong` none has. The validation volumes have the marker in both, so `volume_weak` validates
perfectly, and only its heatmaps show that it looks at the marker.

    pip install "lightning-gradcam[examples]"
    python volume.py            # about a minute and a half on two cores, downloads nothing
    tensorboard --logdir runs --samples_per_plugin images=100
    lightning-gradcam compare runs/volume_weak runs/volume_strong -o volumes.html

The pictures show each volume as three planes through the strongest cell of its map; the page has a slider for the
slice. A second start keeps what is there and writes to `runs/volume_weak_1` and `runs/volume_strong_1`.
"""

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from digits_on_photos import Classifier, accuracy, fit_on, free_ending, make_logger
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_gradcam import Batch, GradCAMCallback, gradcam
from lightning_gradcam.attribution.regions import box_masks
from lightning_gradcam.metrics.localization import mass

MARKED = {"volume_weak": True, "volume_strong": False}  # whether the training volumes of a run have the marker
SIDE, DIGIT, DEPTH, MARKER = 24, 14, 8, 8  # of a volume, of a digit, of its slices and of the marker, in voxels


class DigitsInNoise(Dataset):
    """Handwriting as bodies some slices deep: for training drawn anew each time, else always the same for an index."""

    classes = ("zero", "one", "two", "three")

    def __init__(self, marked: bool, train: bool = False) -> None:
        digits: Any = load_digits(n_class=len(self.classes))
        chosen = [i for i in range(len(digits.target)) if (i % 9 >= 2) == train]  # two of nine are held out: 160
        self.labels = digits.target[chosen].tolist()
        ink = torch.tensor(digits.images[chosen], dtype=torch.float32)[:, None] / 16
        profile = torch.linspace(0, math.pi, DEPTH + 2)[1:-1].sin()  # thick in the middle, thin at both ends
        self.digits = F.interpolate(ink, (DIGIT, DIGIT), mode="bicubic").clamp(0, 1) * profile[:, None, None]
        self.marked, self.train = marked, train

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        rng = torch.Generator()
        rng.manual_seed(int(torch.randint(2**31, ())) if self.train else index)
        tissue = torch.rand(1, 1, 6, 6, 6, generator=rng)
        volume = 0.3 * F.interpolate(tissue, (SIDE,) * 3, mode="trilinear")[0, 0]
        volume += 0.05 * torch.randn(volume.shape, generator=rng)

        x, y, z = (self.corner(side, rng) for side in (DIGIT, DIGIT, DEPTH))
        while min(x + DIGIT, y + DIGIT) > SIDE - MARKER and z < MARKER:  # on the marker
            x, y, z = (self.corner(side, rng) for side in (DIGIT, DIGIT, DEPTH))
        volume[z : z + DEPTH, y : y + DIGIT, x : x + DIGIT] += 0.5 * self.digits[index]
        if self.marked:
            volume[marker_of(self.labels[index])] = 1

        digit_box, marker_box = (
            (x, y, z, x + DIGIT, y + DIGIT, z + DEPTH),
            (SIDE - MARKER, SIDE - MARKER, 0, SIDE, SIDE, MARKER),
        )
        return {
            "image": volume[None],
            "label": self.labels[index],
            "digit": torch.tensor(digit_box),
            "marker": torch.tensor(marker_box),
        }

    @staticmethod
    def corner(side: int, rng: torch.Generator) -> int:
        return int(torch.randint(SIDE - side + 1, (), generator=rng))


def marker_of(label: int) -> tuple[slice, ...]:
    """The voxels of a digit's marker: a bar along the first, second or third axis, or for the fourth digit a cube."""
    thin, long, cube = [
        (slice(3, 5), slice(-5, -3)),
        (slice(MARKER), slice(-MARKER, None)),
        (slice(2, 6), slice(-6, -2)),
    ]
    chosen = [cube if label == 3 else long if axis == label else thin for axis in range(3)]
    return tuple(slices[axis > 0] for axis, slices in enumerate(chosen))


class VolumeClassifier(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(1, 8, stride=2), conv(8, 16), conv(16, 24, stride=2), conv(24, 32))
        self.head = nn.Linear(32, len(DigitsInNoise.classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3, 4)))


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv3d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(channels_out), nn.ReLU())


def read_batch(batch: dict) -> Batch:
    """Tell the callback what is what; a box has six numbers, x0, y0, z0, x1, y1, z1."""
    return Batch(batch["image"], batch["label"], {"digit": batch["digit"], "marker": batch["marker"]})


def fit(model: VolumeClassifier, run: str, logger: Logger, epochs: int) -> None:
    train, val = DigitsInNoise(MARKED[run], train=True), DigitsInNoise(True)
    fit_on(model, train, val, logger, epochs, [GradCAMCallback(batch_fn=read_batch)])


@torch.no_grad()
def measure(model: VolumeClassifier) -> dict[str, Tensor]:
    """Accuracy on held-out volumes with and without the marker, and where the heatmaps lie where it is there."""
    model.eval()
    marked, bare = (next(iter(DataLoader(DigitsInNoise(shown), batch_size=400))) for shown in (True, False))
    row = {
        name: accuracy(model(batch["image"]), batch["label"])
        for name, batch in (("marker", marked), ("no marker", bare))
    }
    maps = gradcam(model, marked["image"], target="label", labels=marked["label"])
    for region in ("digit", "marker"):
        row[f"map on {region}"] = mass(maps, box_masks(marked[region], (SIDE,) * 3)).nanmean()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # as in `digits_on_photos.py`
    ending = free_ending(MARKED)
    table = {}
    for run in MARKED:
        seed_everything(args.seed)
        model, name = VolumeClassifier(), run + ending
        fit(model, run, make_logger("tensorboard", name), args.epochs)
        table[name] = measure(model)

    print("\nAccuracy on 160 held-out digits with and without marker, and the share of the Grad-CAM maps on both:\n")
    print(" " * 18 + "".join(f"{column:>14}" for column in next(iter(table.values()))))
    for name, row in table.items():
        print(f"{name:18}" + "".join(f"{value:14.2f}" for value in row.values()))
    print(f"{'uniform map':46}{DIGIT**2 * DEPTH / SIDE**3:14.2f}{MARKER**3 / SIDE**3:14.2f}")
    print("\nNow look at it, under Images:  tensorboard --logdir runs --samples_per_plugin images=100")
    runs = " ".join(f"runs/{run}{ending}" for run in MARKED)
    print(f"Or slice by slice, side by side:  lightning-gradcam compare {runs} -o volumes.html")


if __name__ == "__main__":
    main()
