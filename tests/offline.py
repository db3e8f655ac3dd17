"""Reads back what W&B has written of an offline run."""

import json
import struct
import time
from pathlib import Path


def records(path):
    """The records of a W&B run file: LevelDB's log format behind a header of seven bytes.

    Blocks of 32 KiB hold chunks of checksum (4 bytes), length (2) and type (1: whole, 2: first, 3: middle, 4: last).
    """
    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        left = -at % 32768
        if 0 < left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if at + 7 + length > len(data):  # W&B is writing it: it closes the file while or after `finish` returns
            return
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def rows(logger):
    """The history rows of an offline run, from its own file."""
    from wandb.proto.wandb_internal_pb2 import Record

    logger.experiment.finish()
    (path,) = Path("wandb").glob("offline-run-*/*.wandb")
    found = []
    for _ in range(150):  # W&B writes the file from a process of its own
        found = [Record.FromString(data) for data in records(path)]
        if any(record.HasField("exit") for record in found):
            break
        time.sleep(0.2)
    history = [record.history.item for record in found]
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items} for items in history if items]


def artifact_files():
    """The paths within each artifact of a finished offline run, where tables keep their pictures, a list each."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = Path("wandb").glob("offline-run-*/*.wandb")
    found = [Record.FromString(data) for data in records(path)]
    artifacts = [record.artifact for record in found if record.HasField("artifact")]
    return [[one.path for one in artifact.manifest.contents] for artifact in artifacts]
