"""A run with the callback against the same run without it, bit by bit; and naive ways, which must not pass."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from tiny import Augmented, Images, TinyModule, Traced, different, loader, outcome, trainer

from lightning_gradcam import GradCAMCallback


class Manual(Traced):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):  # type: ignore[reportIncompatibleMethodOverride]
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


class PartlyInEval(Traced):
    """Keeps its BatchNorm in eval mode and its first convolution frozen."""

    def on_train_epoch_start(self):
        self.net[0].requires_grad_(False)
        self.net[1].eval()


class OwnGenerator(Images):
    """Draws its noise from a generator of its own, which moves on with every item."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.randn((), generator=self.generator), label


class ManyFiles(OwnGenerator):
    """Its generator lies deeper than a long list of files."""

    def __init__(self):
        super().__init__()
        self.files = [(f"{i}.jpg", i) for i in range(20_000)]
        self.steps = [partial(self.noise, generator=self.generator)]
        del self.generator

    def noise(self, image, generator):
        return image + torch.randn((), generator=generator)

    def __getitem__(self, index):
        image, label = Images.__getitem__(self, index)
        return self.steps[0](image), label


class Nested(Traced):
    """Its forward changes what lies in containers within containers, and that changes the loss."""

    def __init__(self):
        super().__init__()
        self.averages = {"of": {"images": torch.zeros(8)}}
        self.pair = (torch.zeros(1), np.zeros(1))
        self.seen = {"batches": [0.0]}

    def forward(self, images):
        self.averages["of"]["images"].mul_(0.9).add_(images.mean())
        self.pair[0].add_(0.01)
        self.pair[1][0] += 0.01
        self.seen["batches"].append(0.01 * len(self.seen["batches"]))
        shift = self.averages["of"]["images"].mean() + self.pair[0] + float(self.pair[1][0]) + self.seen["batches"][-1]
        return super().forward(images + shift)


class Hooked(pl.LightningDataModule):
    """Counts the batches it hands over, and scales them by that; makes its loaders once."""

    def __init__(self, train, val):
        super().__init__()
        self.sets, self.batches, self.asked = (train, val), 0, [0]

    def train_dataloader(self):
        return loader(self.sets[0], shuffle=True)

    def val_dataloader(self):
        self.asked[0] += 1
        return loader(self.sets[1])

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.batches += 1
        return batch[0] * (1 + 0.01 * self.batches), batch[1]


WEIGHTS = "weights and buffers"
PERSISTENT = {"num_workers": 2, "persistent_workers": True}
FRESH, TWO = {"num_workers": 2}, {"max_epochs": 2}  # every loop starts workers of its own, which takes long


@pytest.mark.parametrize(
    ("module", "train", "val", "options", "workers"),
    [
        (Traced, Images, Images, {}, {}),
        (Traced, Images, Images, {"accumulate_grad_batches": 4, "val_check_interval": 1}, {}),
        (Traced, Augmented, Augmented, {"num_sanity_val_steps": 0}, {}),
        (Traced, Augmented, Augmented, {"accumulate_grad_batches": 4, "val_check_interval": 0.5, **TWO}, FRESH),
        (Traced, Augmented, Augmented, {"num_sanity_val_steps": 0, "val_check_interval": 0.5}, PERSISTENT),
        (Traced, Images, OwnGenerator, {"num_sanity_val_steps": 0}, PERSISTENT),
        (Traced, Augmented, OwnGenerator, {"num_sanity_val_steps": 0, **TWO}, FRESH),
        (Traced, Augmented, OwnGenerator, {"num_sanity_val_steps": 0}, {}),
        (Traced, OwnGenerator, None, {}, {}),
        (Traced, ManyFiles, None, {}, {}),
        (Nested, Augmented, Augmented, {"num_sanity_val_steps": 0}, {}),
        (Traced, Augmented, None, {}, {}),
        (Traced, Augmented, None, {}, {"num_workers": 1}),
        (Traced, Augmented, Augmented, {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}, {}),
        (Manual, Augmented, Augmented, {"num_sanity_val_steps": 0}, {}),
        (Manual, Images, Images, {"val_check_interval": 0.5, **TWO}, FRESH),
        (PartlyInEval, Augmented, Augmented, {"num_sanity_val_steps": 0}, {}),
        (Traced, Augmented, Augmented, {"precision": "bf16-mixed", "num_sanity_val_steps": 0}, {}),
        (Traced, Augmented, Augmented, {"max_steps": 4, "max_epochs": -1, "num_sanity_val_steps": 0}, {}),
    ],
)
def test_a_run_ends_bit_identical(module, train, val, options, workers):
    def run(*callbacks):
        options_here = {"max_epochs": 3, **options}
        return outcome(module, callbacks, train(), None if val is None else val(), options_here, workers)

    without = run()
    callback = GradCAMCallback(samples=5)
    assert different(run(callback), without) == set()
    assert callback._session.setup_verified


