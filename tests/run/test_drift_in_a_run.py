"""Drift, monitors, filmstrip and resume with a real Trainer."""

import io
import json
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tiny import Evident, Recorder, TinyModule, boxed, events, loader, python, trainer

from lightning_gradcam import Batch, Drift, GradCAMCallback

read_batch = partial(boxed, name="left", box=(0, 0, 8, 16))


def scripted(*maps):
    """A method whose maps are those of a script, one an observation; the sanity check has the first as well."""
    calls = []

    def method(activations, gradients):
        calls.append(1)
        name = maps[min(max(0, len(calls) - 2), len(maps) - 1)]
        cells = torch.zeros(len(activations), *activations.shape[2:])
        if name == "left":
            cells[:, :, 0] = 1
        elif name == "right":
            cells[:, :, -1] = 1
        else:
            cells -= 1
        return cells

    return method


def test_every_key_is_logged():
    logger = Recorder()
    run = trainer(GradCAMCallback(samples=6, batch_fn=read_batch), max_epochs=3, logger=logger)
    run.fit(TinyModule(), loader(), loader())
    keys = {key.removeprefix("gradcam/") for _, metrics in logger.scalars for key in metrics if "gradcam" in key}
    assert keys == {
        "drift", "drift_from_reference", "drift_floor", "drift_chance", "centroid_shift", "topk_iou", "concentration",
        "strength", "empty_fraction", "mass_left", "lift_left", "prediction_flips", "seconds",
        "positional_bias", "positional_bias_chance",
    }  # fmt: skip
    steps = logger.steps("val_loss")
    assert logger.steps("gradcam/drift") == steps  # from the second observation on
    assert logger.steps("gradcam/drift_from_reference") == steps[1:]
    assert logger.steps("gradcam/mass_left") == [0, *steps]


def test_every_key_is_logged_for_every_group():
    logger = Recorder()
    callback = GradCAMCallback(
        samples=6, batch_fn=lambda batch: Batch(*batch, groups=["tagged" if label else "plain" for label in batch[1]])
    )
    run = trainer(callback, logger=logger)
    run.fit(Evident(), loader(), loader())
    keys = {key for _, metrics in logger.scalars for key in metrics if key.startswith("gradcam/")}
    for group in ("plain", "tagged"):
        of_group = {key.removesuffix(f"/{group}") for key in keys if key.endswith(f"/{group}")}
        assert of_group == {key for key in keys if key.count("/") == 1} - {"gradcam/seconds"}
    of_all = run.callback_metrics["gradcam/empty_fraction"]
    parts = [run.callback_metrics[f"gradcam/empty_fraction/{group}"] for group in ("plain", "tagged")]
    torch.testing.assert_close(of_all, (parts[0] * 2 + parts[1] * 4) / 6)  # two of six have the label 0
    mass, lift = logger.values("gradcam/mass_left"), logger.values("gradcam/lift_left")
    assert lift == pytest.approx([2 * value for value in mass], rel=1e-5)


@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("maps", [("left", "left", "empty", "empty", "left"), ("empty",)])
@pytest.mark.parametrize(("key", "mode"), [("drift", "min"), ("mass_left", "max")])
def test_monitors_never_end_a_run(val, every, maps, key, mode):
    callback = GradCAMCallback(
        samples=2, batch_fn=read_batch, every_n_epochs=every, method=scripted(*maps), drift=Drift(noise_floor=False)
    )
    stop = EarlyStopping(f"gradcam/{key}", mode=mode, patience=20, check_on_train_epoch_end=not val)
    save = ModelCheckpoint("saved", monitor=f"gradcam/{key}", mode=mode, save_on_train_epoch_end=not val)
    run = trainer(callback, stop, save, max_epochs=5, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader() if val else None)
    assert run.current_epoch == 5
    assert save.best_model_score is not None
    assert save.best_model_score.isfinite()


def test_values_between_observations_reach_monitors_and_no_logger():
    seen, logger = [], Recorder()

    class Watch(EarlyStopping):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append(trainer.callback_metrics["gradcam/mass_left"].item())

    method = scripted("left", "right", "left")
    callback = GradCAMCallback(
        samples=2, batch_fn=read_batch, every_n_epochs=2, method=method, drift=Drift(noise_floor=False)
    )
    run = trainer(callback, Watch("gradcam/mass_left"), max_epochs=4, logger=logger)
    run.fit(TinyModule(), loader(), loader())
    assert seen == [0, 0, 0, 1]  # worst, then what epoch 1 saw, kept through epoch 2, then what epoch 3 saw
    epochs = logger.steps("val_loss")
    assert logger.steps("gradcam/mass_left") == [0, epochs[1], epochs[3]]


def test_an_alert_names_the_samples_and_comes_once(monkeypatch):
    alerts = []
    monkeypatch.setattr("lightning_gradcam.run.outlets.send_alert", lambda logger, title, text: alerts.append(text))
    script = ["left", "left", "left", "left", "right", "right", "right"]
    callback = GradCAMCallback(
        samples=[3, 9], method=scripted(*script), drift=Drift(noise_floor=False, alert_above=0.2)
    )
    run = trainer(callback, max_epochs=6, logger=Recorder())
    with pytest.warns(UserWarning, match=r"in epoch 3, step 12, the maps of `net.5` moved.*drift 1.00, samples #3, #9"):
        run.fit(TinyModule(), loader(), loader())
    assert len(alerts) == 1


