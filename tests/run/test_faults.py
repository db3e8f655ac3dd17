"""What may go wrong in a long run, made to go wrong: the run goes on, and nothing that was logged is lost."""

import gc
import signal
import subprocess
import sys
import warnings
import weakref
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from tiny import Recorder, TinyModule, early_stop, fit, interrupted, loader, pictures, trainer

from lightning_gradcam import Drift, GradCAMCallback

ONCE = Drift(noise_floor=False)  # one capture an observation, so that tests can count


class Failing:
    """A target that raises in some of its calls, counted from 1."""

    def __init__(self, *calls):
        self.failing, self.calls = calls, 0

    def __call__(self, output, batch):
        self.calls += 1
        if self.calls in self.failing:
            raise RuntimeError("boom")
        return output[:, 0]


def callback(target=None, **options):
    return GradCAMCallback("net.4", samples=2, target=target or Failing(), drift=ONCE, **options)


# The first call is in the sanity check, the second before training.


def test_failures_are_counted_and_left_out_of_the_history():
    with pytest.warns(UserWarning, match="failed and is left out") as warnings:
        _, logger = fit(callback(Failing(3, 5)), max_epochs=4)
    assert len([warning for warning in warnings if "boom" in str(warning.message)]) == 2
    assert logger.values("gradcam/failures") == [1, 2]
    assert logger.steps("gradcam/failures") == [2, 8]
    assert logger.steps("gradcam/strength") == [0, 5, 11]
    assert logger.steps("gradcam/drift") == [5, 11]  # against the observations before the failed ones


@pytest.mark.filterwarnings("ignore:.*RuntimeError. boom:UserWarning")
def test_the_count_goes_on_in_a_resumed_run():
    saver = ModelCheckpoint("saved", save_last=True)
    for epochs, ckpt_path, expected in ((2, None, [1]), (4, "saved/last.ckpt", [2])):
        logger = Recorder()
        run = trainer(callback(Failing(3)), saver, logger=logger, max_epochs=epochs, enable_checkpointing=True)
        run.fit(TinyModule(), loader(), loader(), ckpt_path=ckpt_path)
        assert logger.values("gradcam/failures") == expected


@pytest.mark.filterwarnings("ignore:.*RuntimeError. boom:UserWarning")
def test_three_in_a_row_switch_it_off_and_monitors_are_still_served(tmp_path):
    target = Failing(*range(4, 100))
    stopper = EarlyStopping("gradcam/strength", patience=99, strict=True)
    saver = ModelCheckpoint(tmp_path, monitor="gradcam/strength", save_top_k=-1)
    logger = Recorder()
    run = trainer(callback(target), stopper, saver, logger=logger, max_epochs=7, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="3 observations in a row have failed; it is switched off for the rest"):
        run.fit(TinyModule(), loader(), loader())
    assert run.current_epoch == 7
    assert len(list(tmp_path.glob("*.ckpt"))) == 7
    assert target.calls == 6
    assert logger.values("gradcam/failures") == [1, 2, 3]


def test_two_in_a_row_do_not():
    with pytest.warns(UserWarning, match="failed and is left out") as warnings:
        _, logger = fit(callback(Failing(3, 4, 6, 7)), max_epochs=6)
    assert not any("switched off" in str(warning.message) for warning in warnings)
    assert len(logger.values("gradcam/strength")) == 1 + 2


def test_on_error_raise():
    with pytest.raises(RuntimeError, match="boom"):
        fit(callback(Failing(3), on_error="raise"))
    with pytest.raises(ValueError, match='`on_error` must be "warn" or "raise", got \'ignore\''):
        callback(on_error="ignore")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_is_met_with_smaller_chunks_whose_size_is_remembered(error):
    sizes = []

    def forward(module, batch):
        sizes.append(len(batch.images))
        if len(batch.images) > 2:
            raise error
        return module(batch.images)

    options = {"max_epochs": 1, "num_sanity_val_steps": 0}
    torch.manual_seed(0)
    _, plain = fit(GradCAMCallback("net.4", samples=8, drift=ONCE), **options)
    torch.manual_seed(0)
    chunked = GradCAMCallback("net.4", samples=8, drift=ONCE, forward_fn=forward)
    _, logger = fit(chunked, **options)
    assert sizes == [2, 8, 4, *[2] * 4, *[2] * 4]
    for key in ("gradcam/strength", "gradcam/drift", "gradcam/prediction_flips", "gradcam/concentration"):
        assert logger.values(key) == pytest.approx(plain.values(key), rel=1e-4)


