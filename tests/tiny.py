"""Tiny models, tiny data, a Trainer without noise, and what reads back what a run has left: shared by all tests."""

import os
import random
import subprocess
import sys
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_gradcam import Batch, Drift, GradCAMCallback
from lightning_gradcam.attribution.prediction import Prediction
from lightning_gradcam.run.history import History, Moment

ROOT = Path(__file__).parent.parent

# Data

CLASSES = 3


class Images(Dataset):
    """Noise with labels; the same for the same index, whoever asks."""

    classes = ("ant", "bee", "crab")

    def __init__(self, length=24, channels=3, size=16):
        generator = torch.Generator().manual_seed(length)
        self.images = torch.rand(length, channels, size, size, generator=generator)
        self.labels = torch.arange(length) % CLASSES

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Augmented(Images):
    """Adds noise from the global random state at every access, as random augmentations do."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn(()), label


def loader(dataset=None, batch_size=8, **options):
    return DataLoader(Images() if dataset is None else dataset, batch_size, **options)


def boxed(batch, name="object", box=(0, 0, 16, 8)):
    """The batch with the same box for every sample, by default around the upper half."""
    images, labels = batch
    return Batch(images, labels, {name: torch.tensor([box] * len(images))})


HOSTILE = {
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "markdown": "![x](http://example.com/x.png) [y](javascript:alert(1)) | ` ``` |",
    "path": "../../../etc/passwd\\..\\C:",
    "control": "a\x00b\x1b[31mc\r\nd\te\x7f\u202e\ud800",
    "long": "very long " * 5_000,
    "script": "猫 कुत्ता قطة 🐈 é",
    "format": "{0.__class__} %s %(x)s $HOME `id`",
}

# Models


def tiny_net(channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


class TinyModule(pl.LightningModule):
    def __init__(self, channels=3):
        super().__init__()
        self.net = tiny_net(channels)

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Trains(pl.LightningModule):
    """Training that suits every model and batch: its weights decay."""

    def training_step(self, batch, batch_idx):
        return torch.stack([one.square().mean() for one in self.parameters()]).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Evident(TinyModule):
    """Whatever the last layer sees speaks for every class, so that no map is empty, whatever dropout has drawn."""

    def __init__(self):
        super().__init__()
        self.net[8].weight.data.abs_()


class Share(nn.Module):
    """The probability of class 0 is the weighted sum of the pixels of the only channel; those with a minus lower it."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, images):
        likely = (images[:, 0] * self.weights).flatten(1).sum(1).clamp(0, 1)
        return torch.stack([likely, 1 - likely], 1).log()


class Wrapper(nn.Module):
    """Holds a model and runs it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)


class Checkpointed(nn.Module):
    """Runs a network from ``start`` on under an activation checkpoint."""

    def __init__(self, net, start, reentrant):
        super().__init__()
        self.net, self.start, self.reentrant = net, start, reentrant

    def forward(self, images):
        features = self.net[: self.start](images)
        return torch.utils.checkpoint.checkpoint(self.net[self.start :], features, use_reentrant=self.reentrant)


class Restless(nn.Module):
    """Draws random numbers and changes all kinds of state in its forward, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.net = tiny_net()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("total", torch.zeros(1))
        self.register_buffer("first", None)
        self.generator = torch.Generator().manual_seed(0)
        self.calls, self.cache, self.average, self.seen = 0, None, torch.zeros(3), []
        self.counts, self.recent, self.table = {"forward": 0}, deque([1, 2], 2), np.zeros(2)

    def forward(self, images):
        self.count = self.count + 1
        self.total += 1
        self.first = images[:1]
        self.calls += 1
        self.cache = self.new = images
        self.average += 1
        self.seen.append(1)
        self.counts["forward"] += 1
        self.recent.append(3)
        self.table += 1
        torch.rand(1, generator=self.generator)
        return self.net(images) * (1 + torch.rand(1) + np.random.rand() + random.random())

    def state(self):
        drawn = self.generator.get_state().tolist()
        plain = self.average.tolist(), list(self.seen), dict(self.counts), list(self.recent), self.table.tolist()
        return drawn, self.count, self.total, self.first, self.calls, self.cache, plain


def mixed_model():
    """A model in training with a part in eval, a frozen part, and gradients that have been accumulated."""
    model = tiny_net().train()
    model[1].eval()
    model[4].requires_grad_(False)
    model(torch.rand(4, 3, 16, 16)).sum().backward()
    return model


