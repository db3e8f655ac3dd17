"""JPEG and GIF files in a folder, where no logger takes pictures."""

from __future__ import annotations

import hashlib
from itertools import count
from pathlib import Path

from lightning_gradcam.picture.encode import Picture, encode
from lightning_gradcam.record.files import write_whole


def write_picture(folder: Path, key: str, picture: Picture, step: int) -> None:
    """Write a file ``gradcam-grid-step=00000120.jpg``, or ``.gif`` of what plays.

    Never over one that is there, and never a part of one.
    """
    name = f"{key.replace('/', '-')}-step={step:08d}"
    if len(name.encode()) > 200:  # most file systems end at 255 bytes
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-step={step:08d}"
    data, ending = encode(picture)
    numbers = ("" if number == 0 else f"-{number}" for number in count())
    path = next(path for number in numbers if not (path := folder / f"{name}{number}.{ending}").exists())
    write_whole(path, data)
