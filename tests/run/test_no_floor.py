"""A noise floor is measured where the shift of the images reaches the model, and else left out in words."""

import pytest
import torch
from tiny import BEFORE, Evident, Recorder, loader, new, observe, trainer

from lightning_gradcam import Batch, GradCAMCallback

MAPS = torch.tensor([[[4.0, 0], [0, 0]], [[0, 0], [0, -2]]])


@pytest.mark.parametrize(
    ("other", "measured"),
    [
        (MAPS, False),
        (MAPS * (1 + 1e-7), False),
        (MAPS * (1 + 1e-5), True),
        (MAPS + torch.tensor([0.0, 1e-3])[:, None, None], True),  # one sample has moved
    ],
)
def test_the_floor_is_left_out_where_no_map_has_moved(other, measured):
    numbers, _ = observe(new(), MAPS, BEFORE, shifted=other)
    assert ("drift_floor" in numbers) == measured


def test_empty_maps_say_nothing_of_the_shift():
    numbers, _ = observe(new(), MAPS * 0, BEFORE, shifted=MAPS * 0)
    assert torch.tensor(numbers["drift_floor"]).isnan()


def run(**options):
    logger = Recorder()
    callback = GradCAMCallback("net.5", samples=4, **options)
    trainer(callback, logger=logger).fit(Evident(), loader(), loader())
    return logger


def test_a_forward_that_reads_inputs_has_no_floor_which_is_said_once(caplog):
    caplog.set_level("INFO")
    logger = run(
        batch_fn=lambda batch: Batch(*batch, inputs=batch[0]), forward_fn=lambda module, batch: module(batch.inputs)
    )
    assert logger.steps("gradcam/drift_floor") == []
    assert len(logger.steps("gradcam/strength")) == 3
    assert caplog.text.count("leaves `drift_floor` out: images that are shifted by one pixel give the same maps") == 1


def test_a_forward_that_reads_the_images_has_one(caplog):
    caplog.set_level("INFO")
    assert len(run().steps("gradcam/drift_floor")) == 3
    assert "leaves `drift_floor` out" not in caplog.text
