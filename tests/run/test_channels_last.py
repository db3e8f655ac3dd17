"""Images whose channels are their last axis: the model gets them as they came, and all else sees photos."""

import pytest
import torch
from tiny import TinyModule, loader, trainer
from torch.utils.data import TensorDataset

from lightning_gradcam import Batch, GradCAMCallback, gradcam
from lightning_gradcam.attribution.batch import shift
from lightning_gradcam.attribution.guided import guided_backprop, guided_gradcam


class Permutes(TinyModule):
    """Takes ``(n, H, W, c)``."""

    def forward(self, images):
        assert images.shape[3] == 3
        return super().forward(images.movedim(3, 1).contiguous())


@pytest.mark.parametrize(
    ("shape", "last", "size"),
    [
        ((2, 16, 12, 3), True, (16, 12)),
        ((2, 16, 12, 1), True, (16, 12)),
        ((2, 5, 5, 4), True, (5, 5)),
        ((2, 3, 16, 12), False, (16, 12)),
        ((2, 3, 16, 3), False, (16, 3)),
        ((2, 16, 4, 4), False, (4, 4)),  # maps of many channels
        ((2, 16, 12, 2), False, (12, 2)),
        ((2, 1, 4, 4), False, (4, 4)),
    ],
)
def test_the_axis_of_the_channels(shape, last, size):
    batch = Batch(torch.rand(shape), regions={"object": torch.ones(2, *size)})
    assert (batch.channel_axis == 3, batch.size) == (last, size)
    assert batch.pictures.shape == (2, shape[3] if last else shape[1], *size)
    assert batch.images.shape == shape


def test_a_shift_moves_them_by_a_pixel_and_not_by_a_colour():
    images = torch.rand(2, 3, 6, 8)
    moved = shift(Batch(images.movedim(1, 3))).images
    assert torch.equal(moved.movedim(3, 1), shift(Batch(images)).images)
    assert torch.equal(moved[:, :, 1:], images.movedim(1, 3)[:, :, :-1])


def test_maps_and_gradients_are_those_of_the_same_images_channels_first():
    module = Permutes().eval()
    images = torch.rand(2, 16, 12, 3)
    first = images.movedim(3, 1).contiguous()
    assert torch.equal(gradcam(module, images, target=0), gradcam(module.net, first, target=0))
    assert torch.equal(guided_backprop(module, images, 0), guided_backprop(module.net, first, 0))
    torch.testing.assert_close(guided_gradcam(module, images, "net.5", 0), guided_gradcam(module.net, first, "5", 0))


def observed(module, images, batch_fn):
    torch.manual_seed(0)
    module.load_state_dict(TinyModule().state_dict())
    data = loader(TensorDataset(images, torch.arange(24) % 3))
    callback = GradCAMCallback(samples=4, batch_fn=batch_fn, guided=True)
    trainer(callback, max_epochs=1).fit(module, data, data)
    return callback._session


def test_a_run_is_the_same_as_of_the_same_images_channels_first(drawn):
    images = torch.rand(24, 16, 12, 3)

    def boxed(batch):
        return Batch(*batch, {"object": torch.tensor([[0, 0, 12, 8]] * len(batch[0]))})

    one = observed(Permutes(), images, boxed)
    keys = [(key, step) for key, step, _ in drawn]
    drawn.clear()
    other = observed(TinyModule(), images.movedim(3, 1).contiguous(), boxed)
    assert one.probe.batch.images.shape == (4, 16, 12, 3)
    assert one.probe.photos.shape == (4, 16, 12)
    torch.testing.assert_close(one.probe.photos, other.probe.photos)
    assert torch.equal(one.probe.regions["object"], other.probe.regions["object"])
    assert one.history.monitored == pytest.approx(other.history.monitored, rel=1e-4, abs=1e-5)
    assert [(key, step) for key, step, _ in drawn] == keys
