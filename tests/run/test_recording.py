"""The record that a run leaves: what is in it, and how it goes on in runs that are resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tiny import Images, Recorder, TinyModule, early_stop, fit, interrupted, loader, trainer

from lightning_gradcam import Batch, GradCAMCallback, Record, compare


def boxes(batch):
    corner = torch.tensor([[0, 0, 8, 8]]).expand(len(batch[0]), 4)
    return Batch(*batch, regions={"corner": corner, "all": torch.ones(len(batch[0]), 16, 16)})


def test_a_run_leaves_what_it_logged():
    logger = TensorBoardLogger(".", name="", version="strong")
    recorder = Recorder()
    callback = GradCAMCallback(samples=4, batch_fn=boxes)
    run = trainer(callback, logger=[logger, recorder], max_epochs=3)
    run.fit(TinyModule(), loader(), loader())
    record = Record.open("strong")
    assert record.path == Path("strong/gradcam")
    assert not list(Path().rglob("*.part"))
    assert record.name == "strong"
    assert record.epochs.tolist() == [-1, 0, 1, 2]
    assert record.steps.tolist() == [0, 3, 6, 9]
    assert record.about["ids"] == [0, 6, 12, 18]
    assert record.about["labels"] == [0, 0, 0, 0]
    assert record.about["class_names"] == ["ant", "bee", "crab"]
    assert record.about["fingerprint"]["length"] == 24
    assert record.about["settings"] == {
        "model": "TinyModule",
        "layers": {"gradcam": "net.5"},
        "question": "target label · gradcam",
        "every_n_epochs": 1,
        "precision": "32-true",
    }
    assert record.regions["corner"].tolist() == [[0, 0, 8, 8]] * 4
    assert record.regions["all"].shape == record.photos.shape == (4, 16, 16)
    assert record.maps["gradcam"].shape == (4, 4, 8, 8)
    assert record.maps["gradcam"].dtype == np.float32
    assert np.array_equal(record.maps["gradcam"][-1], callback._session.history.tracks["gradcam"].previous.numpy())
    for key in ("gradcam/strength", "gradcam/mass_corner", "gradcam/empty_fraction"):
        finite = [row[key] for row in record.table() if np.isfinite(row[key])]
        assert finite == pytest.approx(recorder.values(key))
    assert record.frame()["gradcam/strength"].tolist() == [row["gradcam/strength"] for row in record.table()]
    assert np.isnan(record.table()[0]["gradcam/drift"])


def test_an_observation_takes_little_room():
    class Large(Images):
        def __init__(self):
            super().__init__(length=16, size=14)

    keys = {"samples": 16, "batch_fn": lambda batch: Batch(*batch, regions={"a": torch.ones(16, 14, 14)})}
    trainer(GradCAMCallback(**keys)).fit(TinyModule(), loader(Large(), 16), loader(Large(), 16))
    record = Record.open("gradcam")
    assert record.maps["gradcam"].shape[1:] == (16, 7, 7)
    assert max(file.stat().st_size for file in record.path.glob("observation=*")) < 20_000


@pytest.mark.parametrize("options", [{"record": False}, {"record": "elsewhere/weak"}])
def test_a_place_of_ones_own_or_none(options):
    fit(GradCAMCallback(samples=2, **options))
    found = [path.parent for path in Path().rglob("record.json")]
    assert found == ([] if options["record"] is False else [Path("elsewhere/weak")])
    if found:
        assert Record.open("elsewhere/weak").name == "weak"


def test_a_fast_dev_run_leaves_none():
    trainer(GradCAMCallback(samples=2, record="here"), fast_dev_run=True).fit(TinyModule(), loader(), loader())
    assert not Path("here").exists()


def test_two_runs_never_share_a_folder():
    for _ in range(2):
        fit(GradCAMCallback(samples=2, record="same"))
    assert Record.open("same").about["id"] != Record.open("same_1").about["id"]
    assert Record.open("same").epochs.tolist() == Record.open("same_1").epochs.tolist() == [-1, 0, 1]


@pytest.mark.parametrize("version", ["same", "other"])
def test_a_resumed_run_goes_on_with_its_record(version):
    save = ModelCheckpoint("saved", save_last=True, save_top_k=-1, filename="{epoch}")

    def run(epochs, version, ckpt_path=None):
        logger = TensorBoardLogger(".", name="", version=version)
        options = {"logger": logger, "max_epochs": epochs, "enable_checkpointing": True}
        trainer(GradCAMCallback("net.4", samples=2), save, **options).fit(
            TinyModule(), loader(), loader(), ckpt_path=ckpt_path
        )
        return Record.open(version)

    first = run(3, "same")
    second = run(4, version, "saved/epoch=1.ckpt")  # the run had gone further than the state that is resumed
    assert second.epochs.tolist() == [-1, 0, 1, 2, 3]
    assert second.about["id"] == first.about["id"]
    assert np.array_equal(second.maps["gradcam"][:3], first.maps["gradcam"][:3])
    superseded = list(Path("same/gradcam").glob("*.superseded"))
    assert len(superseded) == (version == "same")  # set aside, not deleted
    assert (len(Record.open("same").epochs) == 4) == (version == "other")


def test_a_resumed_run_with_other_samples_starts_a_record_of_its_own():
    save = ModelCheckpoint("saved", save_last=True)
    for samples, epochs, ckpt_path in (([0, 1], 1, None), ([2, 3], 2, "saved/last.ckpt")):
        logger = TensorBoardLogger(".", name="", version="a")
        callback = GradCAMCallback("net.4", samples=samples)
        run = trainer(callback, save, logger=logger, max_epochs=epochs, enable_checkpointing=True)
        if ckpt_path:
            with pytest.warns(UserWarning, match="drift starts anew"):
                run.fit(TinyModule(), loader(), loader(), ckpt_path=ckpt_path)
        else:
            run.fit(TinyModule(), loader(), loader())
    assert Record.open("a/gradcam").epochs.tolist() == [-1, 0]
    assert Record.open("a/gradcam_1").epochs.tolist() == [1]


def resumed(folder, ckpt_path, epochs, **options):
    save = ModelCheckpoint("saved", save_last=True, save_top_k=-1, filename="{epoch}")
    callback = GradCAMCallback("net.4", samples=2, record=folder)
    run = trainer(callback, save, max_epochs=epochs, enable_checkpointing=True, **options)
    run.fit(TinyModule(), loader(), loader(), ckpt_path=ckpt_path)
    return callback


def test_another_spelling_of_the_folder_is_the_same_folder(tmp_path):
    resumed("weak", None, 2)
    Path("link").symlink_to("weak")
    assert resumed(tmp_path / "link", "saved/epoch=0.ckpt", 3)._session.outlets.writer.folder == tmp_path / "weak"
    assert Record.open("weak").epochs.tolist() == [-1, 0, 1, 2]


def test_forks_of_one_checkpoint_have_a_record_each():
    first = resumed("base", None, 3)
    forks = [resumed("base", "saved/epoch=1.ckpt", 4) for _ in range(3)]
    assert [fork._session.outlets.writer.folder.name for fork in forks] == ["base", "base_1", "base_2"]
    for fork in forks:
        record = Record.open(fork._session.outlets.writer.folder)
        assert record.epochs.tolist() == [-1, 0, 1, 2, 3]
        assert record.about["id"] == first._session.outlets.writer.id
    assert [path.suffix for path in Path("base").glob("*supersed*")] == [".superseded"]


def test_a_folder_that_is_gone_is_said():
    resumed("here", None, 1)
    Path("here").rename("there")
    with pytest.warns(
        UserWarning, match=r"the record of the resumed run is no longer in '.*here', or of another version"
    ):
        resumed("elsewhere", "saved/last.ckpt", 2)
    assert Record.open("elsewhere").epochs.tolist() == [1]


def test_other_pixels_are_another_record():
    def run(size, epochs, ckpt_path=None):
        save = ModelCheckpoint("saved", save_last=True)
        data = loader(Images(size=size))
        run = trainer(
            GradCAMCallback("net.4", samples=2, record="a"), save, max_epochs=epochs, enable_checkpointing=True
        )
        run.fit(TinyModule(), data, data, ckpt_path=ckpt_path)

    run(16, 1)
    with pytest.warns(UserWarning, match="the pixels of the fixed batch are not those"):
        run(32, 2, "saved/last.ckpt")
    assert Record.open("a").maps["gradcam"].shape == (2, 2, 8, 8)
    assert Record.open("a_1").maps["gradcam"].shape == (1, 2, 16, 16)


def test_a_checkpoint_without_a_record_starts_one():
    resumed("a", None, 1)
    saved = torch.load("saved/last.ckpt", weights_only=True)
    (state,) = (one for key, one in saved["callbacks"].items() if "GradCAM" in key)
    del state["record"]
    torch.save(saved, "saved/older.ckpt")
    resumed("b", "saved/older.ckpt", 2)
    assert Record.open("b").epochs.tolist() == [1]


def test_a_model_that_counts_no_steps_loses_no_observation():
    class Own(TinyModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return self(batch[0]).sum()

    callback = GradCAMCallback("net.4", samples=2, record="a")
    trainer(callback, max_epochs=2, val_check_interval=1).fit(Own(), loader(), loader())
    record = Record.open("a")
    assert record.epochs.tolist() == [-1, 0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="counted no optimizer steps, so runs cannot be aligned by fraction"):
        compare(record, by="fraction")


def test_the_last_epoch_of_a_run_that_another_callback_ends_is_counted_right():
    stop = early_stop()
    callback = GradCAMCallback("net.4", samples=2, every_n_epochs=10, record="a")
    trainer(callback, stop, max_epochs=9).fit(TinyModule(), loader(), loader())
    assert Record.open("a").epochs.tolist() == [-1, 1]


@pytest.mark.parametrize("precision", ["bf16-true", "32-true"])
def test_half_precision_labels_and_regions(precision):
    def read(batch):
        regions = {"all": torch.ones(len(batch[0]), 16, 16, dtype=torch.bfloat16)}
        return Batch(batch[0], torch.eye(3)[batch[1]].to(torch.bfloat16), regions, ids=batch[1] + 7)

    callback = GradCAMCallback("net.4", samples=2, batch_fn=read, record="a")
    module = TinyModule()
    trainer(callback, precision=precision).fit(module, loader(), loader())
    record = Record.open("a")
    assert len(record.epochs) == 3
    assert record.about["ids"] == [7, 7]
    assert record.regions["all"].dtype == np.float32


@pytest.mark.slow
def test_a_killed_run_leaves_a_record_that_opens():
    interrupted(signal="SIGKILL")
    killed = Record.open("recorder/version_0")
    assert killed.epochs.tolist() == [-1, 0, 1]
    assert len(compare(killed, killed, samples="all").table()) == 3
    assert interrupted(resume="saved/last.ckpt").returncode == 0
    assert Record.open("recorder/version_0").epochs.tolist() == [-1, 0, 1, 2, 3]


def test_a_folder_that_cannot_be_written_is_an_error_before_training():
    Path("file").write_text("")
    module = TinyModule()
    module.training_step = lambda *args: pytest.fail("training began")
    with pytest.raises(ValueError, match=r"the record cannot be written to 'file/run'.*give `record=` another folder"):
        trainer(GradCAMCallback(samples=2, record="file/run")).fit(module, loader(), loader())
    with pytest.raises(TypeError, match="`record` must be True, False or a folder, got int"):
        GradCAMCallback(record=3)
