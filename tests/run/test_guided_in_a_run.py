"""When guided pictures are made in a run, of what, and what a failure of theirs costs."""

import pytest
import torch
from pytorch_lightning import Callback
from tiny import Recorder, TinyModule, loader, trainer
from torch import nn

from lightning_gradcam import Drift, GradCAMCallback, guided_backprop, guided_gradcam


def guided_steps(drawn, key="guided_gradcam"):
    return [step for name, step, _ in drawn if name == f"gradcam/{key}"]


@pytest.mark.parametrize(
    ("guided", "observed"),
    # Of observations 0 to 12; three steps an epoch, logged at the epoch's last one.
    [(True, [0, 10, 12]), (5, [0, 5, 10, 12]), (1, list(range(13))), (False, [])],
)
def test_chosen_observations(drawn, guided, observed):
    callback = GradCAMCallback(samples=2, guided=guided, drift=Drift(noise_floor=False))
    trainer(callback, max_epochs=12).fit(TinyModule(), loader(), loader())
    expected = [max(0, 3 * i - 1) for i in observed]
    assert guided_steps(drawn) == guided_steps(drawn, "guided_backprop") == expected


def test_the_last_of_several_validations_of_the_last_epoch(drawn):
    callback = GradCAMCallback(samples=2, guided=True)
    options = {"max_epochs": 2, "val_check_interval": 1 / 3, "num_sanity_val_steps": 0}
    trainer(callback, **options).fit(TinyModule(), loader(), loader())
    assert guided_steps(drawn) == [0, 5]
    assert callback._session.history.count == 7


class Stop(Callback):
    def on_validation_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 3


def test_the_last_observation_where_nobody_knew_that_it_was(drawn):
    logger = Recorder()
    run = trainer(GradCAMCallback(samples=2, guided=True), Stop(), max_epochs=9, logger=logger)
    run.fit(TinyModule(), loader(), loader())
    assert run.current_epoch == 4
    assert guided_steps(drawn) == [0, 11]
    assert logger.steps("gradcam/guided_seconds") == [11]


def test_pictures_are_of_the_gradients_at_that_time(drawn, monkeypatch):
    given = []

    def grid(photos, maps, *args, gradients=None, **options):
        given.append((maps, gradients))

    monkeypatch.setattr("lightning_gradcam.run.pictures.grid", grid)
    module = TinyModule()
    callback = GradCAMCallback("net.4", samples=3, guided=True)
    trainer(callback, max_epochs=1).fit(module, loader(), loader())
    batch = callback._session.probe.batch
    expected = guided_backprop(module, batch.images, "label", labels=batch.labels)
    (_, first), (maps, second) = given[-2:]
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, guided_gradcam(module, batch.images, "net.4", "label", labels=batch.labels))
    assert maps.shape == (3, 8, 8)


def test_a_network_without_relus_is_refused_before_training():
    module = TinyModule()
    module.net[2] = module.net[5] = nn.GELU()
    with pytest.raises(ValueError, match="calls none: others, such as GELU and SiLU"):
        trainer(GradCAMCallback(samples=2, guided=True)).fit(module, loader(), loader())
    with pytest.raises(ValueError, match="`guided` must be True, False or a number of observations, got -1"):
        GradCAMCallback(guided=-1)


def test_a_failure_later_loses_neither_maps_nor_run(drawn, monkeypatch):
    class Broken(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            monkeypatch.setattr("lightning_gradcam.run.observer.guided_gradients", lambda *_: 1 / 0)

    callback = GradCAMCallback(samples=2, guided=1)
    with pytest.warns(UserWarning, match="the guided picture in epoch 0, step 3, failed"):
        trainer(callback, Broken(), max_epochs=1).fit(TinyModule(), loader(), loader())
    assert guided_steps(drawn) == [0]
    assert [step for key, step, _ in drawn if key == "gradcam/grid"] == [0, 2]


def test_outside_fit_there_are_none(drawn):
    module = TinyModule()
    module.net[2] = module.net[5] = nn.GELU()  # so nothing is refused either
    run = trainer(GradCAMCallback(samples=2, guided=True))
    run.validate(module, loader())
    run.test(module, loader())
    assert {key for key, *_ in drawn} == {"gradcam/grid", "gradcam/positional_bias_map"}


def test_where_the_last_observation_fails_no_older_one_takes_its_place(drawn):
    trained = []

    class Note(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trained.append(1)

    def target(output, batch):
        if trained:
            raise RuntimeError("boom")
        return output[:, 0]

    callback = GradCAMCallback("net.4", samples=2, target=target, guided=50)
    with pytest.warns(UserWarning, match="the observation in epoch 0, step 3, failed.*boom"):
        trainer(callback, Note(), max_epochs=1).fit(TinyModule(), loader(), loader())
    assert guided_steps(drawn) == [0]


def test_short_memory_is_met_in_chunks(drawn, monkeypatch):
    from lightning_gradcam.attribution.guided import guided_gradients as own

    sizes = []

    def narrow(model, batch, forward, target, at_once):
        sizes.append(at_once)
        if at_once is None or at_once > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(model, batch, forward, target, at_once)

    monkeypatch.setattr("lightning_gradcam.run.observer.guided_gradients", narrow)
    trainer(GradCAMCallback(samples=8, guided=True), max_epochs=1).fit(TinyModule(), loader(), loader())
    assert sizes[:3] == [None, 4, 2]
    assert guided_steps(drawn) == [0, 2]
