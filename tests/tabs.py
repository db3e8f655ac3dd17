"""Runs as the callback leaves them for the tab in TensorBoard, and TensorBoard itself."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from records import LEFT, RIGHT, write
from tiny import ROOT, environment
from torch.utils.tensorboard import SummaryWriter

from lightning_gradcam.loggers.tensorboard import write_record

OBSERVATIONS = ([LEFT, RIGHT], [LEFT, LEFT])


def logged(run, *observations, prefix="gradcam", folder=None, **options):
    """A run as the callback leaves it: a record, and in the event file where that lies."""
    folder = Path(folder or Path(run, prefix))
    if observations:
        write(folder, observations, **{"name": "as the record has it"} | options)
    writer = SummaryWriter(run)
    about = folder / "record.json"
    run_id = json.loads(about.read_text())["id"] if about.exists() else "of a run whose record is gone"
    write_record(SimpleNamespace(experiment=writer), f"{prefix}/record", folder, run_id)
    writer.close()
    return folder


def grow(folder):
    """Another observation."""
    last = sorted(Path(folder).glob("observation=*"))[-1]
    with np.load(last) as arrays:
        arrays = dict(arrays)
    row = json.loads(arrays["row"].tobytes())
    row["epoch"] += 1
    arrays["row"] = np.frombuffer(json.dumps(row).encode(), np.uint8)
    number = int(last.name[12:18]) + 1
    np.savez(Path(folder, f"observation={number:06d}-epoch={row['epoch']}-step={row['step']}.npz"), **arrays)


def install_entry_point(site):
    """Make the entry point known to an interpreter that looks in this folder first, whatever is installed."""
    entry = Path(site, "lightning_gradcam-0.dist-info")
    entry.mkdir(parents=True)
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-gradcam\nVersion: 0\n")
    project = (ROOT / "pyproject.toml").read_text()
    group = project.partition("[project.entry-points.tensorboard_plugins]\n")[2].partition("\n\n")[0]
    (entry / "entry_points.txt").write_text("[tensorboard_plugins]\n" + group.replace('"', "") + "\n")


@contextmanager
def tensorboard(*arguments):
    """A TensorBoard of its own; gives its address. At the end it has told of no traceback."""
    if not Path("site").exists():
        install_entry_point("site")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", *arguments, f"--port={port}", "--reload_interval=1"]
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([str(Path("site").absolute()), variables["PYTHONPATH"]])
    prefix = next((one.partition("=")[2] for one in arguments if one.startswith("--path_prefix=")), "")
    log = Path(f"tensorboard_{port}.log")
    with log.open("w") as opened:
        process = subprocess.Popen(command, env=variables, stdout=opened, stderr=subprocess.STDOUT)
    try:
        yield f"http://localhost:{port}{prefix}/"
    finally:
        process.terminate()
        process.wait()
    assert "Traceback" not in log.read_text()
