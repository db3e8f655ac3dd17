"""Watch a model look for the answer to a question: "which digit is left?".

A small network reads a scene of two handwritten digits on a photo, and a question about it. The same picture stands
in the grid with each of its three questions, and the maps differ: that of "which digit is left?" lies on the left
digit, that of "which digit is right?" on the right one.

    pip install "lightning-gradcam[examples]"
    python vqa.py                     # about a minute on two cores, downloads nothing
    tensorboard --logdir runs --samples_per_plugin images=100

The target is the score of the right answer. Each kind of question is a group of its own: `answer/mass_digit/left` is
the share of the maps on the digit that the answer names. A second start keeps what is there and writes beside it, to
`runs/vqa_1`.
"""

import argparse

import torch
import torch.nn.functional as F
from digits_on_photos import accuracy, free_ending, make_logger
from pytorch_lightning import seed_everything
from scenes import CHANNELS, Reader, Scenes, fit, held_out, look, trained_features
from torch import Tensor, nn

from lightning_gradcam import Batch, Display, GradCAMCallback
from lightning_gradcam.metrics.drift import similarity

KINDS = ("left", "right", "above", "below", "larger")
WORDS = ("which", "digit", "is", *KINDS)


class Answerer(Reader):
    """Turns a question into a query, which opens the gate for what answers it."""

    def __init__(self, features: nn.Module, width: int = 32) -> None:
        super().__init__(features, width)
        self.words = nn.EmbeddingBag(len(WORDS), width)
        # Normalised, since a sum over all cells is mostly photo at first; without, one seed of three learnt little.
        self.head = nn.Sequential(nn.BatchNorm1d(CHANNELS + 2), nn.Linear(CHANNELS + 2, 10))

    def forward(self, images: Tensor, questions: Tensor) -> Tensor:
        """The scores of the answers ``(m, 10)`` to questions ``(m, words)``, as many in a row to each picture."""
        maps = self.features(images).repeat_interleave(len(questions) // len(images), 0)
        return self.head(self.gate(maps, self.words(questions)))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(*self.answers(batch))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.log("val/accuracy", accuracy(*self.answers(batch)), prog_bar=True)

    def answers(self, batch: dict) -> tuple[Tensor, Tensor]:
        """The scores of the answers to all questions, and which are right."""
        rows = read_batch(batch)
        assert rows.labels is not None
        return self(batch["image"], rows.inputs), rows.labels


def read_batch(batch: dict) -> Batch:
    """Three rows for each scene: which digit is left and which right, or above and below, and which is larger."""
    digits, boxes, n = batch["digits"], batch["boxes"], len(batch["digits"])
    first = torch.where(batch["stacked"] == 1, KINDS.index("above"), KINDS.index("left"))
    kinds = torch.stack([first, first + 1, torch.full_like(first, KINDS.index("larger"))], 1).flatten()
    asked = torch.stack([torch.zeros(n), torch.ones(n), digits.argmax(1)], 1).long()  # which of the two digits
    scene = torch.arange(n)[:, None]
    return Batch(
        batch["image"].repeat_interleave(3, 0),
        digits[scene, asked].flatten(),
        {"digit": boxes[scene, asked].flatten(0, 1), "other": boxes[scene, 1 - asked].flatten(0, 1)},
        inputs=torch.cat([torch.arange(3).expand(3 * n, 3), 3 + kinds[:, None]], 1),
        ids=[f"{KINDS[kind]}: which digit is {KINDS[kind]}?" for kind in kinds],  # small pictures show its start alone
        groups=[KINDS[kind] for kind in kinds],
    )


def answer(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.images, batch.inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logger", choices=["tensorboard", "wandb"], default="tensorboard")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # as in `digits_on_photos.py`
    run = "vqa" + free_ending(["vqa"])
    seed_everything(args.seed)
    model = Answerer(trained_features())
    watch = GradCAMCallback(
        batch_fn=read_batch, forward_fn=answer, samples=6, prefix="answer", display=Display(tile=232)
    )
    fit(model, Scenes(train=True), Scenes(), make_logger(args.logger, run), args.epochs, [watch])

    print("\nEach question about 400 held-out scenes, and where its Grad-CAM maps lie:")
    maps = look(model, read_batch(held_out()), answer)
    first, second, _ = maps.unflatten(0, (-1, 3)).unbind(1)
    differ = 1 - similarity(first, second).nanmean()
    print(f"\nThe maps of the two questions for a place differ by {differ:.2f}; 0 is the same map, 1 shares no cell.")
    if args.logger == "tensorboard":
        print("Now look at it, under Images:  tensorboard --logdir runs --samples_per_plugin images=100")


if __name__ == "__main__":
    main()
