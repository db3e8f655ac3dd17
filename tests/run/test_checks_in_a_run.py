"""The checks of a run's last maps: what they say, when they are made, what they leave out and what alone."""

import logging

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import Augmented, Evident, Recorder, TinyModule, Traced, different, early_stop, loader, outcome, trainer
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_gradcam import Batch, GradCAMCallback, Record, TopTarget, gradcam
from lightning_gradcam.metrics.drift import similarity
from lightning_gradcam.metrics.faithfulness import deletion, insertion
from lightning_gradcam.metrics.randomization import randomization

AREAS = {"insertion", "deletion", "insertion_random", "deletion_random"}
CHECKS = AREAS | {"randomization_drift"}


def checked(callback, module=None, *others, **options):
    """Train, and the logger that was told."""
    logger = Recorder()
    run = trainer(callback, *others, logger=logger, **{"max_epochs": 1} | options)
    run.fit(module or TinyModule(), loader(), loader())
    return logger


def numbers(logger):
    """What was logged last, by the end of its key."""
    return {key.removeprefix("gradcam/"): one for _, metrics in logger.scalars for key, one in metrics.items()}


def noise(maps):
    return torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))


# What they say


@pytest.mark.parametrize(
    ("target", "layer", "first_above"),
    [("label", "net.4", "net.8"), ("predicted", "net.0", "net.1"), (1, "net.5", "net.8")],
)
def test_numbers_are_those_of_the_functions_by_hand(target, layer, first_above):
    module, callback = TinyModule(), GradCAMCallback(layer, samples=5, target=target, checks=True)
    module.net[8].weight.data.mul_(50)  # so that pixels matter
    found = numbers(checked(callback, module, max_epochs=2))
    batch = callback._session.probe.batch
    maps = gradcam(module, batch.images, layer, target, labels=batch.labels)
    shown = maps.relu().flatten(1).any(1)
    for key, area in (("insertion", insertion), ("deletion", deletion)):
        by_map, by_chance = (area(module, batch, one, target)[shown].mean().item() for one in (maps, noise(maps)))
        assert found[key] == pytest.approx(by_map, rel=1e-5)
        assert found[f"{key}_random"] == pytest.approx(by_chance, rel=1e-5)
        assert by_map != pytest.approx(by_chance, rel=1e-3)
    # The cascade draws from the output on, so once it has drawn the first module after the layer all of them are drawn.
    likeness = randomization(module, batch, layer, target, compare=similarity)[first_above]
    assert found["randomization_drift"] == pytest.approx(1 - likeness.nanquantile(0.5).item(), abs=1e-5)
    assert found["checks_seconds"] > 0


def test_each_layer_and_each_group_has_its_own():
    def grouped(batch):
        return Batch(*batch, groups=["one", "two"] * 3)

    callback = GradCAMCallback(["net.0", "net.4"], samples=6, batch_fn=grouped, checks=True)
    found = numbers(checked(callback))
    for layer in ("0", "4"):
        for suffix in ("", "/one", "/two"):
            assert {f"gradcam_{layer}/{key}{suffix}" for key in CHECKS} <= found.keys()
        halves = [found[f"gradcam_{layer}/insertion/{name}"] for name in ("one", "two")]
        assert found[f"gradcam_{layer}/insertion"] == pytest.approx(np.mean(halves), abs=0.1)


def test_short_memory_is_met_in_chunks():
    class Narrow(TinyModule):
        most = 99

        def forward(self, images):
            if not self.training and len(images) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(images)

    found = []
    for most in (99, 3):
        torch.manual_seed(0)
        module = Narrow()
        module.validation_step = lambda batch, batch_idx: None
        module.most = most
        found.append(numbers(checked(GradCAMCallback("net.4", samples=8, checks=True), module)))
    for key in CHECKS:
        assert found[0][key] == pytest.approx(found[1][key], abs=1e-5)


# When


