"""Any logger with a method ``log_image(key, images, step)``, such as SwanLab's and many a project's own."""

from __future__ import annotations

from inspect import signature
from typing import Any

from lightning_gradcam.picture.encode import Picture, still


def are_taken_by(logger: Any) -> bool:
    """Whether the logger has the method and needs nothing else for it; looked up in its class, since some make up any.

    A method of that name with other arguments, such as ``log_image(name, image)``, is another one.
    """
    try:
        arguments = signature(type(logger).log_image)
        arguments.bind(logger, key="", images=[], step=0)
    except Exception:  # a class may do anything when it is asked for an attribute
        return False
    return {"key", "images", "step"} <= arguments.parameters.keys()


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Hand the picture over, or the first frame of one that plays."""
    logger.log_image(key=key, images=[still(picture)], step=step)
