"""Which of the trainer's loggers takes what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lightning_gradcam.loggers import files, tensorboard, wandb
from lightning_gradcam.picture.encode import Picture

SendPicture = Callable[[str, Picture, int], None]  # key, picture, step

# By the name of the logger's class or of one that it derives from, so that neither package is needed here.
# W&B comes first: TensorBoard writes on a thread of its own, whose checksums in Python keep W&B waiting.
PICTURES = {"WandbLogger": wandb.write_picture, "TensorBoardLogger": tensorboard.write_picture}
_AXES = {"WandbLogger": wandb.write_axes}
_CARDS = {"WandbLogger": wandb.write_card, "TensorBoardLogger": tensorboard.write_card}
_RECORDS = {"TensorBoardLogger": tensorboard.write_record}
_SAMPLES = {"WandbLogger": wandb.write_samples}
_ALERTS = {"WandbLogger": wandb.send_alert}


def base_names(thing: Any) -> set[str]:
    """The names of a thing's class and of those it derives from, which both distributions and Fabric give alike."""
    return {base.__name__ for base in type(thing).__mro__}


def comes_last(send: SendPicture) -> bool:
    """Whether sending is best left to the end.

    TensorBoard writes on a thread of its own, which computes checksums in Python and so takes time from the others.
    """
    return getattr(send, "func", None) is tensorboard.write_picture


def find_destinations(loggers: Sequence[Any], folder: Path) -> list[SendPicture]:
    """What sends a picture to each logger that takes some; where none does, to files in the folder.

    Raises:
        ValueError: If the folder cannot be made.
    """
    found: list[SendPicture] = [
        partial(write, logger) for name, write in PICTURES.items() for logger in loggers if name in base_names(logger)
    ]
    if found:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"no logger of the trainer takes pictures, and {str(folder)!r} cannot be made for files: {error}; "
            "give the trainer another `default_root_dir`, or a TensorBoardLogger or WandbLogger"
        ) from error
    return [partial(files.write_picture, folder)]


def write_axes(logger: Any, step: int, epoch: int) -> None:
    """Tell when the pictures that follow are of, where the logger does not take that with each."""
    _where_taken(_AXES, logger, step, epoch)


def write_card(logger: Any, key: str, card: Mapping[str, Any], step: int) -> None:
    """Tell a dashboard what is looked at: a table among TensorBoard's texts, an entry in W&B's config."""
    _where_taken(_CARDS, logger, key, card, step)


def write_record(logger: Any, key: str, folder: Path) -> None:
    """Tell TensorBoard where the record lies, for its tab."""
    _where_taken(_RECORDS, logger, key, folder)


def write_samples(logger: Any, key: str, pictures: Sequence[Image], captions: Sequence[str]) -> None:
    """Give single captioned images to W&B, which alone shows them well."""
    _where_taken(_SAMPLES, logger, key, pictures, captions)


def send_alert(logger: Any, title: str, text: str) -> None:
    """Send an alert where the logger has a way to."""
    _where_taken(_ALERTS, logger, title, text)


def _where_taken(writers: Mapping[str, Callable[..., None]], logger: Any, *content: Any) -> None:
    for name in writers.keys() & base_names(logger):
        writers[name](logger, *content)
