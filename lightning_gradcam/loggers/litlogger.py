"""LitLogger: a series of images by key, and files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_gradcam.picture.encode import Picture, still


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Append an image, or the first frame of one that plays."""
    from litlogger import Image

    logger.experiment[key].append(Image(still(picture), format="jpg"), step=step)


def write_page(logger: Any, key: str, page: str, step: int) -> None:
    """Keep the page as a file, over an earlier one."""
    from litlogger import File

    with TemporaryDirectory() as folder:  # it is taken by its path, and copied or linked at once
        path = Path(folder, "page.html")
        path.write_text(page, encoding="utf-8")
        logger.experiment[f"{key}.html"] = File(str(path))
