"""The command: ``lightning-gradcam compare WEAK STRONG`` and ``lightning-gradcam report RUN``.

``lightning-gradcam compare weak=RUN,RUN strong=RUN,RUN`` takes several runs a side;
``lightning-gradcam doctor`` prints what a report of a fault should hold.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gradcam.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What stands behind its name; ``None``: what the shell gave.

    Returns:
        The exit code: 0, or 2 after bad input, which is told in a line on stderr.
    """
    options = _parser().parse_args(arguments)
    if options.command == "doctor":
        return _doctor(options.run)
    # Behind the parser, since torch takes seconds to load and a help text does not need it.
    from lightning_gradcam.record.compare import compare
    from lightning_gradcam.record.page import write_page

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a class name may have letters that a console lacks
    try:
        comparison = compare(
            *(_runs_or_sides(options.runs) if options.command == "compare" else options.runs),
            by=options.by,
            samples="all" if options.all else "right",
            layer=options.layer,
            force=options.force,
        )
        page = write_page(comparison, options.output) if options.output else None
        print(comparison)
        if page:
            print(f"\nOpen {page} in a browser.")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        print(f"lightning-gradcam: {error}", file=sys.stderr)
        return 2
    return 0


def _doctor(run: str | None) -> int:
    """Print what a report should hold; the versions also where the run cannot be read."""
    from lightning_gradcam.record.doctor import run_in_words, versions

    print("\n".join(versions()))
    try:
        for line in run_in_words(run) if run is not None else ():
            print(line)
    except (OSError, ValueError) as error:
        print(f"lightning-gradcam: {error}", file=sys.stderr)
        return 2
    return 0


def _runs_or_sides(arguments: Sequence[str]) -> list[Any]:
    """Runs as they are given; of ``name=RUN,RUN``, unless it is the path of a run, one mapping of sides to runs."""
    named = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    if not named:
        return list(arguments)
    runs = [argument for argument in arguments if argument not in named]
    if runs:
        raise ValueError(
            f"got both runs ({', '.join(runs)}) and sides ({', '.join(named)}, where no such path exists); give runs "
            "alone, or every side as NAME=RUN,RUN"
        )
    sides: dict[str, list[str]] = {}
    for name, _, paths in (argument.partition("=") for argument in named):
        if not name or name in sides or "" in paths.split(","):
            fault = "comes twice" if name in sides else "is no NAME=RUN,RUN"
            raise ValueError(
                f"{f'{name}={paths}'!r} {fault}; give each side once, with its runs behind it, such as a=x,y"
            )
        sides[name] = paths.split(",")
    return [sides]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lightning-gradcam", description="Where models looked while they trained.")
    parser.add_argument("--version", action="version", version=f"lightning-gradcam {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    several = commands.add_parser(
        "compare",
        help="runs side by side",
        description="Print how far the maps of runs agree and where they lie, epoch by epoch; with -o, write a page. "
        "With several runs a side, such as weak=RUN,RUN,RUN strong=RUN,RUN,RUN, the means over runs and their range.",
    )
    several.add_argument(
        "runs",
        nargs="+",
        metavar="RUN or NAME=RUN,RUN",
        help="the folder of a run; or a side of several runs, such as seeds. The first is compared with",
    )
    one = commands.add_parser(
        "report", help="one run", description="Print where the maps of one run lie, epoch by epoch, and write its page."
    )
    one.add_argument("runs", nargs=1, metavar="RUN", help="the folder of a run")
    doctor = commands.add_parser(
        "doctor",
        help="what a report of a fault should hold",
        description="Print the versions of what matters; of a run also what it was asked for, without the ids, labels "
        "and names of its data.",
    )
    doctor.add_argument("run", nargs="?", metavar="RUN", help="the folder of a run")
    for command, page in ((several, None), (one, "report.html")):
        command.add_argument(
            "-o", "--output", default=page, metavar="PAGE", help=f"the HTML file (default: {page or 'no page'})"
        )
        command.add_argument(
            "--by", choices=["epoch", "step", "fraction"], default="epoch", help="what to align by (default: epoch)"
        )
        command.add_argument("--all", action="store_true", help="all samples, not those that every run has right alone")
        command.add_argument("--layer", metavar="PREFIX", help="the prefix of a layer's keys (default: the first)")
        command.add_argument("--force", action="store_true", help="go on where the samples are not the same")
    return parser


if __name__ == "__main__":
    sys.exit(main())
