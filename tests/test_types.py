"""What a type checker knows of the package: everything."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
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
