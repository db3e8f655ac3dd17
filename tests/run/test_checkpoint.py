"""What a checkpoint holds of the callback, and what is noticed when a run is resumed."""

import pickle
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import Evident, Images, Recorder, TinyModule, loader, trainer
from torch.utils.data import default_collate

from lightning_gradcam import Batch, Drift, GradCAMCallback, Record, SegmentationTarget


def test_state_is_plain_and_survives_a_resume():
    checkpoint = ModelCheckpoint("checkpoints", save_last=True)
    callback = GradCAMCallback(samples=4)
    run = trainer(callback, checkpoint, max_epochs=1, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    state = torch.load("checkpoints/last.ckpt", weights_only=True)["callbacks"][callback.state_key]
    assert state["fingerprint"] == vars(callback._session.probe.fingerprint)
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
    run.fit(Evident(), loader(), loader())
    again = trainer(second, checkpoint, max_epochs=4, logger=logger, enable_checkpointing=True)
    again.fit(Evident(), loader(), loader(), ckpt_path="checkpoints/last.ckpt")
    assert logger.steps("gradcam/drift") == steps
    reference, earlier = (one._session.history.tracks["gradcam"].reference for one in (second, first))
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
    words = words or "SegmentationTarget(index=1)"
    assert GradCAMCallback(target=target).settings.question == f"target {words} · gradcam"


def test_two_callbacks_in_one_trainer():
    logger = Recorder()
    one, two = GradCAMCallback("net.4", samples=2), GradCAMCallback("net.0", samples=2, prefix="early")
    assert one.state_key != two.state_key
    trainer(one, two, logger=logger).fit(TinyModule(), loader(), loader())
    assert len(logger.steps("gradcam/strength")) == len(logger.steps("early/strength")) == 3


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_two_callbacks_of_one_prefix_are_refused_in_words(verb):
    one, two = GradCAMCallback(samples=2), GradCAMCallback(samples=2, target="predicted")
    with pytest.raises(ValueError, match=r"two `GradCAMCallback`s .* have the `prefix` 'gradcam'.*another `prefix`"):
        getattr(trainer(one, two), verb)(TinyModule(), loader())


def test_the_state_of_two_callbacks_is_kept_apart_and_the_key_is_the_prefix_alone():
    """By which checkpoints of earlier versions are found, and a changed layer is noticed."""
    checkpoint = ModelCheckpoint("checkpoints", save_last=True)

    def run(epochs, ckpt_path=None):
        both = GradCAMCallback("net.4", samples=2), GradCAMCallback("net.0", samples=3, prefix="early")
        run = trainer(*both, checkpoint, max_epochs=epochs, enable_checkpointing=True)
        run.fit(TinyModule(), loader(), loader(), ckpt_path=ckpt_path)
        return [[frame.epoch for frame in one._session.history.tracks[one.prefix].frames] for one in both]

    run(1)
    states = torch.load("checkpoints/last.ckpt", weights_only=True)["callbacks"]
    layers = {key: state["layers"] for key, state in states.items() if "Grad" in key}
    assert layers == {
        "GradCAMCallback{'prefix': 'gradcam'}": ["net.4"],
        "GradCAMCallback{'prefix': 'early'}": ["net.0"],
    }
    assert run(2, "checkpoints/last.ckpt") == [[-1, 0, 1], [-1, 0, 1]]


def test_checkpoints_can_monitor_a_key():
    checkpoint = ModelCheckpoint("checkpoints", monitor="gradcam/strength", mode="max")
    callback = GradCAMCallback(samples=2)
    run = trainer(callback, checkpoint, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    assert checkpoint.best_model_score is not None


def test_is_picklable_before_and_after_a_run():
    callback = GradCAMCallback("net.4", samples=2, target=1)
    trainer(callback).fit(TinyModule(), loader(), loader())
    again = pickle.loads(pickle.dumps(callback))
    assert again.samples == 2
    assert again.target(torch.tensor([[1.0, 2.0]]), Batch(torch.zeros(1, 3, 2, 2))).tolist() == [2]


class Tagged(torch.Tensor):
    """A tensor with notes, as libraries for medical images hand out; `weights_only=True` does not load it."""


def tagged(items):
    images, labels = default_collate(items)
    return images.as_subclass(Tagged), labels.as_subclass(Tagged)


@pytest.mark.parametrize("target", ["label", "predicted", [0, 1]])
def test_a_checkpoint_holds_plain_tensors_whatever_class_the_images_have(target):
    class Silent(TinyModule):  # Lightning itself does not take such numbers
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    data = loader(collate_fn=tagged)
    checkpoint = ModelCheckpoint("checkpoints", save_last=True)
    run = trainer(GradCAMCallback(samples=4, target=target), checkpoint, max_epochs=1, enable_checkpointing=True)
    run.fit(Silent(), data, data)
    logger, options = Recorder(), {"max_epochs": 2, "enable_checkpointing": True}
    again = trainer(GradCAMCallback(samples=4, target=target), checkpoint, logger=logger, **options)
    safely = {"weights_only": True} if "weights_only" in signature(again.fit).parameters else {}  # since Lightning 2.6
    again.fit(Silent(), data, data, ckpt_path="checkpoints/last.ckpt", **safely)
    torch.load("checkpoints/last.ckpt", weights_only=True)
    assert len(logger.steps("gradcam/empty_fraction")) == 1


def test_fitted_again_the_run_goes_on_with_history_and_record():
    logger, callback, module = Recorder(), GradCAMCallback("net.4", samples=4), TinyModule()
    run = trainer(callback, logger=logger, max_epochs=2)
    run.fit(module, loader(), loader())
    run.fit_loop.max_epochs = 4
    run.fit(module, loader(), loader())
    (folder,) = {path.parent for path in Path().rglob("record.json")}
    record = Record.open(folder)
    assert record.epochs.tolist() == [-1, 0, 1, 2, 3]
    assert len(logger.steps("gradcam/drift")) == 4
    assert [frame.epoch for frame in callback._session.history.tracks["gradcam"].frames] == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize("other", ["module", "samples", "trainer"])
def test_fitted_again_otherwise_a_new_record_begins(other):
    callback, module, data = GradCAMCallback("net.4", samples=4), TinyModule(), loader()
    run = trainer(callback, max_epochs=1)
    run.fit(module, data, data)
    run.fit_loop.max_epochs = 2
    if other == "module":
        module = TinyModule()
    elif other == "samples":
        data = loader(Images(20))
    else:
        run = trainer(callback, max_epochs=1)
    if other == "samples":
        with pytest.warns(UserWarning, match="the samples of the fixed batch are not those of the resumed run"):
            run.fit(module, data, data)
    else:
        run.fit(module, data, data)
    assert len({path.parent for path in Path().rglob("record.json")}) == 2
    epochs = [frame.epoch for frame in callback._session.history.tracks["gradcam"].frames]
    assert epochs == ([-1, 0] if other == "trainer" else [1])


def test_an_epoch_that_a_checkpoint_ends_before_its_validation_is_held_once():
    """Such a checkpoint does not know the epoch's observation, and Lightning does not repeat the validation."""

    def run(epochs, ckpt_path=None):
        callback, logger = GradCAMCallback("net.4", samples=4), Recorder()
        saver = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=3, save_top_k=-1)
        module, options = TinyModule(), {"logger": logger, "enable_checkpointing": True}
        trainer(callback, saver, max_epochs=epochs, **options).fit(module, loader(), loader(), ckpt_path=ckpt_path)
        frames = callback._session.history.tracks["gradcam"].frames
        return Record.open("recorder/version_0").epochs.tolist(), [frame.epoch for frame in frames]

    assert run(3) == ([-1, 0, 1, 2], [-1, 0, 1, 2])
    assert run(4, "saved/step=6.ckpt") == ([-1, 0, 1, 2, 3], [-1, 0, 1, 2, 3])
