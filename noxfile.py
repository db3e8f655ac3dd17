"""Run the tests on both ends of the ranges in pyproject.toml, and write what ran into docs/versions.md.

`pipx run nox` makes every environment, each of some gigabytes; `pipx run nox -s "tests-3.10(lowest)"` makes one.
"""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import nox
from packaging.requirements import Requirement

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
SHOWN = ["torch", "torchvision", "pytorch-lightning", "numpy", "tensorboard", "wandb", "transformers", "timm"]
COUNTED = ["passed", "skipped", "failed"]
# Releases of TensorBoard up to 2.20 import `pkg_resources`, of which newer releases of setuptools warn.
LAST_OF_THEIR_TIME = ["setuptools<80.9"]
TABLE = Path(__file__).parent / "docs" / "versions.md"
READ_VERSIONS = f"""
import json, platform
from importlib.metadata import version
print(json.dumps([platform.python_version(), *map(version, {SHOWN})]))
"""


@nox.session(python=PYTHONS)
@nox.parametrize("end", ["newest", "lowest"], ids=["newest", "lowest"])
def tests(session: nox.Session, end: str) -> None:
    """Run the tests that are quick, and write their row of the table, also where some fail."""
    folder = Path(session.create_tmp())
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join([*lowest_versions(), *LAST_OF_THEIR_TIME]) if end == "lowest" else "")
    session.install("-e", ".[dev]", "-c", str(constraints))
    python, *versions = json.loads(str(session.run("python", "-c", READ_VERSIONS, silent=True)))
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    # What old releases call in newer ones is deprecated by now, which the newest end tells of our own calls.
    warnings = ["-W", "ignore::DeprecationWarning"] if end == "lowest" else []
    session.run("pytest", f"--junitxml={report}", *warnings, success_codes=[0, 1])
    counts = count_tests(report)
    write_row([python, end, *versions, *map(str, counts)])
    if counts[-1]:
        session.error(f"{counts[-1]} tests failed on {session.name}")


def lowest_versions() -> list[str]:
    """Pin each direct dependency, of the package and of its extras, to the lower end of its range."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group]
    return [
        f"{requirement.name}=={bound.version}"
        for requirement in requirements
        for bound in requirement.specifier
        if bound.operator == ">="
    ]


def count_tests(report: Path) -> list[int]:
    """Count the tests of a JUnit report that passed, were skipped and failed."""
    ends = [{part.tag for part in case} for case in ElementTree.parse(report).iter("testcase")]
    failed = sum(not end.isdisjoint({"failure", "error"}) for end in ends)
    skipped = sum("skipped" in end for end in ends)
    return [len(ends) - skipped - failed, skipped, failed]


def write_row(row: list[str]) -> None:
    """Put a row into the table, in place of the one for the same Python and the same end."""
    text, _, table = TABLE.read_text().partition("\n| Python ")
    rows = [re.findall(r"[^|\s]+", line) for line in table.splitlines()[2:]]
    minor = row[0].rpartition(".")[0]
    kept = [old for old in rows if (old[0].rpartition(".")[0], old[1]) != (minor, row[1])]
    header = ["Python", "end", *SHOWN, *COUNTED]
    rule = ["---", "---", *["---"] * len(SHOWN), *["---:"] * len(COUNTED)]
    in_order = sorted([*kept, row], key=lambda cells: (int(cells[0].split(".")[1]), cells[1]))
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, rule, *in_order]]
    TABLE.write_text(text.rstrip("\n") + "\n\n" + "\n".join(lines) + "\n")
