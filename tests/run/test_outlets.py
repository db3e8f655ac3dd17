"""Where pictures and numbers go, and what one outlet that fails does to the others."""

from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger
from tiny import Images, TinyModule, fit, loader, trainer

from lightning_gradcam import GradCAMCallback


def test_files_lie_in_the_folder_of_the_run():
    run = trainer(GradCAMCallback(samples=1), logger=CSVLogger("logs", name="a", version="b"), max_epochs=1)
    run.fit(TinyModule(), loader(), loader())
    names = sorted(path.name for path in Path("logs/a/b/gradcam").glob("*grid*"))
    assert names == ["gradcam-grid-step=00000000.jpg", "gradcam-grid-step=00000002.jpg"]


def test_runs_without_logger_do_not_share_a_folder():
    for _ in range(2):
        trainer(GradCAMCallback(samples=1), max_epochs=1).fit(TinyModule(), loader(), loader())
    assert sorted(path.name for path in Path().iterdir()) == ["gradcam", "gradcam_1"]


def test_files_are_never_overwritten():
    callback = GradCAMCallback(samples=2)
    trainer(callback, max_epochs=2, limit_train_batches=1).fit(TinyModule(), loader(), loader())
    assert sorted(path.name for path in Path("gradcam").glob("*grid*")) == [
        "gradcam-grid-step=00000000-1.jpg",
        "gradcam-grid-step=00000000.jpg",
        "gradcam-grid-step=00000001.jpg",
    ]


def test_another_trainer_is_another_run():
    callback = GradCAMCallback(samples=2)
    one = trainer(callback, logger=CSVLogger("logs", name="a", version="one"), max_epochs=1)
    one.fit(TinyModule(), loader(), loader())
    other = trainer(callback, logger=CSVLogger("logs", name="a", version="two"))
    other.test(TinyModule(), loader(Images(10)), verbose=False)
    assert callback._session.probe.batch.ids == [0, 5]
    assert len(list(Path("logs/a/one/gradcam").glob("*grid*"))) == 2
    assert len(list(Path("logs/a/two/gradcam").glob("*grid*"))) == 1


def test_a_picture_that_fails_leaves_the_numbers_and_the_other_loggers(monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    got = []
    sinks = [fail, lambda key, picture, step: got.append(step)]
    monkeypatch.setattr("lightning_gradcam.run.outlets.find_destinations", lambda *args: sinks)
    with pytest.warns(UserWarning, match="a picture in epoch .* failed and is left out.*OSError: disk full"):
        _, logger = fit(GradCAMCallback(samples=2))
    assert (
        got[::3] == got[1::3] == got[2::3] == logger.steps("gradcam/strength") == [0, 2, 5]
    )  # grid, places, filmstrip


def test_a_folder_that_cannot_be_made_is_named_before_training():
    Path("gradcam").mkdir()
    Path("file").touch()
    with pytest.raises(ValueError, match="no logger of the trainer takes pictures, and 'file/gradcam' cannot be made"):
        trainer(GradCAMCallback(samples=2), default_root_dir="file").fit(TinyModule(), loader(), loader())
