"""Weights & Biases: pictures and pages in the row of the epoch's numbers, a table, the config, alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL.Image import Image

from lightning_gradcam.picture.encode import Picture, gif

_MOST = 108  # images that W&B shows of a key, in a panel or in a table


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Add the picture to the row that Lightning commits with the epoch's scalars, which carry the step."""
    from wandb import Image as WandbImage
    from wandb import Video

    plays = isinstance(picture, list)
    media = Video(BytesIO(gif(picture)), format="gif") if plays else WandbImage(picture, file_type="jpg")
    logger.experiment.log({key: media}, commit=False)


def write_axes(logger: Any, step: int, epoch: int, commit: bool = False) -> None:
    """Put both into the row of the pictures, which the user's own ``log`` may commit before Lightning does."""
    logger.experiment.log({"trainer/global_step": step, "epoch": epoch}, commit=commit)


def write_card(logger: Any, key: str, card: Mapping[str, Any], step: int) -> None:
    """Add an entry to the config."""
    logger.experiment.config.update({key: dict(card)}, allow_val_change=True)


def write_samples(logger: Any, key: str, pictures: Sequence[Image], captions: Sequence[str]) -> None:
    """Add single captioned images, at most 108 of them, to the row of the grid."""
    from wandb import Image as WandbImage

    images = [
        WandbImage(picture, caption=caption, file_type="jpg")
        for picture, caption in zip(pictures[:_MOST], captions[:_MOST], strict=True)
    ]
    logger.experiment.log({key: images}, commit=False)


def write_page(logger: Any, key: str, page: str, step: int) -> None:
    """Add the page to the row, as it is: W&B would add a stylesheet of its own."""
    from wandb import Html

    logger.experiment.log({key: Html(page, inject=False)}, commit=False)


def write_table(logger: Any, key: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Add a table to the row, of at most 108 lines."""
    from wandb import Image as WandbImage
    from wandb import Table

    def cell(value: Any) -> Any:
        return WandbImage(value, file_type="jpg") if isinstance(value, Image) else value

    lines: list[Any] = [[cell(value) for value in line] for line in list(zip(*columns.values(), strict=True))[:_MOST]]
    logger.experiment.log({key: Table(columns=list(columns), data=lines)}, commit=False)


def send_alert(logger: Any, title: str, text: str) -> None:
    """Send an alert, by mail or chat as the user has set it up."""
    logger.experiment.alert(title=title, text=text)
