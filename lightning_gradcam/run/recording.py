"""What of a run goes into its record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_gradcam.attribution.methods import METHODS, SIGNED_METHODS
from lightning_gradcam.record.record import is_record
from lightning_gradcam.record.writer import Writer, sample_rows
from lightning_gradcam.run.failures import warn
from lightning_gradcam.run.pictures import Look
from lightning_gradcam.run.probe import Probe, describe_samples
from lightning_gradcam.run.trainer import Trainer


def open_record(trainer: Trainer, probe: Probe, folder: Path, resumed: dict[str, Any] | None) -> Writer:
    """Claim a folder for the record, and write there what is the same for all observations.

    Args:
        trainer: The trainer.
        probe: What all observations share.
        folder: Where it lies if the settings name no other.
        resumed: The record of the run that is resumed, if it is to go on.

    Raises:
        ValueError: If the folder cannot be written to.
    """
    settings, rows, run = probe.settings, probe.rows, folder.parent.resolve()
    name = f"{run.parent.name}_{run.name}" if re.fullmatch(r"version_\d+", run.name) else run.name
    if not isinstance(settings.record, bool):
        folder = Path(settings.record)
        name = folder.resolve().name
    about = {
        "name": name,
        "settings": {
            "model": type(trainer.lightning_module).__name__,
            "layers": probe.layers,
            "question": settings.question,
            "every_n_epochs": settings.every_n_epochs,
            "precision": str(trainer.precision),
        },
        **describe_samples(rows, probe.fingerprint),
        "time": rows.time,
        "spacing": None if rows.spacing is None else list(rows.spacing),
        "pictured": probe.pictured_rows,
        "groups": list(rows.groups),
        "class_names": None if probe.class_names is None else list(probe.class_names),
        "signed": settings.method in SIGNED_METHODS or settings.method not in METHODS.values(),
    }
    regions: dict[str, Any] = {name: _array(region) for name, region in rows.regions.items()}
    grey = (probe.in_pictures.photos * 255).round().byte().numpy()
    if resumed and not is_record(Path(resumed["folder"])):
        warn(
            f"GradCAMCallback: the record of the resumed run is no longer in {resumed['folder']!r}, or of "
            "another version; this one starts with what follows."
        )
    try:
        return Writer(folder, about, grey, regions, resumed, (trainer.current_epoch, trainer.global_step))
    except OSError as error:
        raise ValueError(
            f"the record cannot be written to {str(folder)!r}: {error}; give `record=` another folder, or False"
        ) from error


def write_look(writer: Writer, look: Look, epoch: int, step: int, again: bool = False) -> None:
    """Add a look, taken after so many optimizer steps, to the record; with ``again`` in place of the last one."""
    seen, prediction = look.seen, look.seen.prediction
    probabilities = classes = right = None
    if prediction is not None:
        probabilities, classes, right = prediction.probabilities, prediction.classes, prediction.right
    values = (seen.scores, probabilities, classes, right, look.probe.rows.labels, seen.target_classes)
    maps: dict[str, Any] = {prefix: _array(maps) for prefix, maps in seen.maps.items()}
    writer.write(epoch, step, maps, sample_rows(*map(_array, values)), look.measured.numbers, again)


def _array(tensor: Tensor | None) -> Any:
    """A tensor as an array; numpy has no bfloat16."""
    if tensor is None:
        return None
    values: np.ndarray = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    return values
