"""TensorBoard: summaries of JPEG and GIF, a text, where the record lies; for the writers of torch and tensorboardX."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
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
    proto = import_module(f"{_protos(writer)}.summary_pb2")
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


def write_record(logger: Any, key: str, folder: Path, run_id: str) -> None:
    """Write where the record lies, which brings up the tab of :mod:`~lightning_gradcam.loggers.tab`.

    That is the way from the event file's folder, which holds where both are copied or mounted elsewhere, the absolute
    path, and the run's id, by which another run's record that lies there later is told from it.
    """
    writer = logger.experiment
    if not hasattr(writer, "_get_file_writer"):
        return
    events, record = Path(writer._get_file_writer().get_logdir()).resolve(), folder.resolve()
    place = {"id": run_id, "absolute": record.as_posix()}
    if events.drive == record.drive:  # else there is no way
        place["relative"] = Path(os.path.relpath(record, events)).as_posix()
    summary, tensor, types = (import_module(f"{_protos(writer)}.{name}_pb2") for name in ("summary", "tensor", "types"))
    plugin = summary.SummaryMetadata.PluginData(plugin_name="lightning_gradcam")
    metadata = summary.SummaryMetadata(plugin_data=plugin).SerializeToString()
    # With `data_class=DATA_CLASS_TENSOR`, without which it is not read: tensorboardX has no name for it, but keeps it.
    metadata = summary.SummaryMetadata.FromString(metadata + b"\x20\x02")
    text = tensor.TensorProto(dtype=types.DT_STRING, string_val=[json.dumps(place).encode()])
    value = summary.Summary.Value(tag=key, tensor=text, metadata=metadata)
    writer._get_file_writer().add_summary(summary.Summary(value=[value]), 0)
    writer.flush()


def _protos(writer: Any) -> str:
    """The package of the messages that a writer takes."""
    return f"{'tensorboardX' if type(writer).__module__.startswith('tensorboardX') else 'tensorboard.compat'}.proto"
