"""The package as a user meets it: imports, both Lightnings, the command line."""

import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from records import BOTH, LEFT, write, write_maps
from tiny import ROOT, TinyModule, loader, python

import lightning_gradcam
from lightning_gradcam import GradCAMCallback


def printed(code, **options):
    """What code prints in a fresh interpreter."""
    done = python("-c", code, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What a fresh interpreter has imported for the package that `lightning` had not, and the keys of a run there."""
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
import sys, torch, lightning.pytorch as pl
before = set(sys.modules)
from lightning_gradcam import *
print([name for name in {heavy} if name in set(sys.modules) - before])
sys.modules["pytorch_lightning"] = pl  # the tests' module, in the other distribution
from tiny import TinyModule, loader
callback = GradCAMCallback(samples=2)
trainer = pl.Trainer(callbacks=callback, max_epochs=1, logger=False, accelerator="cpu", enable_progress_bar=False,
                     enable_checkpointing=False)
trainer.fit(TinyModule(), loader(), loader())
print(sorted(key for key in trainer.callback_metrics if key.startswith("gradcam")))
"""
    light, *_, keys = printed(code, cwd=tmp_path_factory.mktemp("fresh")).splitlines()
    return light, keys


def test_import_is_light(fresh):
    assert fresh[0] == "[]"


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
    assert printed(code) == base


def test_fit_with_the_lightning_distribution(fresh):
    assert "'gradcam/seconds', 'gradcam/strength'" in fresh[1]


@pytest.mark.parametrize(
    "code",
    [
        "import lightning_gradcam",
        "from lightning_gradcam.record.cli import main; import contextlib\nwith contextlib.suppress(SystemExit):\n"
        " main(['--help'])",
    ],
)
def test_the_door_loads_neither_torch_nor_lightning(code):
    heavy = {"torch", "numpy", "pytorch_lightning", "lightning"}
    assert printed(f"{code}\nimport sys; print(sorted({heavy} & set(sys.modules)))").splitlines()[-1] == "[]"


def test_records_are_compared_and_shown_without_torch(tmp_path):
    maps = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 4)).astype(np.float32)
    volumes = write_maps(
        tmp_path / "volumes", maps, np.zeros((2, 8, 70, 70), np.uint8), {"all": np.ones((2, 8, 70, 70))}
    )
    weak, strong = (write(tmp_path / name, [[LEFT, LEFT], [LEFT, BOTH]]) for name in ("weak", "strong"))
    code = f"""
import sys
for name in ("torch", "torchvision", "lightning", "pytorch_lightning", "lightning_utilities", "scipy", "pandas"):
    sys.modules[name] = None  # an import of it fails
from lightning_gradcam.record.cli import main
print(main(["compare", {str(weak)!r}, {str(strong)!r}, "-o", "both.html"]), main(["report", {str(volumes)!r}]))
"""
    assert printed(code, cwd=tmp_path).splitlines()[-1] == "0 0"
    assert (tmp_path / "both.html").stat().st_size > 10_000
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_maps_and_records_need_no_lightning():
    code = "from lightning_gradcam import Batch, Display, Record, TopTarget, compare, explain, gradcam, guided_backprop"
    heavy = {"pytorch_lightning", "lightning"}
    assert printed(f"{code}\nimport sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_public_names():
    for name in lightning_gradcam.__all__:
        assert getattr(lightning_gradcam, name).__doc__
    homes = [name for names in lightning_gradcam._HOMES.values() for name in names]
    assert sorted(homes) == sorted([*lightning_gradcam.__all__, "__version__"])
    with pytest.raises(AttributeError, match="module 'lightning_gradcam' has no attribute 'nothing'"):
        lightning_gradcam.nothing  # noqa: B018
    assert set(lightning_gradcam.__all__) <= set(dir(lightning_gradcam))


def test_the_two_tables_of_keys_name_the_same():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8"), re.M)
    page = {key.partition("/")[2] for row in rows for key in re.findall(r"`([^`]+)`", row)}
    table = (inspect.getdoc(GradCAMCallback) or "").partition("Where the batch has groups")[0]
    docstring = set(re.findall(r"^``([^`]+)`` ", table, re.M))
    # The docstring has these within the row of another key.
    assert page - {"<number>/<group>", "insertion_random", "deletion_random"} == docstring
    assert len(page) > 30


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
    assert callback._session.probe.batch.ids == [0, 5]
    assert torch.isfinite(cli.trainer.callback_metrics["gradcam/strength"])


def test_lightning_cli_with_the_defaults(monkeypatch):
    cli = run_cli(CONFIG.split("      init_args")[0], monkeypatch)
    assert "gradcam/strength" in cli.trainer.callback_metrics


@pytest.mark.parametrize(
    ("target", "factor"),
    [
        ("{class_path: tiny.ScaledLogit, init_args: {index: 1, factor: 2.0}}", 2),
        ("tiny.second_logit", 1),
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
    assert callback._session.history.tracks["gradcam"].previous.shape[0] == 4  # two maps of two samples


@pytest.mark.parametrize(
    ("argument", "forms"),
    [
        ("target_layer", ["net.4", "[net.2, net.4]"]),
        ("samples", ["2", "[0, 5]", "{class_path: tiny.Images, init_args: {length: 3}}"]),
        (
            "target",
            ["label", "predicted", "1", "[0, 1]", "{class_path: lightning_gradcam.TopTarget, init_args: {k: 2}}"],
        ),
        ("method", ["layercam", "lightning_gradcam.attribution.methods.hirescam"]),
        ("batch_fn", ["lightning_gradcam.attribution.reading.default_batch"]),
        ("forward_fn", ["lightning_gradcam.attribution.functional.default_forward"]),
        ("drift", ["{reference: 0, alert_above: 0.5}"]),
        ("display", ["{scale: run, mean: 0.5, std: [0.2, 0.2, 0.2], class_names: [a, b, c]}"]),
        ("guided", ["true", "3"]),
        ("record", ["false", "folder"]),
        ("prefix", ["cam"]),
        ("on_error", ["raise"]),
    ],
)
def test_what_lightning_cli_saves_runs_again(argument, forms, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for number, form in enumerate(forms):
        Path("config.yaml").write_text(
            f"{CONFIG.split('      init_args')[0]}      init_args:\n        {argument}: {form}\n"
        )
        found = []
        for folder in ("first", "second"):
            monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "config.yaml"])
            saved = f"{folder}{number}.yaml"
            options = {"save_config_kwargs": {"config_filename": saved, "overwrite": True}}
            cli = LightningCLI(TinyModule, Data, **options)
            (callback,) = [one for one in cli.trainer.callbacks if isinstance(one, GradCAMCallback)]
            found.append((callback.question, callback.prefix, callback.drift, callback.display, callback.guided))
            text = next(Path().rglob(saved)).read_text()
            assert "Unable to serialize" not in text
            Path("config.yaml").write_text(text)
        assert found[0] == found[1]
