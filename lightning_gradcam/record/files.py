"""Files that are whole or not there: a reader, a kill or a full disk never leaves a part of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there; one that is there is replaced.

    Raises:
        OSError: If it cannot be written; nothing is left then.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
