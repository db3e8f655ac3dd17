"""Runs side by side: the numbers worked out by hand from the records, the alignment, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from records import BOTH, IDENTITY, LEFT, RIGHT, write, write_maps
from tiny import environment

from lightning_gradcam import Record, compare
from lightning_gradcam.record.cli import main


@pytest.fixture
def pair():
    return (
        write("weak/gradcam", [[LEFT, LEFT], [LEFT, BOTH], [LEFT, BOTH]]),
        write("strong/gradcam", [[LEFT, LEFT], [RIGHT, BOTH], [RIGHT, LEFT]], right=[[0, 0], [1, 0], [1, 1]]),
    )


def test_the_table_by_hand(pair):
    found = compare("weak", "strong")
    assert [row["epoch"] for row in found.table()] == [0, 1, 2]
    rows = found.table()
    # Similarities to the weak run: 1, 1; then 0, 1; then 0, and half of the left with a uniform map.
    assert [row["strong/agreement"] for row in rows] == pytest.approx([1, 0.5, 0.25])
    assert [row["strong/accuracy"] for row in rows] == pytest.approx([0, 0.5, 1])
    assert [row["weak/accuracy"] for row in rows] == [1, 1, 1]
    assert [row["weak/drift"] for row in rows] == pytest.approx([np.nan, 0.25, 0], nan_ok=True)
    assert [row["strong/drift"] for row in rows] == pytest.approx([np.nan, 0.75, 0.25], nan_ok=True)
    assert [row["weak/mass_left"] for row in rows] == pytest.approx([1, 0.75, 0.75])
    assert [row["strong/mass_left"] for row in rows] == pytest.approx([1, 0.25, 0.5])
    assert [row["strong/lift_left"] for row in rows] == pytest.approx([2, 0.5, 1])
    assert [row["strong/mass_top"] for row in rows] == pytest.approx([0.5, 0.5, 0.5])
    assert [row["weak/strength"] for row in rows] == pytest.approx([-16, -6, -6])
    # 1 - entropy / log 4: two equal cells of four hold half of what there is to know.
    assert [row["weak/concentration"] for row in rows] == pytest.approx([0.5, 0.25, 0.25])
    assert "weak/agreement" not in rows[0]
    assert found.most_different() == [(3, 0), (5, 0.5)]
    text = str(found)
    assert "Numbers are of the 2 of 2 samples that both runs classify rightly at the last moment." in text
    assert "agree least at the last moment on #3 0.00, #5 0.50." in text
    assert text.splitlines()[4].split()[:2] == ["2", "0.25"]


def test_a_run_agrees_with_itself_wholly(pair):
    rows = compare("weak", "weak").table()
    assert [row["weak (2)/agreement"] for row in rows] == pytest.approx([1, 1, 1])


def test_samples_that_one_run_has_wrong_are_left_out():
    write("one", [[LEFT, BOTH]], right=[[1, 0]])
    write("two", [[RIGHT, BOTH]])
    assert compare("one", "two").used.tolist() == [True, False]
    assert compare("one", "two").table()[0]["two/agreement"] == 0
    assert compare("one", "two", samples="all").table()[0]["two/agreement"] == pytest.approx(0.5)
    assert compare("one", "two").table()[0]["one/accuracy"] == 0.5  # of the whole batch


def test_a_name_may_hold_a_slash():
    write("one", [[LEFT, LEFT]], name="a/b")
    assert compare("one").table()[0]["a/b/mass_left"] == 1
    assert str(compare("one")).splitlines()[0].split()[0] == "accuracy"


def test_long_names_keep_what_tells_them_apart():
    for name in ("lightning_logs/version_0", "lightning_logs/version_1"):
        write(name, [[LEFT, LEFT]], name=name)
    text = str(compare("lightning_logs/version_0", "lightning_logs/version_1"))
    assert {"ligh…version_0", "ligh…version_1"} <= set(text.splitlines()[1].split())


def test_three_runs(pair):
    write("third", [[BOTH, BOTH]] * 3)
    found = compare("weak", "strong", "third")
    assert found.table()[0]["third/agreement"] == pytest.approx(0.5)
    assert "that all classify rightly" in found.notes[0]


def test_one_run(pair):
    found = compare("strong")
    assert found.most_different() == []
    assert "agreement" not in str(found)
    assert found.table()[1]["strong/mass_left"] == pytest.approx(0.25)


# Alignment


def test_several_observations_of_an_epoch_count_by_the_last():
    write("one", [[LEFT, LEFT], [RIGHT, RIGHT], [BOTH, BOTH]], epochs=[0, 0, 1])
    write("two", [[RIGHT, RIGHT], [BOTH, BOTH]])
    assert [row["two/agreement"] for row in compare("one", "two").table()] == [1, 1]


def test_by_step_and_by_fraction():
    write("short", [[LEFT, LEFT], [BOTH, BOTH]], steps=[50, 100])
    write("long", [[RIGHT, RIGHT], [LEFT, LEFT], [RIGHT, RIGHT], [BOTH, BOTH]], steps=[50, 100, 150, 200])
    assert [(row["step"], row["long/agreement"]) for row in compare("short", "long", by="step").table()] == [
        (50, 0),
        (100, 0.5),
    ]
    found = compare("short", "long", by="fraction")
    assert [(row["fraction"], row["long/agreement"]) for row in found.table()] == [(0.5, 1), (1, 1)]
    assert "0.50" in str(found)


def test_drift_is_since_the_moment_before_that_is_shown():
    write("every", [[LEFT, LEFT], [RIGHT, RIGHT], [LEFT, LEFT], [RIGHT, RIGHT]])
    write("other", [[LEFT, LEFT], [BOTH, BOTH]], epochs=[1, 3])
    rows = compare("every", "other").table()
    assert [row["every/drift"] for row in rows] == pytest.approx([np.nan, 0], nan_ok=True)
    assert [row["other/drift"] for row in rows] == pytest.approx([np.nan, 0.5], nan_ok=True)


def test_another_prediction_is_another_question():
    settings = {"layers": {"gradcam": "a"}, "question": "target predicted · gradcam"}
    write("one", [[LEFT, LEFT], [RIGHT, BOTH]], right=[[1, 0], [1, 1]], settings=settings)
    write("two", [[LEFT, LEFT], [LEFT, BOTH]], settings=settings)
    found = compare("one", "two")
    assert found.runs[0].drift[1].tolist() == pytest.approx([1, np.nan], nan_ok=True)
    assert found.runs[1].agreement[0].tolist() == pytest.approx([1, np.nan], nan_ok=True)
    assert found.runs[1].agreement[1].tolist() == [0, 1]


# Unlike runs


def test_unlike_grids_are_brought_together():
    fine = np.zeros((4, 4), np.float32)
    fine[:, :2] = 1
    fine[:, 2:] = -5  # would cancel the left side, were not the positive part alone averaged
    write("coarse", [[LEFT, RIGHT]])
    write("fine", [[fine, fine]])
    found = compare("coarse", "fine")
    assert found.runs[1].agreement[0].tolist() == [1, 0]
    assert "The grids differ, coarse 2x2 and fine 4x4: agreement is measured on the coarser of each." in found.notes
    assert found.table()[0]["fine/mass_left"] == 1


def test_what_differs_is_said():
    settings = {"layers": {"gradcam": "net.5"}, "model": "ResNet", "precision": "32-true"}
    write("one", [[LEFT, LEFT]], settings=settings)
    write("two", [[LEFT, LEFT]], settings=settings | {"model": "ViT"}, fingerprint=IDENTITY | {"pixels": "q"})
    assert compare("one", "two").notes[1:] == [
        "The pixels of one and two differ: other pictures, resolution, precision or transform.",
        "model: ResNet in one, ViT in two.",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 8}, "the datasets hold 9 and 8"),
        ({"ids": [3, 6]}, "these are 3, 5 and 3, 6"),
        ({"labels": [0, 0]}, "#5 has the label 1 and 0"),
    ],
)
def test_other_samples_are_refused(options, message):
    length = options.pop("length", 9)
    write("one", [[LEFT, LEFT]])
    write("two", [[RIGHT, RIGHT]], **options, fingerprint=IDENTITY | {"identity": "other", "length": length})
    with pytest.raises(ValueError, match=f"one and two do not look at the same samples: {message}; .*--force"):
        compare("one", "two")
    assert message in compare("one", "two", force=True).notes[1]


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        ({"epochs": [7]}, {}, 'the runs have no epoch in common: one has 0, two has 7; align them by "fraction"'),
        ({}, {"by": "time"}, '`by` must be "epoch", "step" or "fraction", got \'time\''),
        ({}, {"samples": "wrong"}, '`samples` must be "right" or "all", got \'wrong\''),
        ({}, {"layer": "late"}, "the runs have no layer 'late'; they have one: gradcam; two: gradcam"),
    ],
)
def test_what_cannot_be_compared(second, options, message):
    write("one", [[LEFT, LEFT]])
    write("two", [[LEFT, LEFT]], **second)
    with pytest.raises(ValueError, match=message):
        compare("one", "two", **options)


def test_unknown_verdicts_leave_all_samples():
    write("one", [[LEFT, LEFT]], right=[[-1, -1]])
    assert compare("one").notes == ["Not every run tells what is right, so numbers are of all samples."]
    with pytest.raises(ValueError, match="`compare` needs at least one run"):
        compare()


def test_volumes_by_hand():
    photos = np.zeros((1, 128, 2, 2), np.uint8)  # kept at 64 x 2 x 2
    masks = np.zeros(photos.shape, np.float32)
    masks[:, :64] = 1
    regions = {"upper": masks, "box": np.array([[0, 0, 0, 1, 2, 64]])}  # the half of a half
    above, below = ([[[a] * 2] * 2, [[b] * 2] * 2] for a, b in ((3, 1), (1, 3)))
    write_maps("one", [[above], [below]], photos, regions)
    write_maps("two", [[above], [above]], photos, regions)
    found = compare("one", "two")
    rows = found.table()
    assert [row["one/mass_upper"] for row in rows] == [0.75, 0.25]
    assert [row["two/mass_box"] for row in rows] == [0.375, 0.375]
    assert [row["one/lift_upper"] for row in rows] == [1.5, 0.5]
    assert rows[1]["one/drift"] == pytest.approx(0.5)
    assert [row["two/agreement"] for row in rows] == pytest.approx([1, 0.5])
    assert [row["two/strength"] for row in rows] == [16, 16]


def test_grids_of_volumes_that_differ():
    photos = np.zeros((1, 8, 8, 8), np.uint8)
    write_maps("fine", np.ones((1, 1, 4, 4, 4)), photos)
    write_maps("coarse", np.ones((1, 1, 2, 4, 2)), photos)
    found = compare("fine", "coarse")
    assert "The grids differ, fine 4x4x4 and coarse 2x4x2: agreement is measured on the coarser of each." in found.notes
    assert found.table()[0]["coarse/agreement"] == pytest.approx(1)


@pytest.mark.parametrize("force", [False, True])
def test_other_axes_are_refused(force):
    write_maps("flat", np.ones((1, 2, 2, 2)), np.zeros((2, 8, 8), np.uint8))
    write_maps("deep", np.ones((1, 2, 2, 2, 2)), np.zeros((2, 9, 8, 7), np.uint8))
    write_maps("clip", np.ones((1, 2, 2, 2, 2)), np.zeros((2, 9, 8, 7), np.uint8), time=2)
    message = "flat looks at images of 8 x 8 pixels, deep at volumes of 9 x 8 x 7 pixels; compare runs on images with"
    with pytest.raises(ValueError, match=message):
        compare("flat", "deep", force=force)
    with pytest.raises(ValueError, match=r"deep looks at volumes of .*, clip at clips with frames along axis 2 of 9 x"):
        compare("deep", "clip", force=force)


# The command


def test_the_command_prints_the_table_and_writes_the_page(pair, capsys):
    assert main(["compare", "weak", "strong", "-o", "page.html"]) == 0
    said = capsys.readouterr().out
    assert said == f"{compare('weak', 'strong')}\n\nOpen page.html in a browser.\n"
    assert Path("page.html").read_text().startswith("<!doctype html>")
    assert main(["report", "weak"]) == 0
    assert Path("report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "weak", "nowhere"], "no record at 'nowhere'"),
        (["compare", "weak", "late"], "no epoch in common"),
        (["compare", "weak", "strong", "-o", "no/such/folder/page.html"], "No such file or directory"),
        (["report", "weak", "--layer", "x"], "the runs have no layer 'x'"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(pair, capsys, arguments, message):
    write("late/gradcam", [[LEFT, LEFT]], epochs=[9])
    before = set(Path().rglob("*"))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert set(Path().rglob("*")) == before


SPOILT = {
    "name": 3,
    "settings": {"layers": None},
    "fingerprint": [],
    "ids": None,
    "labels": ["a", {}],
    "class_names": {"a": 1},
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_record_is_exit_code_2(pair, capsys, name):
    path = Path("weak/gradcam/record.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: SPOILT[name]}))
    assert main(["compare", "weak", "strong"]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arrays",
    [
        {"row": np.frombuffer(b"[1]", np.uint8)},
        {"row": np.frombuffer(b'{"epoch": null, "step": 1, "numbers": {}}', np.uint8)},
        {"row": np.frombuffer(b'{"epoch": 1, "step": 1, "numbers": []}', np.uint8)},
        {"samples": np.zeros(2)},
        {"maps.gradcam": np.array([["a"]])},
        {"maps.gradcam": np.zeros((3, 2, 2), np.float32)},
    ],
)
def test_a_spoilt_observation_is_exit_code_2(capsys, arrays):
    write("weak", [[LEFT, LEFT]])
    (file,) = Path("weak").glob("observation=*")
    with np.load(file) as kept:
        np.savez(file, **{**kept, **arrays})
    assert main(["report", "weak"]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("pipe", "code"), [("| head -1", 0), ("> /dev/full", 2)])
def test_a_reader_that_stops_and_a_full_disk_are_no_traceback(pair, pipe, code):
    write("déjà vu", [[LEFT, LEFT]])
    command = f"set -o pipefail; {sys.executable} -m lightning_gradcam.record.cli compare 'déjà vu' weak {pipe}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment(PYTHONIOENCODING="ascii")
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_another_schema_is_exit_code_2(pair, capsys):
    path = Path("weak/gradcam/record.json")
    path.write_text(path.read_text().replace('"schema": 4', '"schema": 9'))
    assert main(["report", "weak"]) == 2
    assert "has schema 9" in capsys.readouterr().err


def test_where_no_sample_is_right_numbers_are_of_all():
    write("one", [[LEFT, LEFT]])
    write("two", [[LEFT, RIGHT]], right=[[0, 0]])
    found = compare("one", "two")
    assert found.used.all()
    assert found.notes[0] == (
        "There is no sample that both runs classify rightly at the last moment, so numbers are of all samples."
    )
    assert found.table() == compare("one", "two", samples="all").table()


def test_maps_that_are_empty_or_no_numbers_have_no_agreement():
    write("one", [[-BOTH, LEFT * np.nan], [LEFT, LEFT]])
    write("two", [[LEFT, LEFT], [LEFT, LEFT]])
    found = compare("one", "two")
    assert np.isnan(found.runs[1].agreement[0]).all()
    assert np.isnan(found.table()[0]["two/agreement"])
    assert " - " in str(found)
    assert (found.runs[1].agreement[1] == 1).all()
    assert Record.open("one").name == found.runs[0].name
