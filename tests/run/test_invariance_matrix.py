"""Every pair of ways to train, with the callback against without, bit by bit."""

from itertools import combinations, product

import pytest
import pytorch_lightning as pl
import torch
from tiny import Augmented, Traced, different, outcome, tiny_net

from lightning_gradcam import Batch, Display, GradCAMCallback, TopTarget

WAYS = {
    "optimization": ("automatic", "manual"),
    "accumulation": (1, 4),
    "val_check_interval": (1.0, 0.5),
    "precision": ("32-true", "bf16-mixed", "64-true"),
    "network": ("as it is", "without BatchNorm", "frozen backbone", "parts in eval"),
    "validation": (True, False),
    "check_val_every_n_epoch": (1, 2),
    "stop": ("at an epoch", "in mid-epoch"),
    "averaging": ("none", "EMA", "SWA"),
    "persistent_workers": (False, True),
    "looks": ("as usual", "with all options"),
}
LOOKS = {
    "as usual": {},
    "with all options": {
        "target": TopTarget(2),
        "guided": 1,
        "checks": True,
        "display": Display(counterfactual=True),
        "localization": "half",
        "batch_fn": lambda batch: Batch(
            *batch, {"half": torch.tensor([[0, 0, 16, 8]] * 5)}, groups=["one", "two", "one", "two", "one"]
        ),
    },
}


def legal(way):
    """Whether Lightning allows the combination."""
    if way["optimization"] == "manual" and (way["accumulation"] > 1 or way["averaging"] == "SWA"):
        return False
    return way["validation"] or (way["val_check_interval"] == 1.0 and way["check_val_every_n_epoch"] == 1)


def pairs(way):
    return set(combinations(way.items(), 2))


def covering():
    """Combinations that meet every legal pair of values, each the one that adds most pairs to those before."""
    allowed = [way for values in product(*WAYS.values()) if legal(way := dict(zip(WAYS, values, strict=True)))]
    open_pairs = set().union(*map(pairs, allowed))
    while open_pairs:
        way = max(allowed, key=lambda way: len(pairs(way) & open_pairs))
        open_pairs -= pairs(way)
        yield way


class Net(Traced):
    """The tiny network with a learning-rate schedule, trained as ``way`` says."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.automatic_optimization = way["optimization"] == "automatic"
        if way["network"] == "without BatchNorm":
            net = list(tiny_net())
            self.net = torch.nn.Sequential(*[layer for layer in net if not isinstance(layer, torch.nn.BatchNorm2d)])
        if way["network"] == "frozen backbone":
            self.net[:3].requires_grad_(False)
        self.double() if way["precision"] == "64-true" else None

    def on_train_epoch_start(self):
        if self.way["network"] == "parts in eval":
            self.net[1].eval()
            self.net[3].eval()

    def training_step(self, batch, batch_idx):  # type: ignore[reportIncompatibleMethodOverride]
        loss = super().training_step(batch, batch_idx)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self):  # type: ignore[reportIncompatibleMethodOverride]
        optimizer = torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def train(way, *callbacks):
    averaging = {
        "none": lambda: [],
        "EMA": lambda: [pl.callbacks.EMAWeightAveraging(decay=0.5)],
        "SWA": lambda: [pl.callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1)],
    }[way["averaging"]]()
    schedule = []

    class Keep(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            schedule.append(trainer.lr_scheduler_configs[0].scheduler.state_dict())

    options = {
        "max_epochs": 3,
        "max_steps": 7 if way["stop"] == "in mid-epoch" else -1,
        "accumulate_grad_batches": way["accumulation"],
        "precision": way["precision"],
        "val_check_interval": way["val_check_interval"],
        "check_val_every_n_epoch": way["check_val_every_n_epoch"],
        "num_sanity_val_steps": 0,
    }
    workers = {"num_workers": 1, "persistent_workers": True} if way["persistent_workers"] else {}
    val = Augmented() if way["validation"] else None
    found = outcome(lambda: Net(way), [*callbacks, *averaging, Keep()], Augmented(), val, options, workers)
    # A scheduler also keeps functions and names.
    kept = {key: value for key, value in schedule[0].items() if isinstance(value, (int, float, list))}
    return found | {"schedule": kept}


@pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="older than Lightning 2.6")
@pytest.mark.filterwarnings("ignore:.*SWA")
@pytest.mark.filterwarnings("ignore:.*swa")
@pytest.mark.parametrize("way", list(covering()), ids=lambda way: "-".join(str(value) for value in way.values()))
def test_bit_identical(way):
    callback = GradCAMCallback(samples=5, **LOOKS[way["looks"]])
    assert different(train(way, callback), train(way)) == set()
    assert callback._session.setup_verified


def test_every_legal_pair_is_met():
    met = set().union(*map(pairs, covering()))
    allowed = [way for values in product(*WAYS.values()) if legal(way := dict(zip(WAYS, values, strict=True)))]
    assert met == set().union(*map(pairs, allowed))
    assert (("optimization", "manual"), ("precision", "64-true")) in met
    assert (("accumulation", 4), ("averaging", "SWA")) in met
