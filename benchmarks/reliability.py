"""Run the tests of what must never happen to a run, and write what they tried and how it ended.

python benchmarks/reliability.py docs/reliability.md    # seven minutes on two cores
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

HERE = Path(__file__).parent.parent
WHAT = {
    "Configurations": {
        "test_invariance_matrix": "ways to train, every legal pair of them met, bit-identical with and without",
        "test_invariance": "special runs bit-identical with and without; naive callbacks that must not be",
        "test_processes": "one, two and four processes: DDP (plain, unused parameters, static graph), FSDP2, resumed",
        "test_variants": "compiled, checkpointed, reparametrized, in bf16: maps as of the plain model",
        "test_variants_in_a_run": "a trainer's precisions, averaged weights, several inputs",
        "test_capture": "models as they were after a capture, also after an exception; layers that are refused",
    },
    "Faults": {
        "test_faults": "errors, out of memory, full and read-only disks, closed loggers, signals, kill -9",
        "test_drift_in_a_run": "resumed runs, monitors and alerts",
        "test_checkpoint": "runs resumed with other samples, questions, rhythms and versions",
        "test_recording": "the record of runs that are killed, resumed, forked and moved",
        "test_record": "damaged and foreign records",
    },
    "Bad input": {
        "test_bad_input": "mistakes in arguments, data and models: errors before the first training step",
        "test_samples": "data sets and loaders of every kind, and batches and boxes that are refused",
        "test_fuzz": "drawn maps, arguments and batches, which work or are refused in words",
        "test_compare": "runs that cannot be compared, spoilt records, pipes and full disks of the command",
        "test_security": "names with markup, paths, control characters and any script or length",
    },
}


def row(name: str, what: str, cases: list[ET.Element]) -> str:
    """A line of the table; a test that tries many examples says how many."""
    own = [case for case in cases if case.get("classname", "").split(".")[-1] == name]
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in own)
    skipped = sum(case.find("skipped") is not None for case in own)
    seconds = sum(float(case.get("time", 0)) for case in own)
    drawn = {"examples": 0, "refused": 0}
    for found in (found for case in own for found in case.iter("property")):
        drawn[found.get("name", "")] += int(found.get("value", 0))
    if drawn["examples"]:
        what += f": {drawn['examples']} examples, {drawn['refused']} of them refused"
    return f"| `{name}` | {what} | {len(own)} | {len(own) - failed - skipped} | {skipped} | {failed} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("target", nargs="?", type=Path, help="where to write the page")
    where.add_argument("--quick", action="store_true", help="the tests of one module, to see that it still runs")
    args = parser.parse_args()
    files = {file.stem: file for file in (HERE / "tests").rglob("test_*.py")}
    modules = [files[name] for group in WHAT.values() for name in group]
    if args.quick:
        modules = [files["test_record"]]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "slow or not slow"]
        command += ["-n", "1"]  # in a process of their own: a test that hangs takes it along, and is a failure
        subprocess.run([*command, f"--junitxml={report}", *modules], cwd=HERE, check=False)
        cases = list(ET.parse(report).iter("testcase"))
    lines = [
        "# What was tried to hurt a run",
        "",
        "Written by `benchmarks/reliability.py` from a run of the tests it names; every case is a test to read. A "
        "weight that changed, a run that ended early, and one that hung for five minutes would each count as failed.",
    ]
    for group, members in WHAT.items():
        lines += ["", f"## {group}", ""]
        lines += ["| tests | what | cases | passed | skipped | failed | seconds |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
        lines += [row(name, what, cases) for name, what in members.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.target:
        args.target.write_text(text)


if __name__ == "__main__":
    main()
