"""Several processes: the same samples and numbers on all, pictures once, weights as without the callback; no hang."""

import json
from pathlib import Path

import pytest
from tiny import python

SCRIPT = """
import hashlib, json, os, sys, torch
import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from tiny import Augmented, TinyModule, loader
from lightning_gradcam import Batch, Drift, GradCAMCallback

torch.set_num_threads(1)
ways, kind, devices, fault, epochs, resume = *sys.argv[1:3], int(sys.argv[3]), *sys.argv[4:]


class Unused(TinyModule):
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Linear(2, 2)


class Sharded(TinyModule):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        for layer in (self.net[4], self.net[8]):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


strategies = {
    "ddp": lambda: "ddp",
    "many": lambda: "ddp",
    "unused": lambda: DDPStrategy(find_unused_parameters=True),
    "static": lambda: DDPStrategy(static_graph=True),
    "sharded": lambda: ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1),
}
modules = {"unused": Unused, "sharded": Sharded}
calls = 0


def target(output, batch):
    global calls
    calls += 1
    if fault == "fault" and calls == 6 and int(os.environ.get("LOCAL_RANK", 0)) == devices - 1:
        raise RuntimeError("boom on one process")
    return output.gather(1, batch.labels.to(output.device)[:, None])[:, 0]


def read(batch):
    if fault == "batch" and int(os.environ.get("LOCAL_RANK", 0)) == devices - 1:
        raise RuntimeError("boom on one process")
    return Batch(*batch)


def run(how):
    pl.seed_everything(1, verbose=False)
    save = pl.callbacks.ModelCheckpoint("saved", save_last=True)
    drift = Drift(reference_run="gradcam" if how == "beside" else None)
    module = modules.get(kind, TinyModule)()
    samples = {"samples": 18, "pictures": 5} if kind == "many" else {"samples": 5}  # in chunks of two, or as one
    callback = GradCAMCallback(**samples, target=target, batch_fn=read, drift=drift, guided=2, checks=True)
    callbacks = [save] if how == "without" else [save, callback]
    trainer = pl.Trainer(callbacks=callbacks, max_epochs=int(epochs), accelerator="cpu", devices=devices,
                         strategy=strategies[kind](), logger=False, enable_progress_bar=False,
                         enable_model_summary=False, num_sanity_val_steps=0)
    trainer.fit(module, loader(Augmented(), shuffle=True, batch_size=4), loader(Augmented(), batch_size=4),
                ckpt_path=resume or None)
    values = [getattr(value, "full_tensor", lambda: value)() for value in module.state_dict().values()]
    weights = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()
    numbers = {key: value.item() for key, value in trainer.callback_metrics.items() if "seconds" not in key}
    result = {"weights": weights, "numbers": {key: value for key, value in numbers.items() if "gradcam" in key}}
    if probe := callback._session.probe:
        result |= {"ids": list(probe.batch.ids), "fingerprint": vars(probe.fingerprint), "layer": list(probe.layouts)}
        result |= {"epochs": [frame.epoch for frame in callback._session.history.tracks["gradcam"].frames]}
    with open(f"{how}-{trainer.global_rank}.json", "w") as file:
        json.dump(result, file)


for how in ways.split():
    run(how)
torch.distributed.barrier()  # all have written
sys.stderr.flush()
os._exit(0)  # in its own clean-up a thread of the process group now and then ends the process with an error
"""


def launch(ways, kind="ddp", devices=2, fault="none", epochs=3, resume=""):
    """Train in each of the ways, one after the other in the same processes."""
    Path("run.py").write_text(SCRIPT)
    return python("run.py", ways, kind, str(devices), fault, str(epochs), resume)


def result(how, devices):
    return [json.loads(Path(f"{how}-{rank}.json").read_text()) for rank in range(devices)]


def run(how, kind="ddp", devices=2, **options):
    done = launch(how, kind, devices, **options)
    assert done.returncode == 0, done.stderr
    return result(how, devices), done.stderr


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        ("ddp", 2),
        pytest.param("many", 2, marks=pytest.mark.slow),
        pytest.param("unused", 2, marks=pytest.mark.slow),
        pytest.param("static", 2, marks=pytest.mark.slow),
        pytest.param("sharded", 2, marks=pytest.mark.slow),
        pytest.param("ddp", 4, marks=pytest.mark.slow),
        pytest.param("sharded", 4, marks=pytest.mark.slow),
    ],
)
def test_several_processes(kind, devices):
    done = launch("without with", kind, devices)
    assert done.returncode == 0, done.stderr
    (first, *others), (without, *_) = result("with", devices), result("without", devices)
    assert first["ids"] == ([i * 24 // 18 for i in range(18)] if kind == "many" else [0, 4, 9, 14, 19])
    assert first["layer"] == ["net.5"]
    assert ("gradcam/randomization_drift" in first["numbers"]) == (kind != "sharded")
    if kind != "sharded":  # whose BatchNorm keeps statistics of its own on each process
        assert all(other == first for other in others)
    assert all(other["numbers"] == first["numbers"] for other in others)
    assert {"gradcam/strength", "gradcam/drift", "gradcam/drift_from_reference"} <= set(first["numbers"])
    assert first["weights"] == without["weights"]
    assert len(list(Path("gradcam").glob("*grid*.jpg"))) == 4
    assert len(list(Path("gradcam").glob("*guided_gradcam*.jpg"))) == 3  # of observations 0 to 3 the first, third, last


@pytest.mark.slow
def test_a_process_whose_capture_fails_does_not_keep_the_others_waiting():
    (first, second), said = run("with", "ddp", fault="fault")
    assert first == second
    assert first["numbers"]["gradcam/failures"] == 1
    assert "boom on one process" in said
    assert len(list(Path("gradcam").glob("*grid*.jpg"))) == 3


@pytest.mark.slow
def test_where_the_model_is_sharded_such_a_failure_ends_the_job():
    done = launch("with", "sharded", fault="fault")
    assert done.returncode != 0
    assert "boom on one process" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_resumed_on_another_number_of_processes(devices):
    run("with", devices=2, epochs=2)
    (first, *others), said = run("with", devices=devices, epochs=3, resume="saved/last.ckpt")
    (without, *_), _ = run("without", devices=devices, epochs=3, resume="saved/last.ckpt")
    assert all(other == first for other in others)
    assert first["weights"] == without["weights"]
    assert first["epochs"] == [-1, 0, 1, 2]
    assert {"gradcam/drift", "gradcam/drift_from_reference"} <= set(first["numbers"])
    assert "anew" not in said


@pytest.mark.slow
def test_a_reference_run_is_read_once_and_a_failing_process_beside_it_keeps_nobody_waiting():
    run("with", devices=1, epochs=1)
    (first, second), _ = run("beside", devices=2, epochs=1)
    assert first == second
    (key,) = (key for key in first["numbers"] if "difference_from" in key)
    assert 0 <= first["numbers"][key] <= 1
    done = launch("beside", devices=2, fault="batch")
    assert done.returncode != 0
    assert "boom on one process" in done.stderr