def state_of(model):
    return {
        "training": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "buffers": [buffer.clone() for buffer in model.buffers()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "grad_mode": torch.is_grad_enabled(),
    }


@contextmanager
def untouched(model):
    before = state_of(model)
    objects = [id(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    yield
    after = state_of(model)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert [id(tensor) for tensor in [*model.parameters(), *model.buffers()]] == objects


# Targets of a user's own, which are found by their path


class ScaledLogit:
    """An instance that is called, as `SegmentationTarget` is one."""

    def __init__(self, index: int, factor: float) -> None:
        self.index, self.factor = index, factor

    def __call__(self, output, batch):
        return self.factor * output[:, self.index]


def second_logit(output, batch):
    return output[:, 1]


# Runs


def trainer(*callbacks, **options):
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **defaults | options)


def early_stop():
    """A callback that ends a run after its second epoch."""
    return pl.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)


class Recorder(pl.loggers.Logger):
    """Keeps what it is given; pictures are left to files."""

    def __init__(self):
        super().__init__()
        self.scalars = []

    @property
    def name(self):
        return "recorder"

    @property
    def version(self):
        return 0

    def log_metrics(self, metrics, step=None):
        self.scalars.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def steps(self, key):
        return [step for step, metrics in self.scalars if key in metrics]

    def values(self, key):
        return [metrics[key] for _, metrics in self.scalars if key in metrics]


def fit(callback=None, module=None, val=True, **options):
    callback = callback or GradCAMCallback(samples=4)
    module = module or TinyModule()
    logger = Recorder()
    run = trainer(callback, logger=logger, **options)
    run.fit(module, loader(shuffle=True), loader() if val else None)
    return run, logger


def pictures(folder="."):
    """Step by key of every JPEG file written below the folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*.jpg")):
        key, step = path.stem.split("-step=")
        with Image.open(path) as picture:
            picture.verify()
        found.setdefault(key, []).append(int(step))
    return found


def events(folder):
    """What TensorBoard reads from a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


class Traced(TinyModule):
    """Notes the data that each step gets."""

    def __init__(self):
        super().__init__()
        self.trace = []

    def training_step(self, batch, batch_idx):
        self.trace.append(batch[0].sum().item())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.trace.append(batch[0].sum().item())
        return super().validation_step(batch, batch_idx)


def outcome(module_class, callbacks, train, val, options, workers):
    """Train from a fixed seed; everything that the callback might have changed."""
    pl.seed_everything(1, verbose=False)
    module = module_class()
    run = trainer(*callbacks, **options)
    run.fit(module, loader(train, shuffle=True, **workers), None if val is None else loader(val, **workers))
    return {
        "weights and buffers": module.state_dict(),
        "optimizer": run.optimizers[0].state_dict(),
        "data": module.trace,
        "training": [part.training for part in module.modules()],
        "requires_grad": [parameter.requires_grad for parameter in module.parameters()],
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
    }


def different(one, two):
    """What of two outcomes is not the same to the last bit."""

    def same(name):
        try:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
        except AssertionError:
            return False
        return True

    return {name for name in one if not same(name)}


# Histories, observed by hand

BEFORE = Moment(-1, False)


def new(**options):
    return History("cam", Drift(**options), additive=True)


def prediction(*classes):
    chosen = torch.tensor(classes)
    return Prediction(torch.eye(4)[chosen], chosen, chosen == 0)


def observe(history, maps, moment, classes=None, shifted=None, asked=None):
    """One observation of one layer: read, then add."""
    maps = {"cam": torch.stack(list(maps))}
    shifted = {} if shifted is None else {"cam": torch.stack(list(shifted))}
    said = prediction(*(classes or [0] * len(maps["cam"])))
    asked = None if asked is None else torch.tensor(asked)
    reading = history.measure(maps, shifted, said, {}, target_classes=asked)
    history.add(reading, maps, said, moment, asked)
    return {key.removeprefix("cam/"): value for key, value in reading.numbers.items()}, reading


# Processes of their own


def environment(**more):
    """That of a process which finds what the tests find, and leaves the other cores alone."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | more


def python(*arguments, **options):
    """Run a fresh interpreter, such as `python("-c", code)`."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200, **options)


# A run that a signal interrupts in a capture, or that goes on from a checkpoint.
INTERRUPTED = """
import os, signal, sys, warnings
import torch
from lightning_gradcam import Drift, GradCAMCallback
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import Recorder, TinyModule, loader, trainer
warnings.simplefilter("ignore")
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what it starts with `&`
torch.manual_seed(0)
calls = 0
def target(output, batch):
    global calls
    calls += 1
    if calls == {at} and {resume!r} is None:
        os.kill(os.getpid(), signal.{signal})
    return output[:, 0]
logger = Recorder()
module = TinyModule()
callback = GradCAMCallback("net.4", samples=2, target=target, drift=Drift(noise_floor=False))
saver = ModelCheckpoint("saved", save_last=True)
run = trainer(callback, saver, logger=logger, max_epochs=4, enable_checkpointing=True)
try:
    run.fit(module, loader(), loader(), ckpt_path={resume!r})
finally:
    print("interrupted", run.interrupted, "epoch", run.current_epoch)
    print("hooks", sum(len(one._forward_hooks) for one in module.modules()))
    print("frozen", sum(not parameter.requires_grad for parameter in module.parameters()))
    print("drift", logger.steps("gradcam/drift"))
"""


def interrupted(**options):
    return python("-c", INTERRUPTED.format(**{"at": 5, "signal": "SIGINT", "resume": None} | options))


# Pages in a browser


def wait_for(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda one: one.execute_script(f"return {condition}"))


def canvases(browser):
    """Every canvas that is shown, by card and run."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#cards > li:not([hidden])')].map("
        "card => [...card.querySelectorAll('canvas')].map(one => one.toDataURL()))"
    )
