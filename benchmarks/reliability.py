"""Run the tests of what must never happen to a run, and write what they tried and how it ended.

python benchmarks/reliability.py docs/reliability.md    # five minutes on two cores
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

HERE = Path(__file__).parent.parent
WHAT = {
    "test_invariance_matrix": "ways to train, every legal pair of them met, bit-identical with and without",
    "test_invariance": "special runs bit-identical with and without; naive callbacks that must not be",
    "test_processes": "two and four processes: DDP (plain, unused parameters, static graph), FSDP2, failing processes",
    "test_faults": "faults injected: errors, out of memory, full and read-only disks, closed loggers, signals, kill -9",
    "test_drift_in_a_run": "resumed runs, monitors and alerts",
    "test_capture": "models as they were after a capture, also after an exception; layers that are refused",
    "test_callback": "when it looks, what loggers get, errors before the first training step",
    "test_fuzz": "fuzzed maps, arguments and batches: 60 examples each, and 1,000 each in the long run",
}


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        files = [f"tests/{name}.py" for name in WHAT]
        command = [sys.executable, "-m", "pytest", "-m", "slow or not slow", f"--junitxml={report}", *files]
        subprocess.run(command, cwd=HERE, check=False)
        cases = list(ET.parse(report).iter("testcase"))
    lines = [
        "# What was tried to hurt a run",
        "",
        "Written by `benchmarks/reliability.py` from a run of the tests it names; every case is a test to read.",
        "",
        "| tests | what | cases | passed | skipped | failed | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, what in WHAT.items():
        own = [case for case in cases if case.get("classname", "").split(".")[-1] == name]
        failed = sum(case.find("failure") is not None or case.find("error") is not None for case in own)
        skipped = sum(case.find("skipped") is not None for case in own)
        seconds = sum(float(case.get("time", 0)) for case in own)
        passed = len(own) - failed - skipped
        lines.append(f"| `{name}` | {what} | {len(own)} | {passed} | {skipped} | {failed} | {seconds:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if target:
        target.write_text(text)


if __name__ == "__main__":
    main()