# Counter-checks: the comparison above notices what naive callbacks do.


class BackwardIntoParameters(pl.Callback):
    """Grad-CAM as most code does it: zero the gradients, then go back through the whole model."""

    def on_validation_epoch_end(self, trainer, pl_module):
        images = Images().images[:4]
        with torch.enable_grad():
            pl_module.zero_grad()
            F.cross_entropy(pl_module(images), torch.zeros(4, dtype=torch.long)).backward()


class TrainAndEval(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.eval()
        pl_module.train()


class UsesRandomNumbers(pl.Callback):
    """Fetches a batch of augmented samples in the run's own random state."""

    def on_train_start(self, trainer, pl_module):
        dataset = trainer.val_dataloaders.dataset
        torch.stack([dataset[i][0] for i in range(4)])


class IteratesTheLoader(pl.Callback):
    """Takes the first batch of the user's own loader, under an isolated random state."""

    def on_train_start(self, trainer, pl_module):
        with torch.random.fork_rng():
            next(iter(trainer.val_dataloaders))


@pytest.mark.parametrize(
    ("naive", "module", "val", "options", "workers", "what"),
    [
        (BackwardIntoParameters, Traced, Images, {"accumulate_grad_batches": 4, "val_check_interval": 1}, {}, WEIGHTS),
        (TrainAndEval, PartlyInEval, Images, {"num_sanity_val_steps": 0}, {}, "training"),
        (UsesRandomNumbers, Traced, Augmented, {"num_sanity_val_steps": 0}, {}, WEIGHTS),
        (IteratesTheLoader, Traced, OwnGenerator, {"num_sanity_val_steps": 0}, PERSISTENT, "data"),
    ],
)
def test_naive_ways_do_not(naive, module, val, options, workers, what):
    options = {"max_epochs": 2, **options}
    with_callback = outcome(module, [naive()], Images(), val(), options, workers)
    without = outcome(module, [], Images(), val(), options, workers)
    assert what in different(with_callback, without)


@pytest.mark.parametrize("options", [{}, {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}])
def test_a_datamodule_is_left_as_it_was(options):
    def run(*callbacks):
        pl.seed_everything(1, verbose=False)
        module, data = Traced(), Hooked(Images(), Images())
        trainer(*callbacks, max_epochs=3, **options).fit(module, datamodule=data)
        return {"weights": module.state_dict(), "data": module.trace, "counts": (data.batches, data.asked)}

    assert different(run(GradCAMCallback(samples=5)), run()) == set()


def test_no_hook_and_no_graph_is_left_between_observations():
    class Check(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert not any(part._forward_hooks or part._backward_hooks for part in pl_module.modules())

    callback = GradCAMCallback(samples=2)
    trainer(callback, Check()).fit(TinyModule(), loader(), loader())
    hooks = {name for name in vars(type(callback)) if name.startswith("on_") and "batch" in name}
    assert hooks == {"on_validation_batch_start", "on_test_batch_start"}  # for loaders without a dataset
    assert callback._session.probe.batch.images.device.type == "cpu"
