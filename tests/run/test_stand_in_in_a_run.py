"""What a look must not do to a run: to its metrics, loggers, hooks, files and weights, whatever the forward does."""

import gc
import pickle
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
import transformers
from tiny import Recorder, TinyModule, fit, loader, tiny_net, trainer
from torch import nn

from lightning_gradcam import GradCAMCallback, gradcam
from lightning_gradcam.attribution.stand_in import StandIn


def weights(module, *callbacks, **options):
    """The weights after a short run."""
    torch.manual_seed(1)
    module = module()
    run = trainer(*callbacks, **{"num_sanity_val_steps": 0, "max_epochs": 2} | options)
    run.fit(module, loader(), loader())
    return run, module


def with_and_without(module, callback=None, **options):
    """Two runs, of which only the second is looked at."""
    return weights(module, **options), weights(module, callback or GradCAMCallback(samples=3), **options)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Logs(nn.Module):
    """A part that logs by what it was given."""

    def __init__(self, log):
        super().__init__()
        self.log_it = log

    def forward(self, scores):
        if not self.training:
            self.log_it("norm", scores.norm(dim=1).mean())
        return scores


def by_method(module):
    return module.log


def by_partial(module):
    return partial(module.log, prog_bar=True)


def by_closure(module):
    return lambda *args: module.log(*args)


def by_dict(module):
    return lambda key, value: module.log_dict({key: value})


def by_object(module):
    class Log:
        def __init__(self):
            self.module = module

        def __call__(self, *args):
            self.module.log(*args)

    return Log()


@pytest.mark.parametrize("way", [by_method, by_partial, by_closure, by_dict, by_object])
def test_a_part_that_logs_by_the_modules_own_log(way):
    class Module(TinyModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(tiny_net(), Logs(way(self)))

        def validation_step(self, batch, batch_idx):
            self(batch[0])

    (plain, _), (looked_at, _) = with_and_without(Module)
    assert plain.callback_metrics["norm"] == looked_at.callback_metrics["norm"]


def test_a_log_of_the_modules_own():
    class Module(TinyModule):
        logged = 0

        def log(self, name, value, **options):  # pyright: ignore[reportIncompatibleMethodOverride]
            type(self).logged += name == "norm"
            super().log(name, value, **options)

        def forward(self, images):
            scores = super().forward(images)
            if not self.training:
                self.log("norm", scores.norm())
            return scores

    with_and_without(Module)
    assert Module.logged == 2 * 2 * 3  # runs, epochs and batches of the validation


def test_a_logger_that_is_called_in_a_forward():
    class Counting(Recorder):
        images = 0

        @property
        def experiment(self):
            return self

        def add_image(self, *args):
            self.images += 1

    class Module(TinyModule):
        def forward(self, images):
            if not self.training:
                assert self.logger is not None
                self.logger.experiment.add_image("features", images[0], self.trainer.global_step)
                self.logger.log_metrics({"forward": 1.0})
                self.trainer.loggers[0].experiment.add_image("again", images[0])
            return super().forward(images)

    plain, _ = weights(Module, logger=Counting())
    looked_at, _ = weights(Module, GradCAMCallback(samples=3), logger=Counting())
    assert looked_at.logger.images == plain.logger.images == 2 * 2 * 3  # pictures, epochs, batches of the validation
    assert looked_at.logger.values("forward") == plain.logger.values("forward")


def test_a_metric_in_a_forward():
    class Module(TinyModule):
        def __init__(self):
            super().__init__()
            self.mean = torchmetrics.MeanMetric()
            self.all = torchmetrics.CatMetric()  # its hash moves with its state
            self.parts = {"hidden": torchmetrics.MeanMetric()}

        def forward(self, images):
            scores = super().forward(images)
            self.mean.update(scores.detach())
            self.all(scores.detach().mean())
            self.parts["hidden"](scores.detach())
            return scores

    (_, plain), (_, looked_at) = with_and_without(Module)
    assert plain.mean.compute() == looked_at.mean.compute()
    assert torch.equal(plain.all.compute(), looked_at.all.compute())
    assert plain.parts["hidden"].compute() == looked_at.parts["hidden"].compute()


@pytest.mark.filterwarnings("ignore")
def test_hooks_that_a_library_installs_at_its_first_forward():
    pytest.importorskip("transformers.utils.output_capturing", reason="older releases of transformers install none")
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )

    class Module(TinyModule):
        def __init__(self):
            super().__init__()
            self.net = transformers.ViTModel(config)
            self.head, self.count = nn.Linear(16, 3), 0

        def forward(self, images):
            states = self.net(images, output_hidden_states=True).hidden_states
            self.count = len(states)
            return self.head(torch.stack(states[-3:]).mean((0, 2)))

    _, plain = weights(Module)
    layer = next(name for name, _ in plain.named_modules() if name.endswith(".0.layernorm_before"))
    callback, logger = GradCAMCallback(layer, samples=3), Recorder()
    _, looked_at = weights(Module, callback, logger=logger)
    assert same_weights(plain, looked_at)
    assert looked_at.count == 4
    hooks = [sum(len(part._forward_hooks) for part in module.modules()) for module in (plain, looked_at)]
    assert hooks[0] == hooks[1] > 0
    assert len(logger.steps("gradcam/strength")) == 3


