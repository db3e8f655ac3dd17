"""The package as a user meets it: imports, both Lightnings, the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from tiny import TinyModule, loader

import lightning_gradcam
from lightning_gradcam import GradCAMCallback


def python(code, *args):
    """Run code in a fresh interpreter and return what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    heavy = [
        "tensorboard",
        "tensorboardX",
        "wandb",
        "matplotlib",
        "sklearn",
        "scipy",
        "torch._dynamo",
        "torchvision.models",
    ]
    code = f"""
import pytorch_lightning, sys
before = set(sys.modules)
import lightning_gradcam
print([name for name in {heavy} if name in set(sys.modules) - before])
"""
    assert python(code) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "base"),
    [
        ("import lightning.pytorch", "lightning.pytorch.callbacks.callback"),
        ("import pytorch_lightning", "pytorch_lightning.callbacks.callback"),
        ("import pytorch_lightning, lightning.pytorch", "pytorch_lightning.callbacks.callback"),
        ("", "lightning.pytorch.callbacks.callback"),
    ],
)
def test_callback_is_of_the_lightning_in_use(first, base):
    code = f"{first}\nfrom lightning_gradcam import GradCAMCallback; print(GradCAMCallback.__mro__[1].__module__)"
    assert python(code) == base


def test_fit_with_the_lightning_distribution():
    code = """
import sys, torch, lightning.pytorch as pl
sys.modules["pytorch_lightning"] = pl  # the tests' module, in the other distribution
from tiny import TinyModule, loader
from lightning_gradcam import GradCAMCallback
callback = GradCAMCallback(samples=2)
trainer = pl.Trainer(callbacks=callback, max_epochs=1, logger=False, accelerator="cpu", enable_progress_bar=False,
                     enable_checkpointing=False)
trainer.fit(TinyModule(), loader(), loader())
print(sorted(key for key in trainer.callback_metrics if key.startswith("gradcam")))
"""
    assert "'gradcam/seconds', 'gradcam/strength'" in python(code)


def test_public_names():
    for name in lightning_gradcam.__all__:
        assert getattr(lightning_gradcam, name).__doc__
    assert set(lightning_gradcam.__all__) <= set(dir(lightning_gradcam))


CONFIG = """
seed_everything: 1
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_gradcam.GradCAMCallback
      init_args:
        target_layer: net.4
        samples: [0, 5]
        target: 1
        method: hirescam
        every_n_epochs: 1
        grid: [8, 8]
        display:
          mean: [0.5, 0.5, 0.5]
          std: [0.2, 0.2, 0.2]
          class_names: [ant, bee, crab]
          colormap: inferno
"""


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader()


def run_cli(config, monkeypatch):
    Path("config.yaml").write_text(config)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning uses an older interface of it
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "config.yaml"])
    return LightningCLI(TinyModule, Data, save_config_callback=None)


def test_lightning_cli(monkeypatch):
    cli = run_cli(CONFIG, monkeypatch)
    (callback,) = [item for item in cli.trainer.callbacks if isinstance(item, GradCAMCallback)]
    assert callback.target_layer == ("net.4",)
    assert callback.samples == [0, 5]
    assert callback.display.class_names == ["ant", "bee", "crab"]
    assert callback.display.colormap == "inferno"
    assert callback._probe.batch.ids == [0, 5]
    assert torch.isfinite(cli.trainer.callback_metrics["gradcam/strength"])


def test_lightning_cli_with_the_defaults(monkeypatch):
    cli = run_cli(CONFIG.split("      init_args")[0], monkeypatch)
    assert "gradcam/strength" in cli.trainer.callback_metrics


class ScaledLogit:
    """A target of the user's own, as `SegmentationTarget` is one: an instance that is called."""

    def __init__(self, index: int, factor: float) -> None:
        self.index, self.factor = index, factor

    def __call__(self, output, batch):
        return self.factor * output[:, self.index]


def second_logit(output, batch):
    return output[:, 1]


@pytest.mark.parametrize(
    ("target", "factor"),
    [
        ("{class_path: test_package.ScaledLogit, init_args: {index: 1, factor: 2.0}}", 2),
        ("test_package.second_logit", 1),
        ("[1]", 1),
    ],
)
def test_lightning_cli_takes_targets_by_their_path(monkeypatch, target, factor):
    configs = CONFIG, CONFIG.replace("target: 1", f"target: {target}")
    strength = [run_cli(config, monkeypatch).trainer.callback_metrics["gradcam/strength"].item() for config in configs]
    assert strength[1] == pytest.approx(factor * strength[0])


def test_lightning_cli_takes_all_that_a_file_can_say(monkeypatch):
    top = "{class_path: lightning_gradcam.TopTarget, init_args: {k: 2}}"
    config = CONFIG.replace("target: 1", f"target: {top}").replace("method: hirescam", "guided: true")
    config = config.replace("colormap: inferno", "counterfactual: true").replace("samples: [0, 5]", "samples: 2")
    cli = run_cli(config, monkeypatch)
    (callback,) = [item for item in cli.trainer.callbacks if isinstance(item, GradCAMCallback)]
    assert (callback.target, callback.guided) == (lightning_gradcam.TopTarget(2), 10)
    assert callback.display.counterfactual
    assert callback._history.tracks["gradcam"].previous.shape[0] == 4  # two maps of two samples
