"""In which precision, with which weights and on which inputs a run looks at its model."""

import copy

import pytest
import pytorch_lightning as pl
import torch
import torch.utils.checkpoint
from tiny import Images, Recorder, TinyModule, loader, trainer
from torch import nn

from lightning_gradcam import Batch, GradCAMCallback, gradcam


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions_of_a_trainer_agree(precision):
    def last_strength(precision):
        torch.manual_seed(0)
        module, logger = TinyModule(), Recorder()
        callback = GradCAMCallback(samples=4)
        run = trainer(callback, logger=logger, max_epochs=1, precision=precision)
        run.fit(module, loader(), loader())
        return logger.values("gradcam/strength")[0]

    plain = last_strength("32-true")
    assert last_strength(precision) == pytest.approx(plain, rel=0.1)


@pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="older than Lightning 2.6")
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_the_order_of_callbacks_says_which_weights_are_seen(first):
    """Lightning's averaging puts its weights in place for the validation, and takes them out at its end."""
    torch.manual_seed(0)
    module, logger, at_validation = TinyModule(), Recorder(), []
    module.on_validation_epoch_start = lambda: at_validation.append(copy.deepcopy(module.state_dict()))
    ours, theirs = GradCAMCallback("net.5", samples=4), pl.callbacks.EMAWeightAveraging(decay=0.9)
    callbacks = [ours, theirs] if first == "ours" else [theirs, ours]
    trained = copy.deepcopy(module)

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trained.load_state_dict(pl_module.state_dict())

    run = trainer(*callbacks, Keep(), logger=logger, max_epochs=1, num_sanity_val_steps=0)
    run.fit(module, loader(), loader())

    averaged = copy.deepcopy(trained)
    averaged.load_state_dict(at_validation[-1])
    labels, images = Images().labels[::6], Images().images[::6]

    def strength(module):
        maps = gradcam(module, images, "net.5", lambda output, _: output.gather(1, labels[:, None])[:, 0])
        return maps.sum((1, 2)).quantile(0.5).item()

    assert strength(averaged) != pytest.approx(strength(trained), rel=1e-3)
    seen = averaged if first == "ours" else trained
    assert logger.values("gradcam/strength")[1] == pytest.approx(strength(seen), rel=1e-5)


class TwoInputs(TinyModule):
    """An image and a question in words; hands out a mapping."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 3)

    def forward(self, images, words):  # type: ignore[reportIncompatibleMethodOverride]
        return {"loss": None, "logits": self.net(images) + self.words(words).mean(1)}

    def training_step(self, batch, batch_idx):
        return self(batch["image"], batch["words"])["logits"].sum()

    def validation_step(self, batch, batch_idx):
        pass


class Questions(Images):
    def __getitem__(self, index):  # type: ignore[reportIncompatibleMethodOverride]
        image, label = super().__getitem__(index)
        return {"image": image, "answer": label, "words": torch.tensor([index % 7, 3])}


def test_image_and_text():
    logger = Recorder()
    callback = GradCAMCallback(
        samples=4,
        batch_fn=lambda batch: Batch(batch["image"], batch["answer"], inputs={"words": batch["words"]}),
        forward_fn=lambda module, batch: module(batch.images, batch.inputs["words"]),
    )
    data = loader(Questions())
    run = trainer(callback, logger=logger, max_epochs=1)
    run.fit(TwoInputs(), data, data)
    assert callback._session.probe.layers == {"gradcam": "net.5"}
    assert len(logger.values("gradcam/strength")) == 2
    assert logger.values("gradcam/prediction_flips")