def test_an_undisturbed_run_is_silent():
    callback = GradCAMCallback(samples=4, method=scripted("left"), drift=Drift(noise_floor=False, alert_above=0.2))
    trainer(callback, max_epochs=6).fit(TinyModule(), loader(), loader())  # a warning would be an error


def test_the_probe_card_and_the_hint(caplog):
    caplog.set_level(logging.INFO)
    logger = TensorBoardLogger(".", name="tb", version="a")
    callback = GradCAMCallback(samples=[3, 9], batch_fn=read_batch)
    trainer(callback, logger=logger, max_epochs=12, limit_train_batches=1).fit(TinyModule(), loader(), loader())
    found = events(logger.log_dir)
    (card,) = found.Tensors("gradcam/probe/text_summary")
    text = card.tensor_proto.string_val[0].decode()
    for part in (
        "net.5 (8x8)",
        "target label · gradcam",
        "3, 9",
        "left",
        callback._session.probe.fingerprint.identity[:16],
    ):
        assert part in text
    assert caplog.text.count("plans 13 observations. TensorBoard shows ten pictures of a tag unless") == 1
    assert len(found.Images("gradcam/filmstrip")) == len(found.Images("gradcam/grid")) == 13


def test_what_cannot_be_read_is_said_once(caplog):
    caplog.set_level(logging.INFO)
    callback = GradCAMCallback(samples=2, method=scripted("empty"), drift=Drift(noise_floor=False))
    trainer(callback, max_epochs=3).fit(TinyModule(), loader(), loader())
    assert caplog.text.count("the maps of 2 of 2 samples are empty: all of the layer's evidence is against") == 1


def test_a_hundred_epochs_are_bounded():
    callback = GradCAMCallback(samples=16)
    save = ModelCheckpoint("saved", save_last=True, every_n_epochs=10, save_top_k=-1)
    run = trainer(callback, save, max_epochs=100, limit_train_batches=1, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    frames = callback._session.history.tracks["gradcam"].frames
    assert [frames[0].epoch, frames[-1].epoch] == [-1, 99]
    assert len(frames) <= 17
    strips = sorted(Path("gradcam").glob("*filmstrip*"), key=lambda path: path.stem.split("step=")[1].replace("-", "."))
    sizes = {Image.open(io.BytesIO(path.read_bytes())).size for path in strips[20:]}
    assert len(sizes) == 1
    assert max(path.stat().st_size for path in strips) < 300_000
    buffer = io.BytesIO()
    torch.save(callback.state_dict(), buffer)
    assert buffer.tell() < 1_000_000
    saved = [path.stat().st_size for path in Path("saved").glob("epoch=*.ckpt")]
    assert max(saved) - min(saved) < 50_000


RESUMED = """
import json, sys, torch, pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import Recorder, TinyModule, boxed, loader, trainer
from lightning_gradcam import Drift, GradCAMCallback

torch.set_num_threads(1)

epochs, checkpoint = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
read_batch = lambda batch: boxed(batch, "left", (0, 0, 8, 16))
pl.seed_everything(1, verbose=False)
logger, callback = Recorder(), GradCAMCallback(samples=10, batch_fn=read_batch, drift=Drift(alert_above=0.9))
save = ModelCheckpoint("saved", save_last=True)
run = trainer(callback, save, logger=logger, max_epochs=epochs, enable_checkpointing=True)
module = TinyModule()
module.net[3] = torch.nn.Identity()  # for the dropout: Lightning does not restore random states
run.fit(module, loader(), loader(), ckpt_path=checkpoint)
rows = [[step, {k: v for k, v in m.items() if "gradcam" in k and "seconds" not in k}] for step, m in logger.scalars]
history = callback._session.history.tracks["gradcam"]
result = {"rows": [row for row in rows if row[1]], "frames": [[f.epoch, f.maps.tolist(), f.drift.tolist()]
          for f in history.frames], "reference": history.reference.tolist(), "spacing": history.spacing}
print(json.dumps(result))
"""


def go_on(folder, *args):
    Path(folder).mkdir(exist_ok=True)
    done = python("-W", "ignore", "-c", RESUMED, *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_the_unbroken_one():
    unbroken = go_on("unbroken", "20")
    broken = go_on("broken", "13")
    resumed = go_on("broken", "20", "saved/last.ckpt")
    assert len(unbroken["rows"]) == 21
    assert broken["rows"] + resumed["rows"] == unbroken["rows"]
    for part in ("spacing", "reference"):
        assert json.dumps(resumed[part]) == json.dumps(unbroken[part])
    # The broken run's last observation before its end was its last: the frames are those of the unbroken run.
    assert json.dumps(resumed["frames"]) == json.dumps(unbroken["frames"])


def test_another_layer_starts_anew():
    save = ModelCheckpoint("saved", save_last=True)
    run = trainer(GradCAMCallback("net.4", samples=2), save, max_epochs=1, enable_checkpointing=True)
    run.fit(TinyModule(), loader(), loader())
    again = trainer(GradCAMCallback("net.0", samples=2), save, max_epochs=2, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"looks at \['net.0'\], the resumed run looked at \['net.4'\]; drift starts"):
        again.fit(TinyModule(), loader(), loader(), ckpt_path="saved/last.ckpt")


def test_a_reference_that_is_never_observed_is_refused():
    with pytest.raises(
        ValueError, match=r"`Drift.reference=4.` names an epoch that `every_n_epochs=2` leaves out.* 3$"
    ):
        GradCAMCallback(every_n_epochs=2, drift=Drift(reference=4))
    with pytest.raises(TypeError, match="`drift` must be a `Drift`, got float"):
        GradCAMCallback(drift=0.2)
