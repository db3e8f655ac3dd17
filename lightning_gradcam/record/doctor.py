"""What a report of a fault should hold: the versions of what matters, and what a run was asked for."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lightning_gradcam.record.record import Record
from lightning_gradcam.version import __version__

# What the package imports, and what users' projects bring beside it.
_PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "lightning",
    "lightning-utilities",
    "numpy",
    "pillow",
    "tensorboard",
    "wandb",
    "scipy",
    "timm",
    "transformers",
)


def versions() -> list[str]:
    """A line for each of what matters that is installed, and what torch computes on."""
    lines = [f"lightning-gradcam {__version__}", f"Python {platform.python_version()}", platform.platform()]
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return [*lines, f"device {_device()}"]


def _device() -> str:
    try:
        import torch
    except Exception as error:  # a broken installation is what this may be asked about
        return f"unknown: {type(error).__name__}: {error}"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def run_in_words(path: str | Path) -> list[str]:
    """What a run was asked for and what its record holds, without the ids, labels and names of its data.

    Raises:
        FileNotFoundError: If there is no record.
        ValueError: If it is damaged or of another version.
    """
    record = Record.open(path)
    about = record.about
    shown = {
        "schema": about["schema"],
        "settings": about["settings"],
        "size": about["size"],
        "time": about["time"],
        "spacing": about["spacing"],
        "samples": len(about["ids"]),
        "pictured": len(record.pictured),
        "with labels": about["labels"] is not None,
        "groups": len(set(about.get("groups") or ())),
        "classes": len(about["class_names"] or ()),
        "regions": [list(region.shape) for region in record.regions.values()],
        "maps": {prefix: list(maps.shape) for prefix, maps in record.maps.items()},
        "epochs": [int(record.epochs[0]), int(record.epochs[-1])],
    }
    return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items()]
