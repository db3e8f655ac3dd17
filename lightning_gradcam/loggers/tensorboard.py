"""TensorBoard: summaries of JPEG and GIF, and a text, for the writers of torch and of tensorboardX."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from lightning_gradcam.picture.encode import Picture, encode, still
from lightning_gradcam.picture.text import printable


def write_picture(logger: Any, key: str, picture: Picture, step: int) -> None:
    """Write a JPEG or GIF summary, which both are shown.

    ``add_image`` would make a PNG, five times larger and slower by far, and of what plays the first frame alone.
    """
    writer, first = logger.experiment, still(picture)
    if not hasattr(writer, "_get_file_writer"):
        writer.add_image(key, np.asarray(first), step, dataformats="HWC")
        return
    package = "tensorboardX" if type(writer).__module__.startswith("tensorboardX") else "tensorboard.compat"
    proto = import_module(f"{package}.proto.summary_pb2")
    image = proto.Summary.Image(
        height=first.height, width=first.width, colorspace=3, encoded_image_string=encode(picture)[0]
    )
    # Lightning closes the file after `fit`; asked this way, the writer opens the next one.
    writer._get_file_writer().add_summary(proto.Summary(value=[proto.Summary.Value(tag=key, image=image)]), step)


def write_card(logger: Any, key: str, card: Mapping[str, Any], step: int) -> None:
    """Write a table among the texts."""
    # As code, since TensorBoard would render markup in a sample's name, and load what an image there points to.
    plain = {name: printable(str(value)).replace("|", "/").replace("`", "'") for name, value in card.items()}
    rows = "\n".join(f"| {name} | `{value}` |" for name, value in plain.items())
    logger.experiment.add_text(key, f"| | |\n| --- | --- |\n{rows}", step)
