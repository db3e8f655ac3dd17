"""When the callback looks, what loggers receive, and what is refused before training."""

import logging
import pickle
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.strategies import SingleDeviceStrategy
from tiny import Images, TinyModule, loader, trainer
from torch import nn

from lightning_gradcam import Batch, Display, Drift, GradCAMCallback, SegmentationTarget, gradcam
from lightning_gradcam.metrics.evidence import empty, strength

BATCHES = 3  # of 8 in 24 images


class Recorder(Logger):
    """Keeps what it is given; pictures as a TensorBoard logger would get them."""

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


def pictures(folder="."):
    """Step by key of every JPEG file written below the folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*.jpg")):
        key, step = path.stem.split("-step=")
        with Image.open(path) as picture:
            picture.verify()
        found.setdefault(key, []).append(int(step))
    return found


def fit(callback=None, module=None, val=True, **options):
    callback = callback or GradCAMCallback(samples=4)
    module = module or TinyModule()
    logger = Recorder()
    run = trainer(callback, logger=logger, **options)
    run.fit(module, loader(shuffle=True), loader() if val else None)
    return run, logger


def test_one_grid_and_one_set_of_numbers_an_epoch_at_the_step_of_its_metrics():
    _, logger = fit(max_epochs=3)
    steps = [0, *logger.steps("val_loss")]
    assert pictures() == {"gradcam-grid": steps, "gradcam-filmstrip": steps}
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
    stop = EarlyStopping("val_loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    logger = Recorder()
    run = trainer(callback, stop, max_epochs=9, logger=logger)
    run.fit(TinyModule(), loader(), loader())
    assert run.current_epoch == 2
    assert logger.steps("gradcam/strength") == [0, 2 * BATCHES - 1]


def test_sanity_check_runs_everything_and_logs_nothing():
    calls = []

    def forward(module, batch):
        calls.append(run.sanity_checking)
        return module(batch.images)

    callback, logger = GradCAMCallback("net.4", samples=2, forward_fn=forward), Recorder()
    run = trainer(callback, logger=logger, max_epochs=1)
    run.fit(TinyModule(), loader(), loader())
    # Once to find the layer's grid; then each time also on the shifted images.
    assert calls == [True, True, True, False, False, False, False]
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
    assert len(calls) == 1 + 2 * 2
    assert list(Path().iterdir()) == []


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning")
def test_overfit_batches():
    _, logger = fit(overfit_batches=1)
    assert len(logger.steps("gradcam/strength")) == 3


def test_two_fits_with_one_callback():
    callback = GradCAMCallback(samples=2)
    fit(callback)
    first = callback._probe
    trainer(callback).fit(TinyModule(), loader(), loader(Images(12)))
    assert callback._probe.fingerprint.identity != first.fingerprint.identity


def test_more_samples_than_there_are_and_one_sample():
    callback = GradCAMCallback(samples=100)
    fit(callback)
    assert len(callback._probe.batch.images) == 24
    callback = GradCAMCallback(samples=1)
    fit(callback)
    assert callback._probe.batch.images.shape == (1, 3, 16, 16)


def test_one_channel_images():
    callback = GradCAMCallback(samples=2)
    trainer(callback).fit(TinyModule(1), loader(Images(channels=1)), loader(Images(channels=1)))
    assert callback._probe.photos.shape == (2, 16, 16)
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
    assert set(pictures()) == {f"gradcam_{layer}-{kind}" for layer in (0, 4) for kind in ("grid", "filmstrip")}


def test_layer_prefixes_keep_what_tells_them_apart():
    callback = GradCAMCallback(prefix="cam")
    assert callback._prefixes(["model.layer4"]) == {"cam": "model.layer4"}
    assert callback._prefixes(["model.layer3", "model.layer4.0.conv1"]) == {
        "cam_layer3": "model.layer3",
        "cam_layer4.0.conv1": "model.layer4.0.conv1",
    }
    assert callback._prefixes(["model", "model.layer4"]) == {"cam_model": "model", "cam_model.layer4": "model.layer4"}


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
    assert callback._probe.class_names == ["ant", "bee", "crab"]
    expected = (dataset.images[[0, 6]] * 0.25 + 0.5) * torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    torch.testing.assert_close(callback._probe.photos, expected.sum(1))
    callback = GradCAMCallback(samples=2, display=Display(mean=0, std=1, class_names=["x", "y", "z"]))
    trainer(callback).fit(TinyModule(), loader(dataset), loader(dataset))
    assert callback._probe.class_names == ["x", "y", "z"]


def test_letters_that_the_font_lacks_are_named():
    with pytest.warns(UserWarning, match=r"the font has no glyph for '蟻' in the class names; give `Display\(font="):
        fit(GradCAMCallback(samples=1, display=Display(class_names=["蟻", "é", "ß"])))


# Files


def test_files_lie_in_the_folder_of_the_run():
    run = trainer(GradCAMCallback(samples=1), logger=CSVLogger("logs", name="a", version="b"), max_epochs=1)
    run.fit(TinyModule(), loader(), loader())
    names = sorted(path.name for path in Path("logs/a/b/gradcam").glob("*grid*"))
    assert names == ["gradcam-grid-step=00000000.jpg", "gradcam-grid-step=00000002.jpg"]


def test_runs_without_logger_do_not_share_a_folder():
    for _ in range(2):
        trainer(GradCAMCallback(samples=1), max_epochs=1).fit(TinyModule(), loader(), loader())
    assert sorted(path.name for path in Path().iterdir()) == ["gradcam", "gradcam_1"]


# State


def test_state_is_plain_and_survives_a_resume():
    checkpoint = ModelCheckpoint("checkpoints", save_last=True)
    callback = GradCAMCallback(samples=4)
    run = trainer(callback, checkpoint, max_epochs=1, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    state = torch.load("checkpoints/last.ckpt", weights_only=True)["callbacks"][callback.state_key]
    assert state["fingerprint"] == vars(callback._probe.fingerprint)
    assert state["layers"] == ["net.5"]
    assert set(state["history"]) == {"tracks", "classes", "monitored"}

    logger = Recorder()
    again = trainer(GradCAMCallback(samples=4), checkpoint, max_epochs=2, logger=logger, enable_checkpointing=True)
    again.fit(TinyModule(), loader(), loader(), ckpt_path="checkpoints/last.ckpt")
    assert logger.steps("gradcam/strength") == logger.steps("val_loss")
    assert len(logger.steps("val_loss")) == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [({"samples": 3}, "samples"), ({"samples": 4, "batch_fn": lambda batch: Batch(batch[0] / 2, batch[1])}, "pixels")],
)
def test_a_changed_batch_is_noticed_on_resume(options, what):
    checkpoint = ModelCheckpoint("checkpoints", save_last=True)
    run = trainer(GradCAMCallback(samples=4), checkpoint, max_epochs=1, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    again = trainer(GradCAMCallback(**options), checkpoint, max_epochs=2, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=f"the {what} of the fixed batch are not those of the resumed run"):
        again.fit(TinyModule(), loader(), loader(), ckpt_path="checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"target": 0}, {"target": 1}),
        ({"method": "gradcam"}, {"method": "layercam"}),
        ({}, {"drift": Drift(reference=1)}),
        ({"target": SegmentationTarget(0)}, {"target": SegmentationTarget(1)}),
    ],
)
def test_another_question_is_noticed_on_resume(before, after):
    checkpoint, logger = ModelCheckpoint("checkpoints", save_last=True), Recorder()

    def run(epochs, logger, ckpt_path=None, **options):
        if isinstance(options.get("target"), SegmentationTarget):
            options["forward_fn"] = lambda module, batch: module.net[:6](batch.images)
        callback = GradCAMCallback("net.4", samples=4, **options)
        run = trainer(callback, checkpoint, max_epochs=epochs, logger=logger, enable_checkpointing=True)
        run.fit(TinyModule(), loader(), loader(), ckpt_path=ckpt_path)

    run(1, False, **before)
    with pytest.warns(UserWarning, match="the resumed run asked for .*; drift starts anew"):
        run(2, logger, ckpt_path="checkpoints/last.ckpt", **after)
    assert logger.steps("gradcam/drift") == []


@pytest.mark.parametrize(("before", "after", "steps"), [(1, 2, [11]), (2, 1, [8, 11])])
def test_another_rhythm_goes_on_with_the_same_history(before, after, steps):
    torch.manual_seed(0)
    checkpoint, logger = ModelCheckpoint("checkpoints", save_last=True), Recorder()
    first, second = (GradCAMCallback(samples=4, every_n_epochs=every) for every in (before, after))
    run = trainer(first, checkpoint, max_epochs=2, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    again = trainer(second, checkpoint, max_epochs=4, logger=logger, enable_checkpointing=True)
    again.fit(TinyModule(), loader(), loader(), ckpt_path="checkpoints/last.ckpt")
    assert logger.steps("gradcam/drift") == steps
    reference, earlier = (one._history.tracks["gradcam"].reference for one in (second, first))
    known = ~earlier.isnan()
    assert known.any()
    assert torch.equal(reference[known], earlier[known])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("layout"),
        lambda state: state.update(layout=2, history=[]),
        lambda state: state.pop("failures"),
        lambda state: state.update(fingerprint="x"),
        lambda state: state["history"]["tracks"]["gradcam"].pop("peak"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_in_words_and_the_run_goes_on(spoil):
    checkpoint, logger = ModelCheckpoint("checkpoints", save_last=True), Recorder()
    callback = GradCAMCallback(samples=4)
    run = trainer(callback, checkpoint, max_epochs=1, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    saved = torch.load("checkpoints/last.ckpt", weights_only=True)
    spoil(saved["callbacks"][callback.state_key])
    torch.save(saved, "checkpoints/other.ckpt")
    again = trainer(GradCAMCallback(samples=4), checkpoint, max_epochs=3, logger=logger, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="cannot read its part of the resumed run's checkpoint.*drift starts anew"):
        again.fit(TinyModule(), loader(), loader(), ckpt_path="checkpoints/other.ckpt")
    assert logger.steps("gradcam/strength") == [5, 8]
    assert logger.steps("gradcam/drift") == [8]


class Shift:
    def __call__(self, output, batch):
        return output[:, 0]


@pytest.mark.parametrize(
    ("target", "words"),
    [("label", "label"), (1, "1"), (Shift(), "Shift"), (partial(Shift()), "partial"), (SegmentationTarget(1), None)],
)
def test_a_question_has_the_same_words_in_every_process(target, words):
    words = words or "SegmentationTarget(index=1, region=None)"
    assert GradCAMCallback(target=target)._question == f"target {words} · gradcam"


def test_two_callbacks_in_one_trainer():
    logger = Recorder()
    one, two = GradCAMCallback("net.4", samples=2), GradCAMCallback("net.0", samples=2, prefix="early")
    assert one.state_key != two.state_key
    trainer(one, two, logger=logger).fit(TinyModule(), loader(), loader())
    assert len(logger.steps("gradcam/strength")) == len(logger.steps("early/strength")) == 3


def test_checkpoints_can_monitor_a_key():
    checkpoint = ModelCheckpoint("checkpoints", monitor="gradcam/strength", mode="max")
    callback = GradCAMCallback(samples=2)
    run = trainer(callback, checkpoint, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    assert checkpoint.best_model_score is not None


# Faults after the set-up


def test_a_later_failure_is_a_warning_and_the_run_goes_on():
    calls = []

    def target(output, batch):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("boom")
        return output[:, 0]

    callback = GradCAMCallback("net.4", samples=2, target=target, drift=Drift(noise_floor=False))
    with pytest.warns(UserWarning, match="observation in epoch 0, step 3, failed and is left out.*RuntimeError: boom"):
        run, logger = fit(callback, max_epochs=3)
    assert run.current_epoch == 3
    assert len(logger.steps("gradcam/strength")) == 3


def test_a_picture_that_fails_leaves_the_numbers_and_the_other_loggers(monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    got = []
    sinks = [fail, lambda key, picture, step: got.append(step)]
    monkeypatch.setattr("lightning_gradcam.callback.find_sinks", lambda *args: sinks)
    with pytest.warns(UserWarning, match="a picture in epoch .* failed and is left out.*OSError: disk full"):
        _, logger = fit(GradCAMCallback(samples=2))
    assert got[::2] == got[1::2] == logger.steps("gradcam/strength") == [0, 2, 5]  # grid and filmstrip


def test_a_folder_that_cannot_be_made_is_named_before_training():
    Path("gradcam").mkdir()
    Path("file").touch()
    with pytest.raises(ValueError, match="no logger of the trainer takes pictures, and 'file/gradcam' cannot be made"):
        trainer(GradCAMCallback(samples=2), default_root_dir="file").fit(TinyModule(), loader(), loader())


def test_files_are_never_overwritten():
    callback = GradCAMCallback(samples=2)
    trainer(callback, max_epochs=2, limit_train_batches=1).fit(TinyModule(), loader(), loader())
    assert sorted(path.name for path in Path("gradcam").glob("*grid*")) == [
        "gradcam-grid-step=00000000-1.jpg",
        "gradcam-grid-step=00000000.jpg",
        "gradcam-grid-step=00000001.jpg",
    ]


def test_another_trainer_is_another_run():
    callback = GradCAMCallback(samples=2)
    one = trainer(callback, logger=CSVLogger("logs", name="a", version="one"), max_epochs=1)
    one.fit(TinyModule(), loader(), loader())
    other = trainer(callback, logger=CSVLogger("logs", name="a", version="two"))
    other.test(TinyModule(), loader(Images(10)), verbose=False)
    assert callback._probe.batch.ids == [0, 5]
    assert len(list(Path("logs/a/one/gradcam").glob("*grid*"))) == 2
    assert len(list(Path("logs/a/two/gradcam").glob("*grid*"))) == 1


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_a_mistake_does_not_cost_the_results_of_a_test(verb):
    module = TinyModule()
    module.validation_step = module.test_step = lambda *args: pytest.fail("the loop began")
    with pytest.raises(ValueError, match="'nope' is not a layer"):
        getattr(trainer(GradCAMCallback("nope")), verb)(module, loader())


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


def test_is_picklable_before_and_after_a_run():
    callback = GradCAMCallback("net.4", samples=2, target=1)
    trainer(callback).fit(TinyModule(), loader(), loader())
    again = pickle.loads(pickle.dumps(callback))
    assert again.samples == 2
    assert again.target(torch.tensor([[1.0, 2.0]]), Batch(torch.zeros(1, 3, 2, 2))).tolist() == [2]


# Bad input


class NoForward(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = TinyModule().net

    training_step = TinyModule.training_step
    validation_step = TinyModule.validation_step
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
        ({"target_layer": "net.4", "grid": 4}, ValueError, r"`grid` must be \(h, w\) in cells or a function"),
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
        ({"batch_fn": lambda batch: Batch(batch[0])}, '`target="label"` needs labels and the batch has none'),
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
    class Triples(Images):
        def __getitem__(self, index):  # type: ignore[reportIncompatibleMethodOverride]
            return *super().__getitem__(index), index

    module = TinyModule()
    module.validation_step = lambda batch, batch_idx: None
    with pytest.raises(ValueError, match=r"cannot read the batch \[tensor .*, tensor .*, tensor .*\].*pass `batch_fn="):
        trainer(GradCAMCallback()).fit(module, loader(), loader(Triples()))


def test_module_without_forward():
    with pytest.raises(ValueError, match=r"NoForward defines no `forward`.*pass `forward_fn=lambda module, batch: "):
        trainer(GradCAMCallback()).fit(NoForward(), loader(), loader())
    module = NoForward()
    module.training_step = lambda batch, batch_idx: module.model(batch[0]).sum()
    module.validation_step = lambda batch, batch_idx: None
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
