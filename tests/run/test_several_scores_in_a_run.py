"""Several scores a sample in a run: rows for all numbers, a row of the grid, another run beside."""

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tiny import Recorder, TinyModule, loader, trainer

from lightning_gradcam import Batch, Display, Drift, GradCAMCallback, Record, TopTarget, compare


def fit(target, run="run", **options):
    logger = TensorBoardLogger(".", name="", version=run)
    recorder = Recorder()
    callback = GradCAMCallback("net.4", samples=3, target=target, **options)
    trainer(callback, logger=[logger, recorder]).fit(TinyModule(), loader(), loader())
    return recorder


def test_a_run(monkeypatch):
    pictures = {}
    monkeypatch.setattr(
        "lightning_gradcam.loggers.tensorboard.write_picture",
        lambda logger, key, picture, step: pictures.update({key: picture}),
    )
    recorder = fit([2, 0], batch_fn=lambda batch: Batch(*batch, groups=["a", "b", "a"]), display=Display(tile=64))
    grid = pictures["gradcam/grid"]
    assert (grid.width - 4) // 68 == 2  # a column a class
    assert (grid.height - 4 - 17) // (64 + 34 + 4) == 3  # a row a sample
    record = Record.open("run")
    assert record.maps["gradcam"].shape == (3, 6, 8, 8)
    assert record.about["ids"] == ["#0/1", "#0/2", "#8/1", "#8/2", "#16/1", "#16/2"]
    assert record.samples["asked"].tolist() == [[2, 0, 2, 0, 2, 0]] * 3
    strength = torch.tensor(record.maps["gradcam"][-1]).sum((1, 2))
    scalars = dict(recorder.scalars[-1][1])
    assert scalars["gradcam/strength"] == pytest.approx(strength.quantile(0.5).item())
    assert scalars["gradcam/strength/b"] == pytest.approx(strength[2:4].quantile(0.5).item())
    assert compare("run", samples="all").table()[-1]["run/drift"] == pytest.approx(scalars["gradcam/drift"])


def test_drift_is_of_the_same_class():
    """Where another class is among the top ones the maps answer another question."""
    asked = iter([[[0, 1]], [[0, 1]], [[0, 2]], [[0, 2]]])  # sanity check, start, and two epochs

    class Scripted(TopTarget):
        def classes(self, output, batch):
            return torch.tensor(next(asked)).expand(len(batch.images), 2)

    fit(Scripted(2), method=lambda activations, gradients: activations.sum(1), drift=Drift(noise_floor=False))
    found = compare("run", samples="all").runs[0]
    assert np.isnan(found.drift[1]).tolist() == [False, True] * 3
    assert np.isnan(found.drift[2]).tolist() == [False, False] * 3


def test_a_reference_run_with_other_scores_is_refused():
    fit("label", "one")
    expected = "the reference run one has 3 maps of a layer, this run has 6"
    with pytest.warns(UserWarning, match="one asked for 'target label"), pytest.raises(ValueError, match=expected):
        fit([0, 1], "two", drift=Drift(reference_run="one"))


def test_the_difference_from_another_run_is_of_the_same_classes():
    def method(activations, gradients):
        return activations.abs().sum(1)

    fit([0, 1], "one", method=method)
    with pytest.warns(UserWarning, match=r"asks for 'target \[2, 1\] · method', one asked"):
        recorder = fit([2, 1], "two", method=method, drift=Drift(reference_run="one"))
    found = compare("one", "two", samples="all").runs[1].agreement[-1]
    assert np.isnan(found).tolist() == [True, False] * 3
    expected = 1 - np.nanmedian(found)
    assert recorder.scalars[-1][1]["gradcam/difference_from_one"] == pytest.approx(expected.item())


def test_the_filmstrip_says_what_each_map_is_of():
    callback = GradCAMCallback("net.4", samples=3, target=[2, 0])
    trainer(callback, max_epochs=1).fit(TinyModule(), loader(), loader())
    frame = callback._session.history.tracks["gradcam"].frames[-1]
    assert frame.classes.tolist() == [2, 0] * 3
    said = callback._session.history.classes
    verdict = (said == torch.tensor([0, 0, 2, 2, 1, 1])).int()  # labels of the samples 0, 8 and 16
    assert frame.right.tolist() == torch.where(said == frame.classes, verdict, -1).tolist()


def test_another_number_of_scores_later_is_said():
    scores = iter([2, 2, 3, 2])

    def target(output, batch):
        return output[:, : next(scores)]

    callback = GradCAMCallback("net.4", samples=2, target=target, drift=Drift(noise_floor=False))
    with pytest.warns(UserWarning, match="`target` gave 2 scores a sample before and 3 now; let it give as many"):
        trainer(callback, max_epochs=2).fit(TinyModule(), loader(), loader())
    assert callback._session.history.count == 2
