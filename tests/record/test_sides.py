"""Several runs a side: means and ranges by hand, what is said of them, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from records import BOTH, LEFT, RIGHT, write

from lightning_gradcam import Record, compare
from lightning_gradcam.record.cli import main


@pytest.fixture
def seeds():
    """At the last moment the shares on the left half are 1 and 0.75 of the weak runs, 0.25 and 0 of the strong."""
    write("weak_0", [[LEFT, LEFT], [LEFT, LEFT]])
    write("weak_1", [[LEFT, LEFT], [LEFT, BOTH]])
    write("strong_0", [[LEFT, LEFT], [RIGHT, BOTH]])
    write("strong_1", [[LEFT, RIGHT], [RIGHT, RIGHT]])
    return {side: [f"{side}_0", f"{side}_1"] for side in ("weak", "strong")}


def alike(side, number):
    """The paths of so many runs that differ a little from each other, on the left half or on the right."""
    cells = np.array([[2, 1], [2, 1]], np.float32)
    cells = cells if side == "weak" else cells[:, ::-1]
    return [write(f"{side}_{i}", [[cells + i / 100, cells]]) for i in range(number)]


def test_means_and_ranges_by_hand(seeds):
    found = compare(seeds)
    assert [(side.name, [run.name for run in side.runs]) for side in found.sides] == [
        ("weak", ["weak 1", "weak 2"]),
        ("strong", ["strong 1", "strong 2"]),
    ]
    first, last = found.side_table()
    assert [first[f"strong/mass_left{end}"] for end in ("", "/least", "/most")] == [0.75, 0.5, 1]
    assert [last[f"weak/mass_left{end}"] for end in ("", "/least", "/most")] == [0.875, 0.75, 1]
    assert [last[f"strong/mass_left{end}"] for end in ("", "/least", "/most")] == [0.125, 0, 0.25]
    assert np.isnan(first["weak/drift"])
    assert last["weak/drift"] == pytest.approx(0.125)  # medians of 0 and 0, and of 0 and 0.5
    assert found.table()[-1]["strong 1/mass_left"] == 0.25


def test_agreement_within_a_side_and_between_sides(seeds):
    # Of two samples each: weak 1 and 0.5; strong 1 and 0.5; and the four pairs between 0 0.5, 0 0, 0 1, 0 0.5.
    expected = {("weak", "weak"): 0.75, ("strong", "strong"): 0.75, ("weak", "strong"): (0.25 + 0 + 0.5 + 0.25) / 4}
    assert compare(seeds).agreements() == pytest.approx(expected)
    # In the table a run is measured against the first side's in the same place.
    rows = compare(seeds).table()
    assert [rows[-1][f"strong {i}/agreement"] for i in (1, 2)] == pytest.approx([0.25, 0.25])
    assert "weak 1/agreement" not in rows[-1]


def test_the_text(seeds):
    lines = str(compare(seeds)).splitlines()
    assert lines[0] == "Means over runs:"
    assert lines[1].split()[:3] == ["accuracy", "drift", "concentration"]
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["epoch", "weak", "strong"],
        ["0", "1.00", "1.00"],
        ["1", "1.00", "1.00"],
    ]
    assert max(map(len, lines[:10])) <= 120
    start = lines.index("Means over runs at the last moment, and their range:")
    ranges = [re.split("  +", line) for line in lines[start + 1 :]]
    assert ranges[0] == ["", "weak, 2 runs", "strong, 2 runs"]
    assert ["mass_left", "0.88 (0.75 to 1.00)", "0.12 (0.00 to 0.25)"] in ranges
    assert (
        "Agreement of two runs at the last moment, the mean over all pairs: within weak 0.75, within strong 0.75, "
        "between weak and strong 0.25."
    ) in lines
    assert "mass_left: weak 1.00 0.75, strong 0.25 0.00; difference of the means 0.75." in lines
    assert lines[-1] == "No p is given below 5 runs a side: so few say little of other seeds."
    assert "accuracy:" not in str(lines)
    assert "p =" not in str(lines)


def test_a_p_value_from_five_runs_a_side_on():
    found = compare({"weak": alike("weak", 5), "strong": alike("strong", 5)}, samples="all")
    mass = next(one for one in found.differences() if one.number == "mass_left")
    assert mass.p == 2 / 252
    lines = str(found).splitlines()
    assert "(permutation of runs p = 0.0079)." in next(line for line in lines if line.startswith("mass_left:"))
    assert lines[-1].startswith(f"{len(found.differences())} numbers are compared; p adjusted for that (Holm): ")
    assert "No p" not in str(found)


def test_a_side_of_four_has_no_p():
    found = compare({"weak": alike("weak", 5), "strong": alike("strong", 4)})
    assert {one.p for one in found.differences()} == {None}


def test_wide_tables_are_cut_into_blocks():
    sides = {f"side number {i}": [write(f"{i}_{j}", [[LEFT, RIGHT]]) for j in range(2)] for i in range(3)}
    lines = str(compare(sides)).splitlines()
    tables = lines[: next(i for i, line in enumerate(lines) if line.startswith("Numbers are of"))]
    assert max(map(len, tables)) <= 120
    heads = [line for line in tables[1:] if not line.startswith(("epoch", "0"))]
    numbers = [key.rpartition("/")[2] for key in compare(sides).table()[0] if "0 1/" in key]
    assert " ".join(heads).split() == numbers
    assert len(heads) > 2


def test_one_run_a_side_is_a_plain_comparison_under_other_names(seeds):
    named = compare({"a": ["weak_0"], "b": "strong_0"})
    assert not named.several
    text = str(compare("weak_0", "strong_0")).replace("weak_0", "a").replace("strong_0", "b")
    assert str(named).split() == text.split()
    assert compare({"a": Record.open("weak_0")}).runs[0].name == "a"


def test_sides_of_one_run_beside_several(seeds):
    text = str(compare({"weak": ["weak_0", "weak_1"], "strong": ["strong_0"]}))
    assert "mass_left: weak 1.00 0.75, strong 0.25; difference of the means 0.62." in text
    assert re.search(r"\nmass_left +0.88 \(0.75 to 1.00\) +0.25\n", text)
    assert "within strong" not in text


def test_runs_without_a_value_are_left_out(seeds):
    write("empty", [[LEFT, LEFT], [-BOTH, -BOTH]])
    found = compare({"weak": ["weak_0", "empty"], "strong": seeds["strong"]}, samples="all")
    assert found.side_table()[-1]["weak/mass_left"] == 1
    assert "mass_left: weak 1.00 -, strong 0.25 0.00; difference of the means 0.88." in str(found)
    assert found.agreements()["weak", "strong"] == pytest.approx(0.125)  # 0.25 and 0; none of the other run
    assert np.isnan(found.agreements()["weak", "weak"])


def test_what_differs_is_said_once_for_the_runs_of_a_side():
    layers = {"layers": {"gradcam": "net.5"}}
    write("weak", [[LEFT, LEFT]], settings=layers | {"model": "ResNet"})
    for name in ("one", "two", "three"):
        write(name, [[LEFT, LEFT]], settings=layers | {"model": "ViT"})
    found = compare({"weak": ["weak"], "strong": ["one", "two", "three"]})
    assert found.notes[1:] == ["model: ResNet in weak, ViT in strong 1, strong 2 and strong 3."]


def test_grids_that_differ_within_a_side():
    fine = LEFT.clip(0).repeat(2, 0).repeat(2, 1)
    found = compare({"a": [write("coarse", [[LEFT, RIGHT]]), write("fine", [[fine, fine]])]})
    assert found.notes[-1] == "The grids differ, a 1 2x2 and a 2 4x4: agreement is measured on the coarser of each."
    assert found.agreements() == {("a", "a"): 0.5}


def test_a_side_may_be_called_as_another_ones_run(seeds):
    found = compare({"weak": seeds["weak"], "weak 1": ["strong_0"]})
    assert [run.name for run in found.runs] == ["weak 1", "weak 2", "weak 1 (2)"]
    assert "weak 1 (2)/mass_left" in found.table()[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({},), "`compare` needs at least one run a side, got 0 sides"),
        (({1: ["weak_0"], "1": ["weak_1"]},), r"two sides of \[1, '1'\] have the same name in words"),
        (({"weak": [], "strong": ["weak_0"]},), "at least one run a side, got 2 sides; 'weak' has none"),
        (({"weak": ["weak_0"]}, "weak_1"), "one mapping of sides, .*; got 2 arguments, a mapping among them"),
        (
            ({"weak": ["weak_0", "weak_1", "weak_0"]},),
            "weak 1 and weak 3 are the same run, 'weak_0'; give each run once",
        ),
        (({"weak": ["weak_0"], "strong": ["weak_0", "weak_1"]},), "weak and strong 1 are the same run"),
    ],
)
def test_what_is_refused(seeds, given, message):
    with pytest.raises(ValueError, match=message):
        compare(*given)


# The command


def test_the_command_takes_sides(seeds, capsys):
    assert main(["compare", "weak=weak_0,weak_1", "strong=strong_0,strong_1", "-o", "page.html"]) == 0
    assert capsys.readouterr().out == f"{compare(seeds)}\n\nOpen page.html in a browser.\n"
    assert Path("page.html").is_file()


def test_a_path_with_an_equals_sign_is_a_path(seeds, capsys):
    write("lr=0.1", [[LEFT, LEFT], [LEFT, LEFT]])
    assert main(["compare", "lr=0.1", "weak_0"]) == 0
    assert capsys.readouterr().out == f"{compare('lr=0.1', 'weak_0')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["weak=weak_0", "strong_0"],
            r"got both runs \(strong_0\) and sides \(weak=weak_0, where no such path exists\)",
        ),
        (["weak=weak_0", "weak=weak_1"], "'weak=weak_1' comes twice; give each side once"),
        (["weak=", "strong=strong_0"], "'weak=' is no NAME=RUN,RUN"),
        (["weak=weak_0,,weak_1"], "'weak=weak_0,,weak_1' is no NAME=RUN,RUN"),
        (["=weak_0"], "'=weak_0' is no NAME=RUN,RUN"),
        (["weak=nowhere"], "no record at 'nowhere'"),
    ],
)
def test_bad_sides_are_a_message_and_exit_code_2(seeds, capsys, arguments, message):
    assert main(["compare", *arguments]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert re.search(message, said.err)


def test_a_report_is_of_one_run(seeds, capsys):
    assert main(["report", "weak=weak_0"]) == 2
    assert "no record at 'weak=weak_0'" in capsys.readouterr().err
