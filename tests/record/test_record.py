"""The record on disk: it can be read at any time, and what cannot be read is refused in words."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from records import written
from tiny import environment

from lightning_gradcam import Record
from lightning_gradcam.record.record import sample_rows


def test_samples_hold_what_the_model_says_of_each():
    logits = torch.tensor([[0.0, 0.0], [9.0, 1.0], [0.0, 3.0]])
    probabilities = logits.softmax(1).numpy()
    rows = sample_rows(
        np.array([1.0, 2.0, 3.0]), probabilities, np.array([0, 0, 1]), np.array([1, 0, 0]), np.array([0, 1, 7])
    )
    assert rows["score"].tolist() == [1, 2, 3]
    assert rows["predicted"].tolist() == [0, 0, 1]
    assert rows["right"].tolist() == [1, 0, 0]
    assert rows["confidence"] == pytest.approx(probabilities.max(1))
    assert rows["of_label"] == pytest.approx([0.5, probabilities[1, 1], np.nan], nan_ok=True)
    unknown = sample_rows(np.zeros(1), None, None, None, None)
    assert (unknown["predicted"], unknown["right"]) == (-1, -1)
    assert np.isnan([unknown["confidence"], unknown["of_label"]]).all()


def test_a_reader_never_finds_a_part():
    """A process writes as fast as it can while this one reads."""
    script = (
        "from records import *\n"
        "writer = written('run', 1)\n"
        "print('ready', flush=True)\n"
        "for epoch in range(1, 400):\n"
        "    samples = sample_rows(np.zeros(2), None, None, None, None)\n"
        "    writer.write(epoch, epoch, {'gradcam': np.zeros((2, 40, 40), np.float32)[:, :4, :4]}, samples, {})\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout.readline() == "ready\n"
        seen = [len(Record.open("run").epochs)]
        while process.poll() is None:
            seen.append(len(Record.open("run").epochs))
    assert process.returncode == 0
    assert seen == sorted(seen)
    assert len(Record.open("run").epochs) == 400


def spoil_json(**changes):
    def spoil(folder):
        content = json.loads((folder / "record.json").read_text())
        (folder / "record.json").write_text(json.dumps(content | changes))

    return spoil


def object_array(folder):
    np.savez(folder / "observation=000099-epoch=9-step=99.npz", samples=np.array([{}], dtype=object))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: (folder / "record.json").unlink(), FileNotFoundError, "has no 'record.json'; give the folder"),
        (lambda folder: (folder / "record.json").write_text("{"), ValueError, "is damaged or of another program"),
        (lambda folder: (folder / "record.json").write_text("[]"), ValueError, "is damaged or of another program"),
        (
            lambda folder: (folder / "record.json").write_text('{"schema": 2}'),
            ValueError,
            "class_names, fingerprint|name, id, settings",
        ),
        (spoil_json(schema=7), ValueError, "has schema 7, this version of lightning_gradcam reads 2 and 3"),
        (spoil_json(settings={"layers": {"other": ""}}), ValueError, "its files do not fit each other"),
        (lambda folder: (folder / "samples.npz").unlink(), ValueError, "is damaged, it has no 'samples.npz'"),
        (
            lambda folder: (folder / "observation=000001-epoch=1-step=10.npz").write_bytes(b"PK\x03\x04"),
            ValueError,
            "observation=000001-epoch=1-step=10.npz' is damaged: .*; take it away",
        ),
        (object_array, ValueError, "is damaged: Object arrays cannot be loaded when allow_pickle=False"),
        (
            lambda folder: [file.unlink() for file in folder.glob("observation=*")],
            ValueError,
            "holds no observation yet",
        ),
    ],
)
def test_what_cannot_be_read(spoil, error, message):
    folder = written("run/gradcam").folder
    assert Record.open("run").epochs.tolist() == [0, 1, 2]
    spoil(folder)
    with pytest.raises(error, match=message):
        Record.open(folder)


def test_what_is_no_record():
    with pytest.raises(FileNotFoundError, match="no record at 'nowhere', which is no folder"):
        Record.open("nowhere")
    written("two/a")
    written("two/b")
    with pytest.raises(FileNotFoundError, match="'two' holds several records, name one: two/a, two/b"):
        Record.open("two")
