"""Watch a captioning model look at what it names: "a three left of a seven".

A small network with an LSTM learns to describe scenes of two handwritten digits on a photo, word by word. Two callbacks
look at it while it trains. `word` asks for the log-probability of one word, given the words before it: the map of the
word "three" comes to lie on the three, and that of "seven" in the same picture on the seven. `caption` asks for the
log-probability of the whole caption, whose map lies on both.

    pip install "lightning-gradcam[examples]"
    python captioning.py              # under two minutes on two cores, downloads nothing
    tensorboard --logdir runs --samples_per_plugin images=100

Each word is a group of its own, so that `word/mass_digit/three` is logged: how much of the map of "three" lies on the
three. A second start keeps what is there and writes beside it, to `runs/captioning_1`.
"""

import argparse

import torch
import torch.nn.functional as F
from digits_on_photos import free_ending, make_logger
from pytorch_lightning import Callback, seed_everything
from scenes import CHANNELS, SIDE, Reader, Scenes, fit, held_out, look, trained_features
from torch import Tensor, nn

from lightning_gradcam import Batch, Display, GradCAMCallback
from lightning_gradcam.attribution.regions import box_masks

WORDS = (*Scenes.classes, "a", "left of", "above", "<start>")
A, LEFT_OF, START = (WORDS.index(word) for word in ("a", "left of", "<start>"))
LENGTH, NAMES = 5, (1, 4)  # of a caption in words, and where it names the digits


class Captioner(Reader):
    """Reads the layout of a scene into the state of an LSTM, which opens the gate for each word."""

    def __init__(self, features: nn.Module, width: int = 64) -> None:
        super().__init__(features, width)
        self.layout = nn.Sequential(nn.Conv2d(CHANNELS, 8, 1), nn.ReLU(), nn.Flatten())
        self.start = nn.Linear(8 * (SIDE // 4) ** 2, width)
        self.words = nn.Embedding(len(WORDS), width // 2)
        self.cell = nn.LSTMCell(width // 2 + CHANNELS + 2, width)
        self.head = nn.Linear(width + CHANNELS + 2, len(WORDS))

    def forward(self, images: Tensor, caption: Tensor | None = None) -> Tensor:
        """The log-probability of each word at each place, ``(n, LENGTH, words)``, behind a given caption or its own."""
        maps = self.features(images)
        state = self.start(self.layout(maps)).tanh()
        memory, seen = torch.zeros_like(state), images.new_zeros(len(images), CHANNELS + 2)
        word = torch.full((len(images),), START, device=images.device)
        said = []
        for place in range(LENGTH):
            state, memory = self.cell(torch.cat([self.words(word), seen], 1), (state, memory))
            seen = self.gate(maps, state)
            said.append(self.head(torch.cat([state, seen], 1)).log_softmax(1))
            word = said[-1].argmax(1) if caption is None else caption[:, place]
        return torch.stack(said, 1)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        caption = captions(batch)
        loss = F.nll_loss(self(batch["image"], caption).mT, caption)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        right = (self(batch["image"]).argmax(2) == captions(batch)).all(1)
        self.log("val/accuracy", right.float().mean(), prog_bar=True)


def captions(batch: dict) -> Tensor:
    """Of each scene the words of its caption, ``(n, LENGTH)``."""
    first, second = batch["digits"].unbind(1)
    article = torch.full_like(first, A)
    return torch.stack([article, first, LEFT_OF + batch["stacked"], article, second], 1)


def text(caption: Tensor) -> str:
    return " ".join(WORDS[word] for word in caption.tolist()).replace("a eight", "an eight")  # one article to the model


def read_captions(batch: dict) -> Batch:
    """A row for each scene: the map shall lie on both digits."""
    caption, boxes = captions(batch), batch["boxes"]
    both = box_masks(boxes[:, 0], (SIDE, SIDE)) + box_masks(boxes[:, 1], (SIDE, SIDE))
    return Batch(batch["image"], regions={"digits": both}, inputs=caption, ids=[text(one) for one in caption])


def read_words(batch: dict) -> Batch:
    """Two rows for each scene, one for the name of each digit: the map shall lie on that digit."""
    caption, boxes = captions(batch), batch["boxes"]
    word = caption[:, NAMES].flatten()
    return Batch(
        batch["image"].repeat_interleave(2, 0),
        word,
        {"digit": boxes.flatten(0, 1), "other": boxes.flip(1).flatten(0, 1)},
        inputs={"caption": caption.repeat_interleave(2, 0), "place": torch.tensor(NAMES).repeat(len(caption))},
        ids=[f"{WORDS[one]}: {text(caption[i // 2])}" for i, one in enumerate(word)],
        groups=[WORDS[one] for one in word],
    )


def say_caption(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.images, batch.inputs)


def say_word(model: nn.Module, batch: Batch) -> Tensor:
    """The log-probabilities of what may stand in the place of one word, as of the classes of a classifier."""
    said = model(batch.images, batch.inputs["caption"])
    return said[torch.arange(len(said)), batch.inputs["place"]]


def whole_caption(output: Tensor, batch: Batch) -> Tensor:
    return output.gather(2, batch.inputs[..., None]).sum((1, 2))


def watch() -> list[Callback]:
    """The callbacks; no layer is named: both find that everything passes through `features`."""
    display = Display(class_names=WORDS, tile=224)  # wide enough for the captions
    word = GradCAMCallback(batch_fn=read_words, forward_fn=say_word, samples=12, prefix="word", display=display)
    caption = GradCAMCallback(
        batch_fn=read_captions, forward_fn=say_caption, target=whole_caption, samples=12, prefix="caption"
    )
    return [word, caption]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logger", choices=["tensorboard", "wandb"], default="tensorboard")
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # as in `digits_on_photos.py`
    run = "captioning" + free_ending(["captioning"])
    seed_everything(args.seed)
    model = Captioner(trained_features())
    fit(model, Scenes(train=True), Scenes(), make_logger(args.logger, run), args.epochs, watch())

    batch = held_out()
    print("\nEach word, given the right ones before it, on 400 held-out scenes, and where its Grad-CAM maps lie:")
    look(model, read_words(batch), say_word)
    with torch.no_grad():
        right = (model(batch["image"]).argmax(2) == captions(batch)).all(1)
    print(f"\nWhole captions in the model's own words: {right.float().mean():.2f} are right.")
    if args.logger == "tensorboard":
        print("Now look at it, under Images:  tensorboard --logdir runs --samples_per_plugin images=100")


if __name__ == "__main__":
    main()
