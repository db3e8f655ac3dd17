"""Weights & Biases: pictures in the row of the epoch's numbers, the config, alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL.Image import Image

from lightning_gradcam.picture.encode import Picture, gif

_MOST = 108  # images that W&B shows of a key


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Add the picture to the row that Lightning commits with the epoch's scalars, which carry the step."""
    from wandb import Image as WandbImage
    from wandb import Video

    plays = isinstance(picture, list)
    media = Video(BytesIO(gif(picture)), format="gif") if plays else WandbImage(picture, file_type="jpg")
    logger.experiment.log({key: media}, commit=False)


def write_axes(logger: Any, step: int, epoch: int) -> None:
    """Put both into the row of the pictures, which the user's own ``log`` may commit before Lightning does."""
    logger.experiment.log({"trainer/global_step": step, "epoch": epoch}, commit=False)


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


def send_alert(logger: Any, title: str, text: str) -> None:
    """Send an alert, by mail or chat as the user has set it up."""
    logger.experiment.alert(title=title, text=text)
