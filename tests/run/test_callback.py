"""When the callback looks, and what loggers receive."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tiny import Images, Recorder, TinyModule, early_stop, fit, loader, pictures, trainer
from torch import nn

from lightning_gradcam import Display, GradCAMCallback, Record, gradcam
from lightning_gradcam.metrics.evidence import empty, strength
from lightning_gradcam.run.probe import layer_prefixes

BATCHES = 3  # of 8 in 24 images
KINDS = ("grid", "filmstrip", "positional_bias_map")  # of pictures


def test_one_grid_and_one_set_of_numbers_an_epoch_at_the_step_of_its_metrics():
    _, logger = fit(max_epochs=3)
    steps = [0, *logger.steps("val_loss")]
    assert pictures() == {f"gradcam-{kind}": steps for kind in KINDS}
    assert len(logger.steps("val_loss")) == 3
    for key in ("strength", "empty_fraction", "seconds"):
        assert logger.steps(f"gradcam/{key}") == [0, *logger.steps("val_loss")]


def test_numbers_are_those_of_the_final_model():
    run, logger = fit()
    indices = [0, 6, 12, 18]
    images, labels = Images().images[indices], Images().labels[indices]
    signed = gradcam(
        run.lightning_module, images, "net.5", target=lambda output, batch: output[range(len(labels)), labels]
    )
    expected = strength(signed).quantile(0.5).item()
    assert logger.values("gradcam/strength")[-1] == pytest.approx(expected, rel=1e-4)
    assert logger.values("gradcam/empty_fraction")[-1] == empty(signed).float().mean()
    assert run.callback_metrics["gradcam/strength"] == logger.values("gradcam/strength")[-1]


def test_strength_only_for_signed_methods():
    _, logger = fit(GradCAMCallback(samples=2, method="layercam"))
    assert logger.steps("gradcam/strength") == []
    assert len(logger.steps("gradcam/empty_fraction")) == 3


def test_every_n_epochs_and_the_last_state_always():
    _, logger = fit(GradCAMCallback(samples=2, every_n_epochs=2), max_epochs=5)
    epochs = logger.steps("val_loss")
    assert logger.steps("gradcam/strength") == [0, epochs[1], epochs[3], epochs[4]]


def test_several_validations_an_epoch():
    _, logger = fit(val_check_interval=1, max_epochs=2)
    assert len(logger.steps("val_loss")) == 2 * BATCHES
    assert logger.steps("gradcam/strength") == [0, *logger.steps("val_loss")]


def test_without_validation():
    _, logger = fit(val=False, max_epochs=2)
    assert logger.steps("gradcam/strength") == [0, BATCHES - 1, 2 * BATCHES - 1]
    assert pictures()["gradcam-grid"] == [0, BATCHES - 1, 2 * BATCHES - 1]


def test_epochs_without_validation():
    _, logger = fit(check_val_every_n_epoch=2, max_epochs=3)
    assert len(logger.steps("val_loss")) == 1
    assert len(logger.steps("gradcam/strength")) == 4


def test_a_run_that_ends_in_mid_epoch():
    run, logger = fit(GradCAMCallback(samples=2, every_n_epochs=10), max_epochs=-1, max_steps=4)
    assert run.global_step == 4
    assert logger.steps("gradcam/strength") == [0, 3]


def test_a_run_that_another_callback_ends():
    callback = GradCAMCallback(samples=2, every_n_epochs=10)
    stop = early_stop()
    logger = Recorder()
    run = trainer(callback, stop, max_epochs=9, logger=logger)
    run.fit(TinyModule(), loader(), loader())
    assert run.current_epoch == 2
    assert logger.steps("gradcam/strength") == [0, 2 * BATCHES - 1]


def test_sanity_check_runs_everything_and_logs_nothing():
    calls = []

    def forward(module, batch):
        calls.append(len(batch.images))
        return module(batch.images)

    callback, logger = GradCAMCallback("net.4", samples=2, forward_fn=forward), Recorder()
    trainer(callback, logger=logger, max_epochs=1).fit(TinyModule(), loader(), loader())
    # In the sanity check two to see what comes out, the images, the shifted ones, and both at once; then both at once.
    assert calls == [2, 2, 2, 4, 4, 4]
    assert len(logger.steps("gradcam/strength")) == 2


def test_validate_and_test_after_fit():
    run, logger = fit(max_epochs=1)
    run.validate(run.lightning_module, loader(), verbose=False)
    run.test(run.lightning_module, loader(Images(6)), verbose=False)
    last = logger.values("gradcam/strength")[-1]
    assert logger.steps("gradcam/strength") == [0, BATCHES - 1, BATCHES, BATCHES]
    assert logger.values("gradcam/strength") == [logger.values("gradcam/strength")[0], last, last, last]


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("verb", ["validate", "test"])
def test_validate_and_test_alone(verb, inference_mode):
    callback, logger = GradCAMCallback(samples=4), Recorder()
    run = trainer(callback, logger=logger, inference_mode=inference_mode)
    getattr(run, verb)(TinyModule(), loader(), verbose=False)
    assert logger.steps("gradcam/strength") == [0]


def test_fast_dev_run_leaves_nothing_on_disk():
    calls = []

    def forward(module, batch):
        calls.append(1)
        return module(batch.images)

    trainer(GradCAMCallback(forward_fn=forward, target_layer="net.4"), fast_dev_run=True, logger=True).fit(
        TinyModule(), loader(), loader()
    )
    assert len(calls) == 1 + 3 + 1
    assert list(Path().iterdir()) == []


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning")
def test_overfit_batches():
    _, logger = fit(overfit_batches=1)
    assert len(logger.steps("gradcam/strength")) == 3


def test_two_fits_with_one_callback():
    callback = GradCAMCallback(samples=2)
    fit(callback)
    first = callback._session.probe
    trainer(callback).fit(TinyModule(), loader(), loader(Images(12)))
    assert callback._session.probe.fingerprint.identity != first.fingerprint.identity


def test_more_samples_than_there_are_and_one_sample():
    callback = GradCAMCallback(samples=100)
    fit(callback)
    assert len(callback._session.probe.batch.images) == 24
    callback = GradCAMCallback(samples=1)
    fit(callback)
    assert callback._session.probe.batch.images.shape == (1, 3, 16, 16)


def test_one_channel_images():
    callback = GradCAMCallback(samples=2)
    trainer(callback).fit(TinyModule(1), loader(Images(channels=1)), loader(Images(channels=1)))
    assert callback._session.probe.photos.shape == (2, 16, 16)
    assert len(pictures()["gradcam-grid"]) == 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    _, logger = fit(precision=precision)
    assert len(logger.steps("gradcam/strength")) == 3
    assert all(isinstance(value, float) for value in logger.values("gradcam/strength"))


def test_bf16_mixed_runs_the_capture_in_autocast():
    dtypes = []

    def forward(module, batch):
        output = module(batch.images)
        dtypes.append(output.dtype)
        return output

    fit(GradCAMCallback("net.4", samples=2, forward_fn=forward), precision="bf16-mixed")
    assert set(dtypes) == {torch.bfloat16}


def test_frozen_module():
    module = TinyModule()
    module.net[:8].requires_grad_(False)
    _, logger = fit(module=module)
    assert len(logger.steps("gradcam/strength")) == 3


def test_several_layers():
    _, logger = fit(GradCAMCallback(["net.4", "net[0]"], samples=2))
    assert len(logger.steps("gradcam_4/strength")) == len(logger.steps("gradcam_0/strength")) == 3
    assert len(logger.steps("gradcam/seconds")) == 3
    assert set(pictures()) == {f"gradcam_{layer}-{kind}" for layer in (0, 4) for kind in KINDS}


def test_layer_prefixes_keep_what_tells_them_apart():
    assert layer_prefixes("cam", ["model.layer4"]) == {"cam": "model.layer4"}
    assert layer_prefixes("cam", ["model.layer3", "model.layer4.0.conv1"]) == {
        "cam_layer3": "model.layer3",
        "cam_layer4.0.conv1": "model.layer4.0.conv1",
    }
    assert layer_prefixes("cam", ["model", "model.layer4"]) == {
        "cam_model": "model",
        "cam_model.layer4": "model.layer4",
    }


def test_the_automatic_layer_is_named_in_the_log(caplog):
    caplog.set_level(logging.INFO)
    fit()
    message = (
        "GradCAMCallback looks at `net.5`: 8 x 8 cells, the last layer that all paths from the image to the score "
        "cross. Give `target_layer` to look at another layer."
    )
    assert caplog.text.count(message) == 1


def test_class_names_and_normalization_are_found():
    from torchvision.transforms import v2

    dataset = Images()
    dataset.transform = v2.Compose([v2.Normalize([0.5] * 3, [0.25] * 3)])
    callback = GradCAMCallback(samples=2)
    trainer(callback).fit(TinyModule(), loader(dataset), loader(torch.utils.data.Subset(dataset, range(12))))
    assert callback._session.probe.class_names == ["ant", "bee", "crab"]
    expected = (dataset.images[[0, 6]] * 0.25 + 0.5) * torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    torch.testing.assert_close(callback._session.probe.photos, expected.sum(1))
    callback = GradCAMCallback(samples=2, display=Display(mean=0, std=1, class_names=["x", "y", "z"]))
    trainer(callback).fit(TinyModule(), loader(dataset), loader(dataset))
    assert callback._session.probe.class_names == ["x", "y", "z"]


def test_letters_that_the_font_lacks_are_named():
    with pytest.warns(UserWarning, match=r"the font has no glyph for '蟻' in the class names; give `Display\(font="):
        fit(GradCAMCallback(samples=1, display=Display(class_names=["蟻", "é", "ß"])))


class LogsInForward(TinyModule):
    def forward(self, images):
        output = super().forward(images)
        self.log("mean", output.mean(), on_step=self.training, on_epoch=True)
        return output


def test_logging_in_the_forward_is_not_falsified():
    values = []
    for callbacks in ([], [GradCAMCallback(samples=2)]):
        pl.seed_everything(1, verbose=False)
        run = trainer(*callbacks)
        run.fit(LogsInForward(), loader(), loader())
        values.append({key: value for key, value in run.callback_metrics.items() if "gradcam" not in key})
    assert values[0] == values[1]


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning")
def test_layers_without_a_shape_are_looked_at_later(caplog):
    module = TinyModule()
    module.net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    logger = Recorder()
    caplog.set_level(logging.INFO)
    run = trainer(GradCAMCallback(samples=2), logger=logger, num_sanity_val_steps=0)
    module.configure_optimizers = lambda: None
    module.training_step = lambda batch, batch_idx: module(batch[0]).sum()
    run.fit(module, loader(), loader())
    assert "takes its first look later: the model has layers without a shape" in caplog.text
    assert len(logger.steps("gradcam/strength")) == 2


def test_arguments_are_read_of_the_callback_and_stay():
    callback = GradCAMCallback(samples=3, prefix="cam")
    assert (callback.samples, callback.prefix, callback.settings.samples) == (3, "cam", 3)
    with pytest.raises(AttributeError, match="`samples` is given to the constructor and stays; make another callback"):
        callback.samples = 4
    with pytest.raises(AttributeError, match="'GradCAMCallback' object has no attribute 'sample'"):
        callback.sample  # noqa: B018


class Bank(TinyModule):
    """Compares with a memory bank that its first validation fills."""

    bank = None

    def forward(self, images):
        if self.bank is None:
            raise RuntimeError("the bank is empty")
        return -torch.cdist(self.net[:6](images).mean((2, 3)), self.bank)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).mean()

    def on_validation_epoch_start(self):
        if not self.trainer.sanity_checking:
            self.bank = torch.rand(3, 8)


def test_a_first_look_that_comes_too_early_is_taken_again():
    with pytest.warns(UserWarning, match="cannot look at the model yet, since its forward failed.*the bank is empty"):
        _, logger = fit(GradCAMCallback("net.5", samples=2, target=0), module=Bank(), num_sanity_val_steps=0)
    assert logger.steps("gradcam/empty_fraction") == [2, 5]  # of both epochs, and not before training


def test_where_no_epoch_is_due_yet_it_is_taken_all_the_same():
    class Never(Bank):
        def on_validation_epoch_start(self):
            pass

        def validation_step(self, batch, batch_idx):
            pass

    callback = GradCAMCallback("net.5", samples=2, target=0, every_n_epochs=5)
    with pytest.warns(UserWarning, match="the bank is empty") as told:
        run, _ = fit(callback, module=Never(), num_sanity_val_steps=0, max_epochs=9)
    first, second = (str(one.message) for one in told if "GradCAMCallback" in str(one.message))
    assert "cannot look at the model yet" in first
    assert "cannot look at this model; training goes on without maps" in second
    assert run.current_epoch == 9  # after some training it is too late for an error


@pytest.mark.parametrize(("options", "val"), [({}, True), ({"num_sanity_val_steps": 0}, False)])
def test_behind_a_validation_and_without_any_a_failing_forward_is_an_error_at_once(options, val):
    class Sane(Bank):
        def validation_step(self, batch, batch_idx):
            pass

    module = Sane()
    module.training_step = lambda *args: pytest.fail("training began")
    with pytest.raises(RuntimeError, match="the bank is empty"):
        fit(GradCAMCallback("net.5", samples=2, target=0), module=module, val=val, **options)


def test_a_mistake_of_ours_is_an_error_at_once_also_without_sanity_check():
    module = TinyModule()
    module.training_step = lambda *args: pytest.fail("training began")
    with pytest.raises(ValueError, match=r"`target_layer` 'net.nope' is not a layer"):
        fit(GradCAMCallback("net.nope", samples=2), module=module, num_sanity_val_steps=0)


class Drawing(nn.Module):
    """Draws random numbers in eval mode as well, from whatever there is to draw them from."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.numpy, self.python = np.random.default_rng(), random.Random()
        self.torch = torch.Generator()
        self.torch.seed()

    def forward(self, features):
        scale = {
            "global": lambda: torch.rand(features.shape),
            "numpy": lambda: torch.tensor(np.random.rand(*features.shape)),
            "python": lambda: torch.tensor([random.random() for _ in range(features.numel())]).view(features.shape),
            "own torch": lambda: torch.rand(features.shape, generator=self.torch),
            "own numpy": lambda: torch.tensor(self.numpy.random(features.shape)),
            "own python": lambda: torch.tensor([self.python.random() for _ in range(features.numel())]).view_as(
                features
            ),
        }[self.source]()
        return features * scale.float()


@pytest.mark.parametrize("source", ["global", "numpy", "python", "own torch", "own numpy", "own python"])
def test_at_unchanged_weights_a_forward_that_draws_random_numbers_gives_the_same_maps(source):
    def run(folder):
        torch.manual_seed(0)
        module = TinyModule()
        module.net[1], module.net[3] = nn.Identity(), Drawing(source)  # the statistics of a norm would move
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.0)
        fit(GradCAMCallback("net.5", samples=4, record=folder), module=module)
        return Record.open(folder).maps["gradcam"]

    first, second = run("first"), run("second")
    assert len(first) == 3
    assert np.array_equal(first, first[:1].repeat(3, 0))
    assert np.array_equal(first, second)
