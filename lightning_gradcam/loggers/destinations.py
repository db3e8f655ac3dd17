"""Which of the trainer's loggers takes what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL.Image import Image

from lightning_gradcam.loggers import comet, files, images, litlogger, mlflow, tensorboard, trackio, wandb
from lightning_gradcam.picture.encode import Picture

SendPicture = Callable[[str, Picture, int], None]  # key, picture, step

# By the name of the logger's class or of one that it derives from, so that none of their packages is needed here. What
# a logger takes are the functions of its module; what it has no function for, it does not take.
LOGGERS: Mapping[str, ModuleType] = {
    "WandbLogger": wandb,  # pictures, samples, pages, tables, a card, alerts
    "TensorBoardLogger": tensorboard,  # pictures, a card, the way to the record
    "MLFlowLogger": mlflow,  # pictures, pages
    "CometLogger": comet,  # pictures, pages
    "LitLogger": litlogger,  # pictures, pages
    "TrackioLogger": trackio,  # pictures, pages, alerts
}


def base_names(thing: Any) -> set[str]:
    """The names of a thing's class and of those it derives from, which both distributions and Fabric give alike."""
    return {base.__name__ for base in type(thing).__mro__}


def _module(logger: Any) -> ModuleType | None:
    names = base_names(logger)
    own = next((module for name, module in LOGGERS.items() if name in names), None)
    return images if own is None and images.are_taken_by(logger) else own


def _writer(logger: Any, what: str) -> Callable[..., None] | None:
    """The function that writes this to the logger; ``None`` where it takes none."""
    write = getattr(_module(logger), what, None)
    return None if write is None else partial(write, logger)


def _where_taken(what: str, logger: Any, *content: Any) -> None:
    write = _writer(logger, what)
    if write is not None:
        write(*content)


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
    found = [send for logger in loggers if (send := _writer(logger, "write_picture")) is not None]
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


def write_axes(logger: Any, step: int, epoch: int, commit: bool = False) -> None:
    """Tell when what is sent is of, where the logger does not take that with each.

    Args:
        logger: The logger.
        step: Of the pictures.
        epoch: Of the pictures.
        commit: Whether nothing of this step is logged any more.
    """
    _where_taken("write_axes", logger, step, epoch, commit)


def write_card(logger: Any, key: str, card: Mapping[str, Any], step: int) -> None:
    """Tell a dashboard what is looked at: a table among TensorBoard's texts, an entry in W&B's config."""
    _where_taken("write_card", logger, key, card, step)


def write_record(logger: Any, key: str, folder: Path, run_id: str) -> None:
    """Tell TensorBoard where the record of the run with this id lies, for its tab."""
    _where_taken("write_record", logger, key, folder, run_id)


def write_samples(logger: Any, key: str, pictures: Sequence[Image], captions: Sequence[str]) -> None:
    """Give single captioned images to W&B, which alone shows them well."""
    _where_taken("write_samples", logger, key, pictures, captions)


def takes_pages(logger: Any) -> bool:
    """Whether a page would be shown or kept."""
    return _writer(logger, "write_page") is not None


def write_page(logger: Any, key: str, page: str, step: int) -> None:
    """Give a page, the text of an HTML file, to a logger that takes one."""
    _where_taken("write_page", logger, key, page, step)


def takes_tables(logger: Any) -> bool:
    """Whether a table with pictures would be shown."""
    return _writer(logger, "write_table") is not None


def write_table(logger: Any, key: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Give a table to W&B, the cells by the name of their column: pictures, texts, numbers, bools, and ``None``."""
    _where_taken("write_table", logger, key, columns)


def send_alert(logger: Any, title: str, text: str) -> None:
    """Send an alert where the logger has a way to."""
    _where_taken("send_alert", logger, title, text)
