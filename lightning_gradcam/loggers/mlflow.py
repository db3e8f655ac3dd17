"""MLflow: images by key with a slider over the steps, and artifacts."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

from lightning_gradcam.picture.encode import Picture, still


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Log an image, or the first frame of one that plays; MLflow encodes it on a thread where the version has one."""
    log_image = logger.experiment.log_image
    aside = {"synchronous": False} if "synchronous" in signature(log_image).parameters else {}
    log_image(logger.run_id, still(picture), key=_allowed(key), step=step, **aside)


def write_page(logger: Any, key: str, page: str, step: int) -> None:
    """Keep the page as an artifact, over an earlier one."""
    logger.experiment.log_text(logger.run_id, page, f"{_allowed(key)}.html")


def _allowed(key: str) -> str:
    """The key without what MLflow refuses, as the logger of Lightning cuts the keys of numbers."""
    return re.sub(r"[^a-zA-Z0-9_/. -]", "", key)
