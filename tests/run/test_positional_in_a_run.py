"""Positional bias in a run: its numbers, its picture, and the line that names a place nobody has named."""

import numpy as np
import pytorch_lightning as pl
import torch
from tiny import Recorder, TinyModule, loader, trainer

from lightning_gradcam import Batch, GradCAMCallback
from lightning_gradcam.attribution.spatial import upsampled
from lightning_gradcam.picture.overlay import colors


def spots(cells):
    """A method whose map of each sample is one cell, the same in each look."""

    def method(activations, gradients):
        maps = torch.zeros(len(activations), *activations.shape[2:])
        for one, cell in zip(maps, cells * len(maps), strict=False):
            if cell is not None:
                one[cell] = 1
        return maps

    return method


class LinesBeforeTraining(pl.Callback):
    def __init__(self, caplog):
        self.caplog, self.lines = caplog, None

    def on_train_epoch_start(self, trainer, pl_module):
        if self.lines is None:
            self.lines = [text for text in self.caplog.messages if "lie at one place" in text]


def run(cells, caplog, **options):
    caplog.clear()
    before = LinesBeforeTraining(caplog)
    logger = Recorder()
    options = {"samples": len(cells), "record": False} | options
    callback = GradCAMCallback("net.4", method=spots(cells), **options)
    with caplog.at_level("INFO"):
        trainer(callback, before, logger=logger, max_epochs=3).fit(TinyModule(), loader(), loader())
    assert before.lines == []
    return logger, [text for text in caplog.messages if "lie at one place" in text]


def test_maps_at_one_place_are_told_of_once_and_not_before_training(caplog, drawn):
    logger, lines = run([(6, 1)] * 7 + [(3, 3)], caplog)
    assert logger.values("gradcam/positional_bias") == [0.875] * 4
    assert logger.values("gradcam/positional_bias_chance") == [0.25] * 4  # of 64 cells two of eight may meet
    assert lines == [
        "GradCAMCallback: the maps of `net.4` lie at one place: 7 of 8 samples (0.88, by chance 0.25) have the cell "
        "lower left, (6, 1) of 8 x 8, among their strongest tenth. Objects that are always in the middle do this too; "
        "`gradcam/positional_bias_map` shows where."
    ]


def test_maps_of_different_places_are_not(caplog, drawn):
    logger, lines = run([(0, 0), (3, 3), (6, 1), (0, 0), (2, 7), (0, 0)], caplog)
    assert logger.values("gradcam/positional_bias") == [0.5] * 4
    assert not lines


def test_two_maps_at_one_place_may_be_so_by_chance(caplog):
    logger, lines = run([(0, 0)], caplog)
    assert logger.values("gradcam/positional_bias_chance") == [1] * 4
    assert not lines


def test_empty_maps_do_not_count_and_where_all_are_empty_nothing_is_known(caplog, drawn):
    logger, _ = run([(0, 0), None, (0, 0), (5, 5), (5, 6)], caplog)
    assert logger.values("gradcam/positional_bias") == [0.5] * 4
    logger, lines = run([None] * 4, caplog)
    assert not logger.values("gradcam/positional_bias")
    assert not logger.values("gradcam/positional_bias_chance")
    assert sum(key == "gradcam/positional_bias_map" for key, _, _ in drawn) == 8  # "map empty" is drawn too
    assert not lines


def test_several_maps_of_few_samples_are_no_shortcut(caplog):
    """Nine times one sample: that is one picture."""
    logger = Recorder()
    callback = GradCAMCallback("net.4", samples=[5] * 9, method=spots([(0, 0)]), record=False)
    with caplog.at_level("INFO"):
        trainer(callback, logger=logger).fit(TinyModule(), loader(), loader())
    assert logger.values("gradcam/positional_bias_chance") == [1] * 3
    assert not any("lie at one place" in text for text in caplog.messages)


def test_each_group_has_its_own(caplog):
    cells = [(0, 0), (7, 7)] * 3
    batch_fn = lambda batch: Batch(*batch, groups=["one", "two"] * (len(batch[0]) // 2))  # noqa: E731
    logger, _ = run(cells, caplog, batch_fn=batch_fn)
    for key, expected in (("", 0.5), ("/one", 1.0), ("/two", 1.0)):
        assert logger.values(f"gradcam/positional_bias{key}") == [expected] * 4


def test_no_picture_has_the_key_of_a_number(drawn):
    logger = Recorder()
    options = {"guided": True, "localization": "object", "record": False}
    callback = GradCAMCallback(
        samples=6, batch_fn=lambda batch: Batch(*batch, {"object": torch.tensor([[0, 0, 16, 8]] * 6)}), **options
    )
    trainer(callback, logger=logger).fit(TinyModule(), loader(), loader())
    numbers = {key for _, metrics in logger.scalars for key in metrics}
    pictures = {key for key, _, _ in drawn}
    assert {"gradcam/positional_bias", "gradcam/pxap"} <= numbers
    assert {"gradcam/positional_bias_map", "gradcam/grid", "gradcam/guided_gradcam"} <= pictures
    assert not numbers & pictures


def test_one_colour_of_the_picture_is_one_share_in_all_of_them(caplog, drawn):
    for cells, share in (([(3, 3)] * 4, 1), ([(3, 3), (3, 3), (0, 7), (7, 0)], 0.5)):
        drawn.clear()
        run(cells, caplog)
        picture = np.asarray(next(one for key, _, one in drawn if key == "gradcam/positional_bias_map"), float)
        # The tile of 320 pixels begins behind a gutter of 4: the cell (3, 3) has its middle at 4 + 3.5 * 40.
        middle, grey = picture[142:147, 142:147], picture[215:235, 215:235].mean()
        places = torch.zeros(1, 8, 8)
        places[0, 3, 3] = share
        values = upsampled(places, (320, 320))[0, 138:143, 138:143, None]
        expected = 0.75 * values * 255 * colors(values[..., 0], "turbo") + (1 - 0.75 * values) * grey
        assert np.abs(middle - expected.numpy()).mean() < 12
