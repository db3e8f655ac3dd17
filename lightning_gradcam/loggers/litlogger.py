"""LitLogger: a series of images by key, and files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_gradcam.picture.encode import Picture, still


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Append an image, or the first frame of one that plays."""
    image = import_module("litlogger").Image(still(picture), format="jpg")
    logger.experiment[key].append(image, step=step)


def write_page(logger: Any, key: str, page: str, step: int) -> None:
    """Keep the page as a file, over an earlier one."""
    with TemporaryDirectory() as folder:  # it is taken by its path, and copied or linked at once
        path = Path(folder, "page.html")
        path.write_text(page, encoding="utf-8")
        logger.experiment[f"{key}.html"] = import_module("litlogger").File(str(path))
