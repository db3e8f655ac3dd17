"""What a report of a fault should hold: versions, and a run without what its data are."""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from records import write, write_maps
from tiny import python

from lightning_gradcam import __version__
from lightning_gradcam.record.cli import main


def test_the_versions_of_what_is_installed(capsys, monkeypatch):
    monkeypatch.setattr("lightning_gradcam.record.doctor._PACKAGES", ("torch", "numpy", "no-such-package"))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"lightning-gradcam {__version__}"
    assert lines[1] == f"Python {sys.version.split()[0]}"
    assert lines[3:5] == [f"torch {version('torch')}", f"numpy {version('numpy')}"]
    assert lines[5].startswith("device ")
    assert len(lines) == 6


def test_a_torch_that_does_not_load_is_what_is_asked_about(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 0
    assert "device unknown: ModuleNotFoundError" in capsys.readouterr().out


def test_a_run_without_its_ids_labels_and_names(capsys):
    write("weak", [[np.ones((2, 2), np.float32)] * 2] * 3, ids=["patient-17", "patient-4"], class_names=["well", "ill"])
    assert main(["doctor", "weak"]) == 0
    said = capsys.readouterr().out
    assert "samples: 2\n" in said
    assert "regions: [[2, 4], [2, 8, 8]]\n" in said
    assert 'maps: {"gradcam": [3, 2, 2, 2]}\n' in said
    assert "epochs: [0, 2]\n" in said
    for private in ("patient", "well", "ill", "top", "left"):
        assert private not in said.split("schema:")[1]


def test_of_a_record_that_cannot_be_read_the_versions_are_there(capsys):
    write_maps("run", np.ones((1, 2, 4, 4)), np.zeros((2, 8, 8), np.uint8))
    for path, word in (("nowhere", "no record"), ("run", "damaged")):
        if word == "damaged":
            Path("run/samples.npz").write_bytes(b"")
        assert main(["doctor", path]) == 2
        out, err = capsys.readouterr()
        assert out.startswith("lightning-gradcam ")
        assert word in err


@pytest.mark.parametrize("command", [("-m", "lightning_gradcam"), ("-m", "lightning_gradcam.record.cli")])
def test_the_version(command):
    done = python(*command, "--version")
    assert (done.returncode, done.stdout) == (0, f"lightning-gradcam {__version__}\n")