def test_out_of_memory_for_a_single_sample_is_a_failure():
    def forward(module, batch):
        if module.trainer.current_epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return module(batch.images)

    with pytest.warns(UserWarning, match="failed and is left out.*OutOfMemoryError: CUDA out of memory"):
        _, logger = fit(GradCAMCallback("net.4", samples=4, forward_fn=forward), max_epochs=3)
    assert logger.values("gradcam/failures") == [1]
    assert len(logger.values("gradcam/strength")) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(value):
    class Diverging(TinyModule):
        def on_train_epoch_end(self):
            with torch.no_grad():
                self.net[0].weight.fill_(value)

    run, logger = fit(callback(), module=Diverging(), max_epochs=3)
    assert run.current_epoch == 3
    assert len(logger.values("gradcam/seconds")) == 4
    assert all(torch.isfinite(torch.tensor(values)).all() for values in [logger.values("gradcam/strength")])


def test_what_a_failed_forward_held_is_free_at_once():
    held = []

    def forward(module, batch):
        output = module(batch.images)
        if module.trainer.global_step == 3:
            held.append(weakref.ref(output))
            raise RuntimeError("boom")
        return output

    class Module(TinyModule):
        def on_train_batch_start(self, batch, batch_idx):
            assert not any(reference() is not None for reference in held)

    gc.collect()
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="boom"):
            fit(GradCAMCallback("net.4", samples=2, drift=ONCE, forward_fn=forward), module=Module())
    finally:
        gc.enable()
    assert held


def test_warnings_that_the_user_has_made_errors_do_not_end_the_run(caplog):
    class Strict(TinyModule):
        def on_train_start(self):
            warnings.simplefilter("error")

    run, logger = fit(callback(Failing(3, 4, 5)), module=Strict(), max_epochs=5)
    assert run.current_epoch == 5
    assert logger.values("gradcam/failures") == [1, 2, 3]
    said = [record.message for record in caplog.records if record.name == "lightning_gradcam"]
    assert len(said) == 4
    assert "switched off" in said[-1]
    caplog.clear()  # else it counts as unexpected


def test_a_logger_that_fails_at_the_end_of_the_run():
    class Gone(Recorder):
        def log_metrics(self, metrics, step=None):
            if step and "gradcam/seconds" in metrics:
                raise OSError("network gone")
            super().log_metrics(metrics, step)

    stop = early_stop()
    run = trainer(callback(every_n_epochs=10), stop, logger=Gone(), max_epochs=9)
    with pytest.warns(UserWarning, match=r"the logging of the numbers .* failed.*OSError: network gone"):
        run.fit(TinyModule(), loader(), loader())
    assert run.current_epoch == 2


def test_a_module_whose_own_log_takes_less():
    class Own(TinyModule):
        def log(self, name, value, prog_bar=False):  # type: ignore[reportIncompatibleMethodOverride]
            super().log(name, value, prog_bar=prog_bar)

    _, logger = fit(callback(), module=Own())
    assert len(logger.steps("gradcam/strength")) == 3


def test_lazy_layers_are_checked_as_far_as_can_be_and_later_failures_are_warnings():
    def lazy():
        module = TinyModule()
        module.net[8] = torch.nn.LazyLinear(3)
        return module

    module = lazy()
    module.training_step = lambda *args: pytest.fail("training began")
    with pytest.raises(ValueError, match=r"`target_layer` 'net.nope' is not a layer"):
        fit(GradCAMCallback("net.nope", samples=2), module=module, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="boom"):
        run, logger = fit(callback(Failing(1)), module=lazy(), num_sanity_val_steps=0, max_epochs=3)
    assert run.current_epoch == 3
    assert len(logger.steps("gradcam/strength")) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_default_dtype(dtype):
    module, data = TinyModule(), loader()
    torch.set_default_dtype(dtype)
    try:
        trainer(callback(), max_epochs=3).fit(module, data, data)  # a warning would be an error
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


