"""The record on disk: it can be read at any time, and what cannot be read is refused in words."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from records import about, write_maps, written
from tiny import environment

from lightning_gradcam import Batch, Record
from lightning_gradcam.record.writer import sample_rows
from lightning_gradcam.run.recording import open_record
from lightning_gradcam.run.samples import Fingerprint


def test_samples_hold_what_the_model_says_of_each():
    logits = torch.tensor([[0.0, 0.0], [9.0, 1.0], [0.0, 3.0]])
    probabilities = logits.softmax(1).numpy()
    rows = sample_rows(
        np.array([1.0, 2.0, 3.0]), probabilities, np.array([0, 0, 1]), np.array([1, 0, 0]), np.array([0, 1, 7])
    )
    assert rows["score"].tolist() == [1, 2, 3]
    assert rows["predicted"].tolist() == [0, 0, 1]
    assert rows["right"].tolist() == [1, 0, 0]
    assert rows["confidence"] == pytest.approx(probabilities.max(1))
    assert rows["of_label"] == pytest.approx([0.5, probabilities[1, 1], np.nan], nan_ok=True)
    unknown = sample_rows(np.zeros(1), None, None, None, None)
    assert (unknown["predicted"], unknown["right"]) == (-1, -1)
    assert np.isnan([unknown["confidence"], unknown["of_label"]]).all()


def test_without_pandas_a_frame_is_refused_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # an import of it fails
    written("run", 1)
    with pytest.raises(ImportError, match="pandas is not installed: pip install pandas; `table` gives the same rows"):
        Record.open("run").frame()


def test_a_reader_never_finds_a_part():
    """A process writes as fast as it can while this one reads."""
    script = (
        "from records import *\n"
        "writer = written('run', 1)\n"
        "print('ready', flush=True)\n"
        "for epoch in range(1, 400):\n"
        "    samples = sample_rows(np.zeros(2), None, None, None, None)\n"
        "    writer.write(epoch, epoch, {'gradcam': np.zeros((2, 40, 40), np.float32)[:, :4, :4]}, samples, {})\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout.readline() == "ready\n"
        seen = [len(Record.open("run").epochs)]
        while process.poll() is None:
            seen.append(len(Record.open("run").epochs))
    assert process.returncode == 0
    assert seen == sorted(seen)
    assert len(Record.open("run").epochs) == 400


def spoil_json(**changes):
    def spoil(folder):
        content = json.loads((folder / "record.json").read_text())
        (folder / "record.json").write_text(json.dumps(content | changes))

    return spoil


def object_array(folder):
    np.savez(folder / "observation=000099-epoch=9-step=99.npz", samples=np.array([{}], dtype=object))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: (folder / "record.json").unlink(), FileNotFoundError, "has no 'record.json'; give the folder"),
        (lambda folder: (folder / "record.json").write_text("{"), ValueError, "is damaged or of another program"),
        (lambda folder: (folder / "record.json").write_text("[]"), ValueError, "is damaged or of another program"),
        (
            lambda folder: (folder / "record.json").write_text('{"schema": 2}'),
            ValueError,
            "class_names, fingerprint|name, id, settings",
        ),
        (spoil_json(schema=7), ValueError, "has schema 7, this version of lightning_gradcam reads 2, 3 and 4"),
        (spoil_json(settings={"layers": {"other": ""}}), ValueError, "its files do not fit each other"),
        (lambda folder: (folder / "samples.npz").unlink(), ValueError, "is damaged, it has no 'samples.npz'"),
        (
            lambda folder: (folder / "observation=000001-epoch=1-step=10.npz").write_bytes(b"PK\x03\x04"),
            ValueError,
            "observation=000001-epoch=1-step=10.npz' is damaged: .*; take it away",
        ),
        (object_array, ValueError, "is damaged: Object arrays cannot be loaded when allow_pickle=False"),
        (
            lambda folder: [file.unlink() for file in folder.glob("observation=*")],
            ValueError,
            "holds no observation yet",
        ),
    ],
)
def test_what_cannot_be_read(spoil, error, message):
    folder = written("run/gradcam").folder
    assert Record.open("run").epochs.tolist() == [0, 1, 2]
    spoil(folder)
    with pytest.raises(error, match=message):
        Record.open(folder)


def test_what_is_no_record():
    with pytest.raises(FileNotFoundError, match="no record at 'nowhere', which is no folder"):
        Record.open("nowhere")
    written("two/a")
    written("two/b")
    with pytest.raises(FileNotFoundError, match="'two' holds several records, name one: two/a, two/b"):
        Record.open("two")


# Volumes, clips and signals


def test_photos_of_volumes_are_averaged_down_along_each_axis_by_itself_and_regions_are_not():
    photos = np.zeros((2, 128, 3, 66), np.uint8)
    photos += np.arange(128, dtype=np.uint8)[:, None, None]
    masks = np.zeros(photos.shape, np.float32)
    masks[:, 3:9, 1] = 1
    regions = {"mask": masks, "soft": masks / 2, "box": np.array([[0, 0, 0, 1, 1, 1]] * 2)}
    write_maps("run", np.ones((1, 2, 4, 1, 3)), photos, regions, spacing=[2.0, 1.0, 1.0])
    record = Record.open("run")
    assert (record.size, record.about["time"], record.about["spacing"]) == ((128, 3, 66), None, [2, 1, 1])
    assert (record.photos.shape, record.photos.dtype) == ((2, 64, 3, 64), np.uint8)
    assert (record.photos[0] == np.arange(0, 128, 2)[:, None, None]).all()  # 0.5, 2.5, ... to the even one
    assert record.maps["gradcam"].shape == (1, 2, 4, 1, 3)
    assert {name: value.dtype for name, value in record.regions.items()} == {
        "mask": np.uint8,
        "soft": np.float32,
        "box": np.int64,
    }
    for name, value in regions.items():
        assert np.array_equal(record.regions[name], value)
    assert Path("run/samples.npz").stat().st_size < masks.size / 8  # compressed


def test_signals_are_kept_whole():
    photos = np.arange(200, dtype=np.uint8)[None].repeat(2, 0)
    write_maps("run", np.ones((1, 2, 5)), photos, {"beat": np.array([[3, 9], [0, 0]])})
    record = Record.open("run")
    assert record.size == (200,)
    assert np.array_equal(record.photos, photos)


def test_a_record_of_schema_2_is_of_images_of_the_photos_size():
    rows = sample_rows(np.zeros(2), None, None, None, None)
    row = np.frombuffer(b'{"epoch": 0, "step": 7, "numbers": {"gradcam/drift": null}}', np.uint8)
    folder = Path("old")
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"schema": 2, "id": "a", **about()}))
    masks = np.ones((2, 16, 8), np.float32)
    np.savez(folder / "samples.npz", photos=np.zeros((2, 16, 8), np.uint8), **{"region.object": masks})
    maps = {"maps.gradcam": np.ones((2, 4, 2), np.float32)}
    np.savez(folder / "observation=000000-epoch=0-step=7.npz", row=row, samples=rows, **maps)
    record = Record.open(folder)
    assert (record.size, record.about["time"], record.about["spacing"]) == ((16, 8), None, None)
    assert record.maps["gradcam"].shape == (1, 2, 4, 2)
    assert record.steps.tolist() == [7]


def test_a_record_of_schema_3_pictures_all_samples():
    folder = write_maps("old", np.ones((1, 2, 4, 4)), np.zeros((2, 8, 8), np.uint8))
    about = json.loads((folder / "record.json").read_text())
    del about["pictured"]
    (folder / "record.json").write_text(json.dumps(about | {"schema": 3}))
    assert Record.open("old").pictured.tolist() == [0, 1]


@pytest.mark.parametrize("pictured", [[0, 2], [-1, 0], [0], [[0], [1]], "01", None, ["a", "b"]])
def test_pictured_samples_that_do_not_fit_are_damage(pictured):
    folder = write_maps("run", np.ones((1, 2, 4, 4)), np.zeros((2, 8, 8), np.uint8))
    about = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(about | {"pictured": pictured}))
    with pytest.raises(ValueError, match="damaged"):
        Record.open("run")


def change_samples(**changes):
    def spoil(folder):
        with np.load(folder / "samples.npz") as kept:
            np.savez(
                folder / "samples.npz", **{**kept, **{name.replace("_", "."): one for name, one in changes.items()}}
            )

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_json(size=[80, 5]), "photos, maps, regions, spacing of another form than 2 samples of 80 x 5 pixels"),
        (spoil_json(size=[8, 5, 4]), "photos, regions of another form than 2 samples of 8 x 5 x 4 pixels have"),
        (spoil_json(size=[80, 5, 0]), r"`size` must be one to three whole numbers above 0, got \[80, 5, 0\]"),
        (spoil_json(size=[]), r"`size` must be one to three whole numbers above 0, got \[\]"),
        (spoil_json(size=["80", 5, 4]), "`size` must be one to three whole numbers"),
        (spoil_json(size=80), "is damaged: size missing or of another kind"),
        (spoil_json(time=3), "time of another form than 2 samples of 80 x 5 x 4 pixels have"),
        (spoil_json(time="z"), "is damaged: time missing or of another kind"),
        (spoil_json(spacing=[1, 1]), "spacing of another form"),
        (spoil_json(spacing=[1, 0, 1]), "spacing of another form"),
        (spoil_json(spacing=[1, None, 1]), "its files do not fit each other"),
        (change_samples(photos=np.zeros((2, 80, 5, 4), np.uint8)), "photos of another form"),
        (change_samples(photos=np.zeros((2, 64, 20), np.uint8)), "photos of another form"),
        (change_samples(region_box=np.zeros((2, 4))), "regions of another form"),
    ],
)
def test_damaged_records_of_volumes_are_refused(spoil, message):
    regions = {"box": np.zeros((2, 6)), "mask": np.ones((2, 80, 5, 4))}
    folder = write_maps("run", np.ones((2, 2, 3, 2, 1)), np.zeros((2, 80, 5, 4), np.uint8), regions, spacing=[1, 1, 1])
    assert Record.open("run").size == (80, 5, 4)
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        Record.open(folder)


class MetaTensor(torch.Tensor):
    """As MONAI's: images with a patient's name on them."""

    pixdim = torch.tensor([3.0, 1.0, 2.0])
    meta = "Jane Roe.nii"


def test_nothing_but_the_spacing_of_images_that_know_more_reaches_the_record():
    images, masks = torch.rand(2, 1, 6, 5, 4), torch.zeros(2, 6, 5, 4)
    rows = Batch(
        images.as_subclass(MetaTensor),
        torch.tensor([0, 1]).as_subclass(MetaTensor),
        {"lesion": masks.as_subclass(MetaTensor)},
        ids=[3, 4],
    )
    settings = SimpleNamespace(record=True, question="", every_n_epochs=1, method=None)
    probe = SimpleNamespace(
        settings=settings,
        rows=rows,
        fingerprint=Fingerprint("i", "p", 2),
        layers={"gradcam": "net"},
        class_names=None,
        in_pictures=SimpleNamespace(photos=images[:, 0]),
        pictured_rows=[0, 1],
    )
    trainer = SimpleNamespace(lightning_module=torch.nn.Identity(), precision="32", current_epoch=0, global_step=0)
    writer = open_record(trainer, probe, Path("run/gradcam"), None)
    samples = sample_rows(np.zeros(2), None, None, None, None)
    writer.write(0, 1, {"gradcam": np.ones((2, 3, 2, 2), np.float32)}, samples, {})
    record = Record.open("run")
    assert (record.size, record.about["time"], record.about["spacing"]) == ((6, 5, 4), None, [3, 1, 2])
    assert np.array_equal(record.photos, (images[:, 0] * 255).round().byte().numpy())
    assert not any(b"Roe" in file.read_bytes() for file in Path("run").rglob("*") if file.is_file())


def test_a_pipe_among_the_observations_is_none(tmp_path):
    folder = written(tmp_path / "run").folder
    os.mkfifo(folder / "observation=000009-epoch=9-step=9.npz")
    assert len(Record.open(folder).epochs) == 3


def test_groups_are_as_many_as_samples(tmp_path):
    folder = written(tmp_path / "run").folder
    about = json.loads((folder / "record.json").read_text())
    for groups, fits in ((None, True), ([], True), (["a", "b"], True), (["a"], False), (["a", "b", "c"], False)):
        (folder / "record.json").write_text(json.dumps(about | {"groups": groups}))
        if fits:
            Record.open(folder)
        else:
            with pytest.raises(ValueError, match="groups of another form than 2 samples"):
                Record.open(folder)
