"""What a type checker knows of the package, and what it says to a user; `slow`."""

import json
import os
import subprocess
import sys

import pytest
from tiny import ROOT, python

pytestmark = pytest.mark.slow

PROGRAM = ROOT / "tests" / "user_program.py"


def test_pyright_knows_every_type():
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--verifytypes",
        "lightning_gradcam",
        "--ignoreexternal",
        "--outputjson",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(done.stdout)["typeCompleteness"]["completenessScore"] == 1


@pytest.mark.timeout(900)  # it reads torch's and Lightning's types
def test_mypy_has_nothing_against_what_a_user_writes():
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        os.devnull,
        str(PROGRAM),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MYPYPATH": str(ROOT)})
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stderr


def test_what_a_user_writes_runs():
    done = python("-W", "ignore", str(PROGRAM))
    assert done.returncode == 0, done.stderr
    assert "localization_error_top1" in done.stdout.splitlines()[-1]