# Pictures and loggers


def test_a_picture_that_cannot_be_encoded(monkeypatch):
    def fail(*args, **options):
        raise OSError("broken encoder")

    def break_it(*args):
        monkeypatch.setattr("PIL.Image.Image.save", fail)

    module = TinyModule()
    module.on_train_start = break_it
    with pytest.warns(UserWarning, match="failed and is left out.*OSError: broken encoder"):
        _, logger = fit(callback(), module=module)
    assert len(logger.steps("gradcam/strength")) == 3


def test_a_tensorboard_writer_that_was_closed(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    module = TinyModule()
    module.on_train_epoch_start = logger.experiment.close
    run = trainer(callback(), logger=logger)
    run.fit(module, loader(), loader())  # the writer opens another file by itself
    assert run.current_epoch == 2


@pytest.mark.filterwarnings("ignore:.*a picture in epoch 1:UserWarning")
def test_a_wandb_run_that_was_finished(tmp_path):
    class Finished(WandbLogger):
        """Takes no numbers, so that Lightning's own do not end the run."""

        def log_metrics(self, metrics, step=None):
            pass

    logger, recorder, module = Finished(save_dir=str(tmp_path.resolve()), offline=True), Recorder(), TinyModule()
    module.on_train_epoch_start = logger.experiment.finish
    run = trainer(callback(), logger=[recorder, logger])
    with pytest.warns(UserWarning, match="failed and is left out") as warned:
        run.fit(module, loader(), loader())
    told = {str(one.message).partition(" in epoch")[0] for one in warned}
    what = ("a picture", "the page of the run", "the table of the samples")
    assert {f"GradCAMCallback: {one}" for one in what} <= told
    assert recorder.steps("gradcam/strength") == [0, 2, 5]


@contextmanager
def mounted(folder, options):
    """A small file system of its own; skips where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine does not let tests mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    with pytest.raises(OSError, match="No space left"):
        (folder / "ballast").write_bytes(b"x" * 1_000_000)


def lock(folder):
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize(
    ("spoil", "options", "reason"), [(fill, "size=256k", "No space left"), (lock, "size=4m", "Read-only")]
)
def test_a_disk_that_is_full_or_read_only(tmp_path, spoil, options, reason):
    with mounted(tmp_path / "disk", options) as folder:
        logger, module = Recorder(), TinyModule()
        module.on_train_start = partial(spoil, folder)
        run = trainer(callback(), logger=logger, default_root_dir=folder)
        lost = "in epoch .* failed and is left out.*" + reason
        with pytest.warns(UserWarning, match=f"a picture {lost}"):  # noqa: SIM117
            with pytest.warns(UserWarning, match=f"the record of the observation {lost}"):
                run.fit(module, loader(), loader())
        assert len(logger.steps("gradcam/strength")) == 3
        assert all(path.stat().st_size > 1000 for path in folder.rglob("*.jpg"))  # none is cut off
        assert not list(folder.rglob("*.part"))


# Interruptions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_in_the_capture(name):
    done = interrupted(signal=name)
    assert "interrupted True" in done.stdout or done.returncode in (1, -signal.SIGTERM), done.stderr
    if "hooks" in done.stdout:
        assert "hooks 0\nfrozen 0" in done.stdout
    resumed = interrupted(resume="saved/last.ckpt")
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 4" in resumed.stdout


@pytest.mark.slow
def test_killed_in_the_capture_and_resumed():
    done = interrupted(signal="SIGKILL")
    assert done.returncode == -signal.SIGKILL
    found = pictures()
    assert found["gradcam-grid"][0] == 0
    assert not list(Path().rglob("*.tmp*"))
    resumed = interrupted(resume="saved/last.ckpt")
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 4" in resumed.stdout
    assert "drift [8, 11]" in resumed.stdout  # the first of these against the maps of the killed run
    pictures()  # every file on disk can be read


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
