"""Which axis is time and which counts channels: told by what the first convolution reads, else asked for."""

import re

import pytest
import torch
from torch import nn

from lightning_gradcam import Batch, gradcam
from lightning_gradcam.attribution.axes import with_axes
from lightning_gradcam.attribution.layout import NoMapError
from lightning_gradcam.attribution.reading import AskError


class Reads(nn.Module):
    """Turns what it gets, and goes on with a network."""

    def __init__(self, turn, net):
        super().__init__()
        self.turn, self.net = turn, net

    def forward(self, images):
        return self.net(self.turn(images))


def cubic(channels=3):
    return nn.Conv3d(channels, 2, 3, padding=1)


def flat_in_time(channels=3):
    return nn.Conv3d(channels, 2, (1, 3, 3))


def of_frames(channels=3):
    return nn.Conv2d(channels, 2, 3)


def same(images):
    return images


@pytest.mark.parametrize(
    ("shape", "model", "name", "time_axis"),
    [
        ((2, 1, 5, 8, 8), cubic(1), "", None),
        ((2, 3, 5, 8, 8), cubic(), "", None),  # three channels are no clip alone
        ((2, 3, 5, 8, 8), cubic(), "video", 2),
        ((2, 3, 5, 8, 8), flat_in_time(), "", 2),
        ((2, 1, 5, 8, 8), flat_in_time(1), "", None),  # as for volumes of thick slices
        ((2, 5, 3, 8, 8), Reads(lambda images: images.transpose(1, 2), cubic()), "", 1),
        ((2, 3, 3, 8, 8), Reads(lambda images: images.transpose(1, 2), cubic()), "", 1),  # told by the values
        ((2, 5, 3, 8, 8), Reads(lambda images: images.flatten(0, 1), of_frames()), "", 1),
        ((2, 5, 3, 8, 8), Reads(lambda images: images.flatten(0, 1) - 0.5, of_frames()), "", 1),
        ((2, 3, 3, 8, 8), Reads(lambda images: images.flatten(0, 1), of_frames()), "", 1),
        ((2, 3, 5, 8, 8), Reads(lambda images: images.transpose(1, 2).flatten(0, 1), of_frames()), "", 2),
        ((2, 5, 3, 8, 8), Reads(lambda images: images[:, 0], of_frames()), "", 1),
        ((2, 4, 3, 8, 8), Reads(lambda images: images.flatten(2), nn.Linear(192, 2)), "", None),
        ((2, 3, 40), nn.Conv1d(3, 2, 3), "", None),
        ((2, 40, 3), Reads(lambda images: images.mT, nn.Conv1d(3, 2, 3)), "", 1),
        ((2, 3, 3), Reads(lambda images: images.mT, nn.Conv1d(3, 2, 3)), "", 1),
    ],
)
def test_the_first_convolution_tells(shape, model, name, time_axis):
    batch, how = with_axes(model, Batch(torch.rand(shape)), lambda batch: model(batch.images), name)
    assert batch.time_axis == time_axis
    assert how


def test_images_and_what_is_said_are_left_alone():
    for batch in (Batch(torch.rand(2, 3, 8, 8)), Batch(torch.rand(2, 3, 5, 8, 8), time_axis=2)):
        assert with_axes(nn.Identity(), batch, None) == (batch, "")


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        ((2, 3, 3, 8, 8), Reads(lambda images: images.flatten(0, 1) - 0.5, of_frames())),
        ((2, 4, 3, 8, 8), Reads(lambda images: images.flatten(1, 2), of_frames(12))),  # all frames are channels
    ],
)
def test_what_does_not_tell_is_asked_for(shape, model):
    message = re.escape(f"the images {shape} may be (n, c, t, H, W), (n, t, c, H, W) or volumes")
    with pytest.raises(AskError, match=message + ".*give `time_axis=1`"):
        with_axes(model, Batch(torch.rand(shape)), lambda batch: model(batch.images))


def test_images_without_channels_are_asked_for():
    model = Reads(lambda images: images[:, None], nn.Conv2d(1, 2, 3))
    with pytest.raises(AskError, match="have no axis of channels, and the model's first convolution reads") as raised:
        with_axes(model, Batch(torch.rand(2, 8, 8)), lambda batch: model(batch.images))
    assert raised.value.arguments["forward_fn"] == "lambda module, batch: module(batch.images[:, 0])"


class CNNAndLSTM(nn.Module):
    """The commonest network for clips: one for images on all frames, then one for sequences."""

    def __init__(self, frames_first=False):
        super().__init__()
        self.frames_first = frames_first
        self.cnn = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, clips):
        axes = (1, 0) if self.frames_first else (0, 1)
        rows = clips.transpose(0, 1) if self.frames_first else clips
        features = self.cnn(rows.flatten(0, 1)).relu().mean((2, 3)).unflatten(0, [clips.shape[axis] for axis in axes])
        return self.head(self.lstm(features.transpose(0, 1) if self.frames_first else features)[0][:, -1])


@pytest.mark.parametrize("frames_first", [False, True])
def test_a_network_for_images_on_the_frames_of_clips(frames_first):
    torch.manual_seed(0)
    model, clips = CNNAndLSTM(frames_first).eval(), torch.rand(2, 4, 3, 16, 12)
    chosen = gradcam(model, clips)
    assert chosen.shape == (2, 4, 8, 6)
    # By hand: the gradient of the class with the largest score at what the CNN hands out, pooled over all frames.
    made = []
    handle = model.cnn.register_forward_hook(lambda module, args, output: made.append(output))
    scores = model(clips)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.amax(1).sum(), made)
    activation = made[0]
    if frames_first:
        activation, gradient = (
            one.unflatten(0, (4, 2)).transpose(0, 1).flatten(0, 1) for one in (activation, gradient)
        )
    activation, gradient = (one.detach().unflatten(0, (2, 4)).movedim(1, 2) for one in (activation, gradient))
    expected = (gradient.mean((2, 3, 4), keepdim=True) * activation).sum(1)
    torch.testing.assert_close(gradcam(model, clips, "cnn"), expected)
    torch.testing.assert_close(chosen, expected)


def test_frames_that_are_looked_at_one_by_one_give_no_map_of_the_last_alone():
    class OneByOne(CNNAndLSTM):
        def forward(self, clips):
            features = [self.cnn(clips[:, frame]).relu().mean((2, 3)) for frame in range(clips.shape[1])]
            return self.head(self.lstm(torch.stack(features, 1))[0][:, -1])

    with pytest.raises(NoMapError, match="runs its network for images once for each frame of a clip"):
        gradcam(OneByOne().eval(), torch.rand(2, 4, 3, 16, 12))


@pytest.fixture(params=["as it is", "ieee"])
def precision_of_convolutions(request):
    """The setting of newer versions of torch, beside which the older one cannot be read."""
    settings = getattr(torch.backends.cudnn, "conv", None)
    before = getattr(settings, "fp32_precision", None)
    if settings is not None and request.param == "ieee":
        settings.fp32_precision = "ieee"
    yield
    if settings is not None:
        settings.fp32_precision = before


@pytest.mark.usefixtures("precision_of_convolutions")
def test_recurrent_layers_run_without_cudnn_and_leave_it_on():
    seen = []

    class Sees(nn.LSTM):
        def forward(self, *args, **kwargs):
            seen.append(torch.backends.cudnn.enabled)
            return super().forward(*args, **kwargs)

    model = CNNAndLSTM().eval()
    model.lstm = Sees(6, 5, batch_first=True)
    before = torch.backends.cudnn.enabled
    gradcam(model, torch.rand(2, 4, 3, 16, 12), "cnn")
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.enabled == before