class Stop(Callback):
    """Ends the run after an epoch, behind the back of those that had their turn."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_validation_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == self.epoch


@pytest.mark.parametrize("known", [True, False])
def test_made_once_at_the_last_observation_and_kept_in_its_record(known):
    callback = GradCAMCallback("net.5", samples=4, checks=True)
    logger = checked(callback, Evident(), *([] if known else [Stop(2)]), max_epochs=3 if known else 9)
    for key in (*CHECKS, "checks_seconds"):
        assert logger.steps(f"gradcam/{key}") == [8]
    *before, last = Record.open("recorder/version_0/gradcam").table()
    assert len(before) == 3
    assert not any(f"gradcam/{key}" in row for key in CHECKS for row in before)
    assert {last[f"gradcam/{key}"] for key in CHECKS} == {logger.values(f"gradcam/{key}")[0] for key in CHECKS}
    assert last["epoch"] == 2
    assert last["gradcam/drift"] == logger.values("gradcam/drift")[-1]


def test_only_in_fit_and_only_where_asked_for():
    run = trainer(GradCAMCallback(samples=2, checks=True), logger=(logger := Recorder()))
    run.validate(TinyModule(), loader())
    run.test(TinyModule(), loader())
    assert logger.steps("gradcam/strength")
    assert not logger.steps("gradcam/insertion")
    assert not CHECKS & numbers(checked(GradCAMCallback(samples=2))).keys()
    with pytest.raises(TypeError, match="`checks` must be True or False, got int"):
        GradCAMCallback(checks=1)


def test_monitors_and_checkpoints_are_as_without():
    found = []
    for checks in (False, True):
        torch.manual_seed(0)
        save = ModelCheckpoint("saved", "{epoch}-{gradcam/drift:.3f}", "gradcam/strength", save_top_k=1)
        callback = GradCAMCallback("net.4", samples=4, checks=checks, record=False)
        run = trainer(callback, save, early_stop(), max_epochs=5, enable_checkpointing=True)
        run.fit(TinyModule(), loader(), loader())
        history = callback.state_dict()["history"]
        found.append((save.best_model_score, run.current_epoch, history["monitored"].keys()))
    assert found[0] == found[1]


# What fails or cannot be known


def test_a_failure_is_a_warning_and_loses_nothing_else(monkeypatch, drawn):
    monkeypatch.setattr("lightning_gradcam.run.checks.area_under_curve", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="the check of `insertion` and `deletion` of `net.5` in epoch 0.*failed.*Zero"):
        logger = checked(GradCAMCallback(samples=2, checks=True))
    assert logger.steps("gradcam/strength") == [0, 2]
    assert logger.steps("gradcam/randomization_drift") == logger.steps("gradcam/checks_seconds") == [2]
    assert [step for key, step, _ in drawn if key == "gradcam/filmstrip"] == [0, 2]
    assert len(Record.open("recorder/version_0/gradcam").epochs) == 2
    assert not logger.steps("gradcam/failures")
    with pytest.raises(ZeroDivisionError):
        checked(GradCAMCallback(samples=2, checks=True, on_error="raise"))


class OwnClass(nn.Parameter):
    """As libraries of quantized or sharded weights have them."""


def constant(module, batch):
    return module(batch.inputs)


@pytest.mark.parametrize(
    ("arguments", "change", "left", "said"),
    [
        ({"target": TopTarget(2)}, None, {"randomization_drift"}, "the target gives 2 scores a sample"),
        ({"target": lambda output, batch: output[:, 0]}, None, {"randomization_drift"}, "no probability of a class"),
        (
            {"method": lambda activations, gradients: -activations.abs().sum(1)},
            None,
            set(),
            "no map has a positive cell both",
        ),
        ({}, "nothing above", AREAS, "no module with weights to draw is called after it alone"),
        ({}, "own class", AREAS, "weights after it are of a class of their own"),
        (
            {"forward_fn": constant, "batch_fn": lambda batch: Batch(*batch, inputs=batch[0])},
            None,
            {"randomization_drift"},
            "the model says the same of images without pixels",
        ),
    ],
)
def test_what_cannot_be_known_is_left_out_and_said_once(arguments, change, left, said, caplog):
    module = TinyModule()
    if change == "own class":
        module.net[8].weight = OwnClass(module.net[8].weight.detach())
    if change == "nothing above":
        module.net[4], module.net[8] = nn.Conv2d(8, 3, 3), nn.Identity()
    with caplog.at_level(logging.INFO):
        found = numbers(
            checked(GradCAMCallback(**{"target_layer": "net.4", "samples": 4, "checks": True} | arguments), module)
        )
    assert CHECKS & found.keys() == left
    assert caplog.text.count(said) == 1


# What they leave alone


class Kind(Traced):
    def __init__(self, kind):
        super().__init__()
        if kind == "frozen":
            self.net[4:].requires_grad_(False)
        elif kind == "weight norm":
            self.net[8] = weight_norm(self.net[8])
            self.net[4] = weight_norm(self.net[4])
        elif kind == "tied":
            self.net.insert(5, nn.Conv2d(8, 8, 3, 1, 1))
            self.net[5].weight = self.net[4].weight
            self.net.append(nn.Linear(3, 3))
            self.net.append(nn.Linear(3, 3))
            self.net[-1].weight = self.net[-2].weight
        elif kind == "norm and dropout above":
            self.net.insert(5, nn.BatchNorm2d(8))
            self.net.insert(9, nn.Dropout(0.5))
        elif kind == "LSTM":
            self.net[8] = Recurrent()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, 2, batch_first=True, dropout=0.5), nn.Linear(8, 3)

    def forward(self, features):
        return self.head(self.lstm(features[:, None])[0][:, 0])


@pytest.mark.parametrize("kind", ["frozen", "weight norm", "tied", "norm and dropout above", "LSTM"])
def test_a_run_ends_bit_identical(kind):
    def run(*callbacks):
        options = {"max_epochs": 2, "num_sanity_val_steps": 0}
        return outcome(lambda: Kind(kind), callbacks, Augmented(), Augmented(), options, {})

    without = run()
    callback = GradCAMCallback("net.4", samples=5, checks=True, on_error="raise")
    found = run(callback)
    assert different(found, without) == set()
    values = Record.open("gradcam").numbers[-1]
    assert 0 < values["gradcam/randomization_drift"] <= 1
    assert values["gradcam/insertion"] > 0


def test_weights_averaged_at_the_end_are_told_of(caplog):
    class Average(Callback):
        def on_train_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.net[4].weight.copy_(torch.randn_like(pl_module.net[4].weight))

    for others, times in (([], 0), ([Stop(1)], 1)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            callback = GradCAMCallback("net.4", samples=4, checks=True, record=f"record{times}")
            run = trainer(Average(), callback, *others, max_epochs=2 + times)
            run.fit(TinyModule(), loader(), loader())
        assert caplog.text.count("checks the model as it is now, which is no longer that of the last look") == times
        assert ("gradcam/insertion" in Record.open(f"record{times}").numbers[-1]) == (not times)
