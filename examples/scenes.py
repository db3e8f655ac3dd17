"""Scenes of two handwritten digits on a photo, and what `captioning.py` and `vqa.py` share to read them.

It is known where each digit lies, so that it can be measured whether the map of the word "three" lies on the three.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from digits_on_photos import DIGIT, Classifier, DigitsOnPhotos, fit_on
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradcam import Batch, gradcam
from lightning_gradcam.attribution.regions import box_masks
from lightning_gradcam.metrics.localization import mass

SIDE, GAP = 64, 3  # of a scene, and between two digits, in pixels
CHANNELS = 64  # of the maps that are looked at
UNIFORM = DIGIT**2 / SIDE**2  # the share of a uniform map that lies on one digit

fit = partial(fit_on, num_workers=1)


class Scenes(DigitsOnPhotos):
    """Two digits that differ, side by side or one above the other; for training drawn anew each time."""

    def __init__(self, train: bool = False) -> None:
        super().__init__("no", train)

    def __getitem__(self, index: int) -> dict:
        """The `image`, its `digits` and their `boxes`, the left or upper one first, and whether they are `stacked`."""
        rng: Any = random if self.train else random.Random(index)
        image = self.photo_crop(rng, SIDE)
        other = index
        while self.labels[other] == self.labels[index]:
            other = rng.randrange(len(self))
        chosen = rng.sample([index, other], 2)

        across, down, corners = 0, 0, []
        while max(across, down) < DIGIT + GAP or abs(across - down) < 2 * GAP:  # until apart, and clearly one or other
            corners = [(rng.randint(0, SIDE - DIGIT), rng.randint(0, SIDE - DIGIT)) for _ in range(2)]
            across, down = (abs(one - two) for one, two in zip(*corners, strict=True))
        stacked = down > across
        corners.sort(key=lambda corner: corner[stacked])
        for digit, (x, y) in zip(chosen, corners, strict=True):
            image[:, y : y + DIGIT, x : x + DIGIT].lerp_(torch.ones(()), self.digits[digit])

        digits = torch.tensor([self.labels[digit] for digit in chosen])
        boxes = torch.tensor([(x, y, x + DIGIT, y + DIGIT) for x, y in corners])
        return {"image": image, "digits": digits, "boxes": boxes, "stacked": int(stacked)}


class Gate(nn.Module):
    """Attention without a softmax: a query opens some cells of a map, and what is in them is added up.

    Under a softmax the cells that nobody looks at count for nothing and may hold anything, and Grad-CAM, which weighs
    the channels of all cells alike, shows it: no more than a third of the maps lay on the digit. Here every gate must
    be held shut, or its cell be quiet.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.key = nn.Conv2d(CHANNELS + 2, width, 1)

    def forward(self, maps: Tensor, query: Tensor) -> Tensor:
        """What each query ``(n, width)`` reads of its maps ``(n, c, h, w)``, with the place: ``(n, c + 2)``."""
        n, _, h, w = maps.shape
        place = torch.stack(torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij"))
        maps = torch.cat([maps, place.to(maps).expand(n, 2, h, w)], 1)
        gates = torch.einsum("nqhw,nq->nhw", self.key(maps), self.norm(query)).sigmoid()
        return torch.einsum("nchw,nhw->nc", maps, gates) / h


class Reader(LightningModule):
    """What both models have in common: trained convolutions, which learn on at a slower rate, and a gate."""

    learning_rate = 4e-3

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features = features
        self.gate = Gate(width)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = list(self.features.parameters())
        new = [parameter for name, parameter in self.named_parameters() if not name.startswith("features.")]
        optimizer = torch.optim.AdamW([{"params": new}, {"params": trained}], weight_decay=1e-2)
        rates, steps = [self.learning_rate, self.learning_rate / 5], int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trained_features(epochs: int = 15) -> nn.Module:
    """The convolutions of `digits_on_photos.py`, trained on single digits: to start from, as is usual with language."""
    classifier = Classifier()
    fit(classifier, DigitsOnPhotos("no", train=True), DigitsOnPhotos("no"), False, epochs, [])
    return classifier.features


def held_out() -> dict:
    """All scenes of the validation."""
    return next(iter(DataLoader(Scenes(), batch_size=400)))


class Asked(nn.Module):
    """A model with the words of some rows, for `gradcam`, which hands over images alone."""

    def __init__(self, model: Reader, rows: Batch, forward_fn: Callable[[Reader, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.rows, self.forward_fn = model, rows, forward_fn

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_fn(self.model, replace(self.rows.part(slice(len(images))), images=images))


def look(model: Reader, rows: Batch, forward_fn: Callable[[Reader, Batch], Tensor]) -> Tensor:
    """Print for each group of rows, and for all, how many are right and where the maps lie; return the maps."""
    model.eval()
    asked = Asked(model, rows, forward_fn)
    maps = gradcam(asked, rows.images, target="label", labels=rows.labels)
    with torch.no_grad():
        right = asked(rows.images).argmax(1) == rows.labels
    on = [mass(maps, box_masks(rows.regions[name], (SIDE, SIDE))) for name in ("digit", "other")]
    groups = {
        group: torch.tensor([one == group for one in rows.groups]) for group in dict.fromkeys(sorted(rows.groups))
    }
    print(f"\n{'':14}{'accuracy':>14}{'map on digit':>14}{'on the other':>14}{'uniform map':>14}")
    for group, chosen in {**groups, "all": torch.ones_like(right)}.items():
        numbers = right[chosen].float().mean(), *(shares[chosen].nanmean() for shares in on), UNIFORM
        print(f"{group:14}" + "".join(f"{number:14.2f}" for number in numbers))
    return maps
