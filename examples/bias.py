"""Find a bias in the training data by the maps of each group, balance the data, and see the gap between groups close.

The Grad-CAM paper (https://arxiv.org/abs/1610.02391, "Identifying bias in dataset") finds a classifier of doctors and
nurses that looks at faces and hair, since most of the doctors in its data were men; trained on balanced data it looks
at coats and stethoscopes, and gets more of an unbiased test set right. Here the tag of `digits_on_photos.py`, whose
colour stands for a digit, plays the part of the hair. Half of the training pictures carry one:

- in run `biased` those of the digits 0 to 4, each in its digit's colour, and none of 5 to 9;
- in run `balanced` the same tags are dealt out among all pictures, and tell nothing of the digit.

Net, training and validation are the same in both. Every validation picture carries its digit's own tag, and `biased`
gets nearly all of them right; but its maps of 0 to 4 lie on the tag and those of 5 to 9 on the digit, and without the
tag it knows the digits 0 to 4 no more.

    pip install "lightning-gradcam[examples]"
    python bias.py              # about a minute on two cores, downloads nothing
    tensorboard --logdir runs --samples_per_plugin images=100
    lightning-gradcam compare runs/biased runs/balanced -o bias.html

`read_batch` names the group of each sample, so that all numbers are logged for each group too: `gradcam/mass_tag/0-4`
and `gradcam/mass_tag/5-9`. A second start keeps what is there and writes to `runs/biased_1` and `runs/balanced_1`.
"""

import argparse
import random
from dataclasses import replace

import digits_on_photos
import torch
from digits_on_photos import DIGIT, SIZE, TAG, Classifier, DigitsOnPhotos, fit_on, free_ending, make_logger, measure
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger

from lightning_gradcam import Batch, GradCAMCallback, balanced

RUNS = ("biased", "balanced")
GROUPS = {"0-4": range(5), "5-9": range(5, 10)}  # the digits that have tags in run `biased`, and those that have none


class HalfTagged(DigitsOnPhotos):
    """Training pictures of which about half carry a tag: those of one group of digits, or any."""

    def __init__(self, run: str) -> None:
        super().__init__("right", train=True)
        self.biased = run == "biased"

    def tag_of(self, label: int, rng: random.Random) -> int | None:
        owner = label if self.biased else rng.randrange(10)
        return owner if owner in GROUPS["0-4"] else None


def read_batch(batch: dict) -> Batch:
    """As in the other example, and with the group of each sample."""
    groups = [name for label in batch["label"].tolist() for name, digits in GROUPS.items() if label in digits]
    return replace(digits_on_photos.read_batch(batch), groups=groups)


def watched() -> list[int]:
    """Two held-out pictures of each digit, 0 to 9 and again, so that every row of the grid is of one group."""
    labels = DigitsOnPhotos("right").labels
    by_digit = sorted(balanced(DigitsOnPhotos("right"), 20), key=lambda index: labels[index])
    return by_digit[::2] + by_digit[1::2]


def fit(model: Classifier, run: str, logger: Logger, epochs: int) -> None:
    watch = GradCAMCallback(batch_fn=read_batch, samples=watched())
    fit_on(model, HalfTagged(run), DigitsOnPhotos("right"), logger, epochs, [watch])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # as in the other example
    ending = free_ending(RUNS)
    table = {}
    for run in RUNS:
        seed_everything(args.seed)
        model, name = Classifier(), run + ending
        fit(model, run, make_logger("tensorboard", name), args.epochs)
        rows = {group: measure(model, digits) for group, digits in GROUPS.items()}
        rows["gap"] = {column: abs(rows["0-4"][column] - rows["5-9"][column]) for column in rows["0-4"]}
        table |= {f"{name:14}{group:6}": row for group, row in rows.items()}

    print("\nAccuracy on held-out digits of a group under each tag, and the share of their maps on digit and on tag:\n")
    print(" " * 20 + "".join(f"{column:>14}" for column in next(iter(table.values()))))
    for label, row in table.items():
        print(label + "".join(f"{value:14.2f}" for value in row.values()))
    print(f"{'uniform map':62}{(DIGIT / SIZE) ** 2:14.2f}{(TAG / SIZE) ** 2:14.2f}")
    print('\nNow see the gap close, in Time Series with the tags filtered to "mass_.*/", and the maps, in Images:')
    print("    tensorboard --logdir runs --samples_per_plugin images=100")
    runs = " ".join(f"runs/{run}{ending}" for run in RUNS)
    print(f"Or side by side, epoch by epoch:\n    lightning-gradcam compare {runs} -o bias.html")


if __name__ == "__main__":
    main()
