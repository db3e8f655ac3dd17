"""What is finished, to one logger: pictures above all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info
from PIL import Image

from lightning_gradcam._lightning import kinds
from lightning_gradcam.files import write_whole
from lightning_gradcam.picture.encode import jpeg
from lightning_gradcam.picture.text import printable

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

Sink = Callable[[str, Image.Image, int], None]  # key, picture, step


def tensorboard(logger: Any, key: str, picture: Image.Image, step: int) -> None:
    """Write a JPEG summary: ``add_image`` would make a PNG, five times larger and slower by far."""
    writer = logger.experiment
    if not hasattr(writer, "_get_file_writer"):
        writer.add_image(key, np.asarray(picture), step, dataformats="HWC")
        return
    package = "tensorboardX" if type(writer).__module__.startswith("tensorboardX") else "tensorboard.compat"
    proto = import_module(f"{package}.proto.summary_pb2")
    image = proto.Summary.Image(
        height=picture.height, width=picture.width, colorspace=3, encoded_image_string=jpeg(picture)
    )
    # Lightning closes the file after `fit`; asked this way, the writer opens the next one.
    writer._get_file_writer().add_summary(proto.Summary(value=[proto.Summary.Value(tag=key, image=image)]), step)


def wandb(logger: Any, key: str, picture: Image.Image, step: int) -> None:
    """Add the picture to the row that Lightning commits with the epoch's scalars, which carry the step."""
    from wandb import Image as WandbImage

    logger.experiment.log({key: WandbImage(picture, file_type="jpg")}, commit=False)


def write_card(logger: Any, key: str, card: Mapping[str, Any], step: int) -> None:
    """Tell a dashboard what is looked at: a table among TensorBoard's texts, an entry in W&B's config."""
    if "TensorBoardLogger" in kinds(logger):
        # As code, since TensorBoard would render markup in a sample's name, and load what an image there points to.
        plain = {name: printable(str(value)).replace("|", "/").replace("`", "'") for name, value in card.items()}
        rows = "\n".join(f"| {name} | `{value}` |" for name, value in plain.items())
        logger.experiment.add_text(key, f"| | |\n| --- | --- |\n{rows}", step)
    if "WandbLogger" in kinds(logger):
        logger.experiment.config.update({key: dict(card)}, allow_val_change=True)


def write_samples(logger: Any, key: str, pictures: Sequence[Image.Image], captions: Sequence[str]) -> None:
    """Add single captioned images to the row of the grid: W&B alone shows them well, at most 108 of a key."""
    if "WandbLogger" in kinds(logger):
        from wandb import Image as WandbImage

        images = [
            WandbImage(picture, caption=caption, file_type="jpg")
            for picture, caption in zip(pictures[:108], captions[:108], strict=True)
        ]
        logger.experiment.log({key: images}, commit=False)


def alert(logger: Any, title: str, text: str) -> None:
    """Send an alert where the logger has a way to: W&B, by mail or chat as the user has set it up."""
    if "WandbLogger" in kinds(logger):
        logger.experiment.alert(title=title, text=text)


# By the name of the logger's class or of one that it derives from, so that neither package is needed here.
# W&B comes first: TensorBoard writes on a thread of its own, whose checksums in Python keep W&B waiting.
SINKS: dict[str, Callable[[Any, str, Image.Image, int], None]] = {
    "WandbLogger": wandb,
    "TensorBoardLogger": tensorboard,
}


def leaves_nothing(trainer: Trainer) -> bool:
    """Whether Lightning writes nothing to disk: with ``fast_dev_run`` or ``barebones``."""
    return bool(getattr(trainer, "fast_dev_run", False) or getattr(trainer, "barebones", False))


def find_sinks(trainer: Trainer, folder: Path) -> list[Sink]:
    """A sink for each of the trainer's loggers that takes pictures; where none does, files in the folder.

    Raises:
        ValueError: If the folder cannot be made.
    """
    if leaves_nothing(trainer):
        return []
    sinks: list[Sink] = [
        partial(sink, logger) for name, sink in SINKS.items() for logger in trainer.loggers if name in kinds(logger)
    ]
    if sinks:
        return sinks
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"no logger of the trainer takes pictures, and {str(folder)!r} cannot be made for files: {error}; "
            "give the trainer another `default_root_dir`, or a TensorBoardLogger or WandbLogger"
        ) from error
    return [partial(files, folder)]


def files(folder: Path, key: str, picture: Image.Image, step: int) -> None:
    """Write a JPEG file ``gradcam-grid-step=00000120.jpg``; never over one that is there, and never a part of one."""
    name = f"{key.replace('/', '-')}-step={step:08d}"
    if len(name.encode()) > 200:  # most file systems end at 255 bytes
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-step={step:08d}"
    endings = ("" if number == 0 else f"-{number}" for number in count())
    path = next(path for ending in endings if not (path := folder / f"{name}{ending}.jpg").exists())
    write_whole(path, jpeg(picture))


def run_folder(trainer: Trainer, prefix: str) -> Path:
    """The folder of this run for what we write: beside the checkpoints, where ``ModelCheckpoint`` puts them.

    That is ``save_dir/name/version/prefix`` of the first logger. Without loggers runs share the trainer's
    ``default_root_dir``, so the folder gets a number where the name is taken. A folder on a remote store is replaced
    by the trainer's, or by the working directory.
    """
    root = _local(trainer.default_root_dir)
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(_local(logger.save_dir or root, root), str(logger.name), version, prefix)
    folder, number = root / prefix, 0
    while folder.exists():
        number += 1
        folder = root / f"{prefix}_{number}"
    return folder


def _local(folder: str | Path, otherwise: str | Path = ".") -> Path:
    """The folder, or the other one where it lies on a remote store."""
    plain = str(folder).removeprefix("file://")
    if "://" not in plain:
        return Path(plain)
    rank_zero_info(
        f"GradCAMCallback: {plain} is not on this machine; what is written to files goes to "
        f"{str(Path(otherwise).resolve())!r}. `record=` names another folder for the record."
    )
    return Path(otherwise)
