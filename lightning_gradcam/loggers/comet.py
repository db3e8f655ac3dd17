"""Comet: images in the graphics tab by name and step, and assets."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from lightning_gradcam.picture.encode import Picture, encode


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Log the bytes of a JPEG, or of a GIF, which Comet would otherwise make a PNG of."""
    data, ending = encode(picture)
    logger.experiment.log_image(BytesIO(data), name=f"{key}.{ending}", step=step)


def write_page(logger: Any, key: str, page: str, step: int) -> None:
    """Keep the page as an asset, over an earlier one: the HTML tab would join it to what the user has put there."""
    logger.experiment.log_asset_data(page, name=f"{key}.html", overwrite=True, step=step)
