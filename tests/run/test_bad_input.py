"""Mistakes in arguments, data and models: errors in words, before the first training step."""

import pytest
import pytorch_lightning as pl
from pytorch_lightning.strategies import SingleDeviceStrategy
from tiny import Images, TinyModule, loader, pictures, trainer
from torch import nn

from lightning_gradcam import Batch, Display, GradCAMCallback


class NoForward(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = TinyModule().net

    def training_step(self, batch, batch_idx):
        return self.model(batch[0]).sum()

    def validation_step(self, batch, batch_idx):
        pass

    configure_optimizers = TinyModule.configure_optimizers


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_epochs": 0}, ValueError, "`every_n_epochs` must be a whole number of at least 1, got 0"),
        ({"every_n_epochs": 1.5}, ValueError, "`every_n_epochs` must be a whole number of at least 1, got 1.5"),
        ({"prefix": ""}, ValueError, "`prefix` must be up to 64 letters, digits, .* got ''"),
        ({"prefix": 3}, ValueError, "`prefix` must be up to 64 letters, digits, .* got 3"),
        ({"every_n_epochs": True}, ValueError, "`every_n_epochs` must be a whole number of at least 1, got True"),
        ({"batch_fn": 3}, TypeError, "`batch_fn` must be a function, got int"),
        ({"forward_fn": None}, TypeError, "`forward_fn` must be a function, got NoneType"),
        ({"display": {}}, TypeError, "`display` must be a `Display`, got dict"),
        ({"prefix": "a/b"}, ValueError, "`prefix` must be up to 64 letters, digits, .* got 'a/b'"),
        ({"samples": 0}, ValueError, "`samples` must be at least 1, got 0"),
        ({"target": "class"}, ValueError, "`target` must be one of"),
        ({"method": "camera"}, ValueError, "`method` must be one of"),
        ({"grid": (4, 4)}, ValueError, "`grid` says how the output of a named layer lies; give `target_layer` as well"),
        ({"target_layer": "net.4", "grid": 4}, ValueError, r"`grid` must be \(h, w\) in cells, .* or a function"),
        ({"target_layer": 4}, TypeError, "`target_layer` must be a name, a module or a sequence of these, got 4"),
    ],
)
def test_errors_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        GradCAMCallback(**arguments)


@pytest.mark.parametrize("sanity_steps", [0, 2])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_layer": "net.layer4"}, "`target_layer` 'net.layer4' is not a layer of TinyModule; the closest names"),
        ({"target_layer": nn.ReLU()}, "`target_layer` ReLU is not a part of TinyModule"),
        ({"target_layer": "spare"}, "`target_layer` 'spare' was not reached by the forward pass"),
        ({"target_layer": "net.6"}, r"`target_layer` 'net.6' hands out \(4, 8, 1, 1\); expected maps or tokens of 4"),
        ({"target_layer": "net.8"}, r"`target_layer` 'net.8' hands out \(4, 3\); expected maps or tokens of 4"),
        ({"target_layer": "net.4", "grid": (4, 4)}, r"`grid` \(4, 4\) does not fit the layer's output \(4, 8, 8, 8\)"),
        ({"batch_fn": lambda batch: Batch(batch[0], batch[1] + 3)}, "label 3 is outside the model's 3 classes, 0 to 2"),
        ({"target": 3}, "`target` 3 is outside the model's 3 classes"),
        ({"samples": [0, 24]}, r"`samples` names the indices \[24\], the dataset has 24 samples, 0 to 23"),
        ({"display": Display(mean=[0, 0], std=[1, 1])}, "`mean` has 2 values, the images have 3 channels"),
    ],
)
def test_errors_before_the_first_training_step(arguments, message, sanity_steps):
    module = TinyModule()
    module.spare = nn.Conv2d(3, 3, 1)
    module.training_step = lambda *args: pytest.fail("training began")
    callback = GradCAMCallback(**{"samples": 4, **arguments})
    with pytest.raises(ValueError, match=message):
        trainer(callback, num_sanity_val_steps=sanity_steps).fit(module, loader(), loader())


def test_batch_that_cannot_be_read():
    class Flat(Images):
        def __getitem__(self, index):  # type: ignore[reportIncompatibleMethodOverride]
            image, label = super().__getitem__(index)
            return image.flatten(), label

    module = TinyModule()
    module.validation_step = lambda batch, batch_idx: None
    with pytest.raises(ValueError, match=r"cannot read the batch \[tensor \(16, 768\).*, tensor .*\].*pass `batch_fn="):
        trainer(GradCAMCallback()).fit(module, loader(), loader(Flat()))


def test_module_without_forward():
    with pytest.raises(
        ValueError, match=r"NoForward defines no `forward`.*pass `forward_fn=lambda module, batch: module.model\(batch"
    ):
        trainer(GradCAMCallback()).fit(NoForward(), loader(), loader())
    module = NoForward()
    callback = GradCAMCallback(forward_fn=lambda module, batch: module.model(batch.images))
    trainer(callback).fit(module, loader(), loader())
    assert len(pictures()["gradcam-grid"]) == 3


class FSDPStrategy(SingleDeviceStrategy):
    """By this name; Lightning's own cannot be made without a GPU."""


class DeepSpeedStrategy(SingleDeviceStrategy):
    zero_stage_3 = True


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FSDPStrategy, "FSDPStrategy joins a module's parameters in its own steps only.*give the trainer `ModelParal"),
        (DeepSpeedStrategy, "DeepSpeedStrategy of stage 3 splits the parameters.*give the trainer stage 1 or 2"),
    ],
)
def test_strategies_that_leave_no_model_to_run(strategy, message):
    module = TinyModule()
    module.on_fit_start = lambda: pytest.fail("the fit began")
    with pytest.raises(ValueError, match=message):
        trainer(GradCAMCallback(), strategy=strategy("cpu")).fit(module, loader(), loader())


def test_a_process_whose_capture_fails_is_agreed_upon_before_any_exchange():
    exchanged = []

    class Watched(SingleDeviceStrategy):
        def reduce_boolean_decision(self, decision, all=True):  # noqa: A002
            exchanged.append(decision)
            return decision

        def broadcast(self, obj, src=0):
            exchanged.append(type(obj).__name__)
            return obj

    with pytest.raises(ValueError, match="is outside the model's 3 classes"):
        trainer(GradCAMCallback(target=7), strategy=Watched("cpu")).fit(TinyModule(), loader(), loader())
    assert exchanged[-1] is False


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_a_mistake_does_not_cost_the_results_of_a_test(verb):
    module = TinyModule()
    module.validation_step = module.test_step = lambda *args: pytest.fail("the loop began")
    with pytest.raises(ValueError, match="'nope' is not a layer"):
        getattr(trainer(GradCAMCallback("nope")), verb)(module, loader())
