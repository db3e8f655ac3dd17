"""The benchmarks run; by `pytest -m slow`, since together they take minutes."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from tiny import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda script: script.stem)
def test_every_benchmark_runs(script):
    if "torchcam" in script.read_text() and version("torchcam").startswith("0.4"):
        pytest.skip("torchcam takes the layout of tokens since 0.5, which needs Python 3.11")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, script, "--quick"]
    run = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout
