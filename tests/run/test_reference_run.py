"""Another run as the reference: its maps in the filmstrip, and the difference from it in the numbers."""

from pathlib import Path

import pytest
import torch
from records import about
from tiny import Evident, Images, Recorder, TinyModule, events, loader, trainer

from lightning_gradcam import Drift, GradCAMCallback, Record
from lightning_gradcam.metrics.drift import agreement
from lightning_gradcam.record.writer import Writer, sample_rows
from lightning_gradcam.run.reference import ReferenceRun


def train(seed, layer="net.5", data=None, logger=None, **drift):
    torch.manual_seed(seed)
    callback = GradCAMCallback(layer, samples=4, drift=Drift(noise_floor=False, **drift))
    logger = logger or Recorder()
    data = loader(data)
    trainer(callback, logger=logger, default_root_dir=f"seed {seed}").fit(Evident(), data, data)
    return logger, callback


@pytest.fixture
def strong():
    """The folder of a run."""
    train(1)
    return Path("seed 1/recorder/version_0")


def test_the_difference_is_logged_and_that_of_the_callback_s_own_maps(strong):
    logger, _ = train(0, reference_run=strong)
    theirs = torch.from_numpy(Record.open(strong).maps["gradcam"][-1])
    ours = [torch.from_numpy(maps) for maps in Record.open("seed 0/recorder/version_0").maps["gradcam"]]
    expected = [(1 - agreement(maps, theirs)) for maps in ours]
    expected = [values[~values.isnan()].quantile(0.5).item() for values in expected]
    assert logger.values("gradcam/difference_from_recorder_version_0") == pytest.approx(expected)
    assert logger.steps("gradcam/difference_from_recorder_version_0") == [0, 2, 5]


def test_a_run_that_is_the_reference_run_ends_with_no_difference(strong):
    logger, _ = train(1, reference_run=strong)
    assert logger.values("gradcam/difference_from_recorder_version_0")[-1] == pytest.approx(0, abs=1e-6)


def test_a_reference_run_may_have_another_layer_and_grid(strong):
    logger, _ = train(0, layer="net.0", reference_run=strong)
    values = logger.values("gradcam/difference_from_recorder_version_0")
    assert len(values) == 3
    assert all(0 <= value <= 1 for value in values)


def test_other_samples_are_refused_before_training(strong):
    with pytest.raises(ValueError, match=r"has not looked at the same samples: the datasets hold 30 and 24, here and"):
        train(0, data=Images(30), reference_run=strong)
    with pytest.raises(FileNotFoundError, match="no record at 'nowhere'"):
        train(0, reference_run="nowhere")
    with pytest.raises(ValueError, match="`reference_run` must be a folder, got 3"):
        Drift(reference_run=3)
    with pytest.raises(ValueError, match=r"has the layers gradcam, and this run has gradcam_0, gradcam_5"):
        train(0, layer=["net.0", "net.5"], reference_run=strong)


def test_another_question_is_said(strong):
    torch.manual_seed(0)
    callback = GradCAMCallback("net.5", samples=4, target=0, drift=Drift(reference_run=strong))
    with pytest.warns(UserWarning, match="asks for 'target 0 · gradcam', recorder_version_0 asked for 'target label"):
        trainer(callback).fit(TinyModule(), loader(), loader())


def test_its_name_becomes_a_key():
    card = about(name="strong, seed 1 / <b>", settings={"layers": {"early": "a"}})
    writer = Writer(Path("odd"), card, torch.zeros(2, 8, 8).byte().numpy(), {})
    maps = {"early": torch.ones(2, 4, 4).numpy()}
    writer.write(0, 1, maps, sample_rows(torch.zeros(2).numpy(), None, None, None, None), {})
    beside = ReferenceRun.of(Record.open("odd"), ["gradcam"])
    assert beside.name == "strong__seed_1____b_"
    assert beside.maps["gradcam"].tolist() == maps["early"].tolist()
    assert beside.classes.tolist() == beside.right.tolist() == [-1, -1]


def test_tensorboard_gets_the_wider_filmstrip(strong):
    from pytorch_lightning.loggers import TensorBoardLogger

    for version, drift in (("with", {"reference_run": strong}), ("without", {})):
        train(0, logger=TensorBoardLogger(".", name="", version=version), **drift)
    wide, plain = (events(version).Images("gradcam/filmstrip")[-1].width for version in ("with", "without"))
    assert wide - plain == 84