def broadcast():
    return np.broadcast_to(np.float32(0.3), (3,))


def mapped(mode):
    np.lib.format.open_memmap("table.npy", "w+", np.uint8, (1 << 24,))
    return np.load("table.npy", mmap_mode=mode)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(
    "value",
    [
        broadcast,
        partial(mapped, "r"),
        partial(mapped, "r+"),
        partial(torch.empty, 3, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.eye(3).to_sparse(),
    ],
)
def test_values_that_cannot_be_compared_copied_or_written(value):
    class Module(TinyModule):
        def __init__(self):
            super().__init__()
            self.value = value()

    (_, plain), (_, looked_at) = with_and_without(Module)
    assert same_weights(plain, looked_at)


def counting_hook():
    calls = 0

    def hook(module, args, output):
        nonlocal calls
        calls += 1
        return output * (1 + calls / 100)

    return hook


def noisy_hook():
    generator = torch.Generator().manual_seed(3)
    return lambda module, args, output: output + torch.rand(1, generator=generator)


def remembering_hook():
    seen = []

    def hook(module, args, output):
        seen.append(output.mean().item())
        return output + seen[0]

    return hook


@pytest.mark.parametrize("hook", [counting_hook, noisy_hook, remembering_hook])
def test_hooks_of_the_users_with_a_state(hook):
    class Module(TinyModule):
        def __init__(self):
            super().__init__()
            self.net[4].register_forward_hook(hook())

    (_, plain), (_, looked_at) = with_and_without(Module)
    assert same_weights(plain, looked_at)


class Queue(TinyModule):
    """Writes what it has seen to a queue that is too large to be copied for nothing, as contrastive learning does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.zeros(3, 1 << 21))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, images):
        scores = super().forward(images)
        start = int(self.place)
        self.queue[:, start : start + len(scores)] = scores.detach().T
        self.place[0] = start + len(scores)
        return scores + self.queue[:, :64].mean(1)


class Normalizing(TinyModule):
    """Keeps its weights on a sphere, in its forward."""

    def forward(self, images):
        with torch.no_grad():
            self.net[8].weight.div_(self.net[8].weight.norm())
            self.net[0].weight.data = self.net[0].weight.data.clamp(-0.2, 0.2)
        return super().forward(images)


@pytest.mark.parametrize("layer", [None, "net.4"])
@pytest.mark.parametrize("module", [Queue, Normalizing])
def test_a_forward_that_writes_to_large_state_or_to_parameters(module, layer):
    (_, plain), (_, looked_at) = with_and_without(module, GradCAMCallback(layer, samples=3))
    assert same_weights(plain, looked_at)


def test_what_a_forward_reads_of_the_trainer_is_what_it_is_now():
    read = []

    class Module(TinyModule):
        def forward(self, images):
            if not self.training:
                read.append((self.trainer.current_epoch, self.trainer.validating, self.trainer.accumulate_grad_batches))
            return super().forward(images)

    class Schedule(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.accumulate_grad_batches = 1 + trainer.current_epoch

    def forward_fn(module, batch):
        read.clear()
        return module(batch.images)

    callback = GradCAMCallback("net.4", samples=3, forward_fn=forward_fn)
    weights(Module, callback, Schedule(), max_epochs=3)
    assert read == [(2, True, 3)]


def test_gradcam_within_a_run_logs_nothing():
    class Module(TinyModule):
        def forward(self, images):
            scores = super().forward(images)
            if not self.training:
                self.log("norm", scores.norm())
            return scores

        def validation_step(self, batch, batch_idx):
            self(batch[0])
            if self.looks:
                gradcam(self, 100 * batch[0], "net.4", target=0)

    norms = []
    for looks in (False, True):
        Module.looks = looks
        norms.append(weights(Module)[0].callback_metrics["norm"])
    assert norms[0] == norms[1]


HEAD = []


class ByGlobal(TinyModule):
    def __init__(self):
        super().__init__()
        HEAD[:] = [self.net[8]]

    def forward(self, images):
        return HEAD[0](self.net[:8](images))


def test_a_model_that_cannot_be_stood_in_for_is_told_once_and_trained():
    with pytest.warns(UserWarning, match="cannot look at this model; training goes on without maps") as caught:
        (_, plain), (run, looked_at) = with_and_without(ByGlobal, logger=Recorder())
    assert len([one for one in caught if "stand-in" in str(one.message)]) == 1
    assert same_weights(plain, looked_at)
    assert run.logger.steps("gradcam/strength") == []
    assert run.current_epoch == 2


def test_it_is_an_error_where_errors_are_asked_for():
    with pytest.raises(ValueError, match="the forward calls a Linear of the model by a way that leads past"):
        weights(ByGlobal, GradCAMCallback(samples=3, on_error="raise"))


class Annealing(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.tau = 1.0 + trainer.current_epoch


class Pruning(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            nn.utils.prune.l1_unstructured(pl_module.net[4], "weight", 0.9)


class Assigning(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            torch.manual_seed(3)
            pl_module.load_state_dict(TinyModule().state_dict(), assign=True)
            trainer.strategy.setup_optimizers(trainer)


class Scripting(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        pl_module.net[8] = torch.jit.script(pl_module.net[8])


class ByHand(pl.Callback):
    """What a fresh look gives at the end of the run."""

    def on_train_end(self, trainer, pl_module):
        self.strength = gradcam(pl_module, loader().dataset[0][0][None], "net.4", 1).sum().item()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [Annealing, Pruning, Assigning, Scripting])
def test_changes_in_mid_run_are_seen(change):
    class Module(TinyModule):
        tau = 1.0

        def forward(self, images):
            return super().forward(images) * self.tau

    by_hand, logger = ByHand(), Recorder()
    callbacks = GradCAMCallback("net.4", samples=1, target=1), change(), by_hand
    trainer(*callbacks, logger=logger, max_epochs=3).fit(Module(), loader(), loader())
    assert logger.values("gradcam/strength")[-1] == pytest.approx(by_hand.strength, rel=1e-4, abs=1e-7)


def test_no_stand_in_is_kept_after_a_run():
    callback, module = GradCAMCallback(samples=3), TinyModule()
    trainer(callback, max_epochs=1).fit(module, loader(), loader())
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is StandIn and one._model is module]
    assert callback.state_dict()


def test_images_and_shifted_images_go_through_a_model_at_once_where_that_is_the_same():
    sizes = {"plain": [], "counts": []}

    class Counts(TinyModule):
        """Its scores depend on how many samples there are."""

        def forward(self, images):
            return super().forward(images) * len(images)

    for name, module in (("plain", TinyModule()), ("counts", Counts())):

        def forward(module, batch, name=name):
            sizes[name].append(len(batch.images))
            return module(batch.images)

        fit(GradCAMCallback("net.4", samples=3, forward_fn=forward), module, max_epochs=1, num_sanity_val_steps=0)
    assert sizes == {"plain": [2, 3, 3, 6, 6], "counts": [2, 3, 3, 6, 3, 3]}


def test_what_was_seen_goes_to_other_processes_whatever_the_users_functions_are(monkeypatch):
    sent = []

    def broadcast(self, seen, src=0):
        sent.append(pickle.dumps(seen))
        return seen

    monkeypatch.setattr(pl.strategies.SingleDeviceStrategy, "broadcast", broadcast)
    grid, target = lambda output: output, lambda output, batch: output[:, 0]
    fit(GradCAMCallback("net.4", samples=3, grid=grid, target=target), max_epochs=1)
    assert len(sent) >= 3
