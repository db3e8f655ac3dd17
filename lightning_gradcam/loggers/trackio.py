"""Trackio: pictures, pages and alerts, by the loggers called ``TrackioLogger`` that projects bring, each its own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_gradcam.picture.encode import Picture, encode


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Log a JPEG or a GIF, which Trackio copies; of an image it would make a PNG."""
    data, ending = encode(picture)
    with TemporaryDirectory() as folder:
        path = Path(folder, f"picture.{ending}")
        path.write_bytes(data)
        _run(logger).log({key: import_module("trackio").Image(str(path))}, step=step)


def write_page(logger: Any, key: str, page: str, step: int) -> None:
    """Log the page."""
    _run(logger).log({key: import_module("trackio").Html(page, inject=False)}, step=step)


def send_alert(logger: Any, title: str, text: str) -> None:
    """Send an alert, which the dashboard shows, and a webhook gets where the user has set one up."""
    _run(logger).alert(title=title, text=text)


def _run(logger: Any) -> Any:
    """The logger's run, or where it does not hand that out, Trackio itself, which logs to the run of this thread."""
    return logger.experiment if hasattr(logger, "experiment") else import_module("trackio")
