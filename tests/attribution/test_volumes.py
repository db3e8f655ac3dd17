"""Maps of volumes, clips and signals: against captum, and by formula."""

import pytest
import torch
from captum.attr import GuidedBackprop, LayerGradCam
from torch import nn
from torchvision.models import video
from torchvision.models.video.mvit import MSBlockConfig, MViT

from lightning_gradcam import gradcam, guided_backprop, guided_gradcam
from lightning_gradcam.attribution.layout import Flattened, Frames, Tokens, as_layout
from lightning_gradcam.attribution.methods import METHODS
from lightning_gradcam.attribution.spatial import averaged, upsampled


def signal_net():
    return nn.Sequential(
        *(nn.Conv1d(3, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 5, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval()


def volume_net():
    return nn.Sequential(
        *(nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2)),
        *(nn.Conv3d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval()


NETS = {"signals": (signal_net, (2, 3, 64), "4"), "volumes": (volume_net, (2, 2, 8, 12, 10), "5")}


# Captum says that it sets hooks, and that it needs gradients at the inputs.
@pytest.mark.filterwarnings("ignore:(Setting backward hooks|Input Tensor):UserWarning")
@pytest.mark.parametrize("kind", NETS)
def test_equal_to_captum(kind):
    torch.manual_seed(0)
    make, shape, layer = NETS[kind]
    model, images, classes = make(), torch.rand(shape), torch.tensor([1, 3])
    captum = LayerGradCam(model, model[int(layer)]).attribute(images, target=classes)[:, 0].detach()
    torch.testing.assert_close(gradcam(model, images, layer, "label", labels=classes), captum)
    torch.testing.assert_close(gradcam(model, images, None, "label", labels=classes), captum)  # chosen
    guided = GuidedBackprop(model).attribute(images, target=1)
    torch.testing.assert_close(guided_backprop(model, images, 1), guided)
    positive = gradcam(model, images, layer, 1).relu()
    torch.testing.assert_close(
        guided_gradcam(model, images, layer, 1), upsampled(positive, shape[2:])[:, None] * guided
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [("r3d_18", 48, "layer3"), ("mc3_18", 48, "layer4"), ("r2plus1d_18", 48, "layer3"), ("s3d", 224, "features")],
)
def test_equal_to_captum_on_torchvision(name, size, layer):
    torch.manual_seed(0)
    model = getattr(video, name)().eval()
    clips = torch.rand(1, 3, 16, size, size)
    captum = LayerGradCam(model, model.get_submodule(layer)).attribute(clips, target=7)[:, 0].detach()
    torch.testing.assert_close(gradcam(model, clips, layer, 7), captum)


def by_formula(model, layer, images, target, cells):
    """Grad-CAM of one layer by its formula: ``cells`` brings what it hands out to ``(n, c, t, h, w)``."""
    made = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: made.append(output))
    scores = model(images)
    handle.remove()
    output = made[0][0] if isinstance(made[0], tuple) else made[0]
    (gradient,) = torch.autograd.grad(scores[:, target].sum(), output)
    activation, gradient = cells(output.detach()), cells(gradient)
    return (gradient.mean((2, 3, 4), keepdim=True) * activation).sum(1)


def test_video_transformers_by_formula():
    """Torchvision's, an MViT of three blocks; the whole ones are in docs/model_coverage.md."""
    torch.manual_seed(0)
    kernel, narrow = [3, 3, 3], [1, 2, 2]
    blocks = [
        MSBlockConfig(1, 16, 16, kernel, kernel, [1, 1, 1], [1, 4, 4]),
        MSBlockConfig(2, 16, 32, kernel, kernel, narrow, narrow),
        MSBlockConfig(2, 32, 32, kernel, kernel, [1, 1, 1], narrow),
    ]
    mvit = MViT((64, 64), 8, blocks, True, True, True, True, num_classes=5).eval()
    clips = torch.rand(2, 3, 8, 64, 64)
    expected = by_formula(
        mvit, "blocks.1", clips, 3, lambda output: output[:, 1:].transpose(1, 2).unflatten(2, (4, 8, 8))
    )
    torch.testing.assert_close(gradcam(mvit, clips, "blocks.1", 3), expected)
    assert gradcam(mvit, clips, None, 3).shape == (2, 4, 8, 8)
    swin = video.swin3d_t().eval()
    expected = by_formula(swin, "norm", clips, 3, lambda output: output.movedim(-1, 1))
    torch.testing.assert_close(gradcam(swin, clips, "norm", 3), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", NETS)
def test_every_method_sees_an_axis_of_one_cell_as_none(kind, method):
    """An image with a further axis of length one has the map of the image, whatever the method."""
    torch.manual_seed(0)
    activations, gradients = torch.rand(2, 5, 4, 3), torch.randn(2, 5, 4, 3)
    flat = METHODS[method](activations, gradients)
    if kind == "volumes":
        deep = METHODS[method](activations[:, :, None], gradients[:, :, None])[:, 0]
    else:
        deep = METHODS[method](activations.flatten(2), gradients.flatten(2)).unflatten(1, (4, 3))
    torch.testing.assert_close(deep, flat)


def test_cam_of_a_volume():
    torch.manual_seed(0)
    model, volumes = volume_net(), torch.rand(2, 2, 8, 12, 10)
    maps = gradcam(model, volumes, "5", 2, "cam")
    activations = model[:6](volumes).detach()
    torch.testing.assert_close(maps, torch.einsum("ncdhw,c->ndhw", activations, model[8].weight[2].detach()))
    torch.testing.assert_close(maps, maps[0].numel() * gradcam(model, volumes, "5", 2))


def test_layouts_by_hand():
    cells = torch.arange(48.0).reshape(2, 2, 3, 2, 2)  # (n, c, t, h, w)
    frames = cells.movedim(2, 1)
    assert torch.equal(Frames(3)(frames.flatten(0, 1)), cells)
    assert torch.equal(Frames(3, batch_axis=1)(frames.transpose(0, 1).flatten(0, 1)), cells)
    tokens = frames.flatten(3).mT  # (n, t, cells, c)
    assert torch.equal(Frames(3, Tokens((2, 2)))(tokens.flatten(0, 1)), cells)
    assert torch.equal(Tokens((3, 2, 2))(tokens.flatten(1, 2)), cells)
    assert torch.equal(Tokens((3, 2, 2), time_last=True)(tokens.transpose(1, 2).flatten(1, 2)), cells)
    assert torch.equal(Flattened((3, 2, 2))(cells.flatten(2)), cells)
    for output in (cells, cells.movedim(1, -1), frames.flatten(0, 1), tokens.flatten(1, 2), cells.flatten(2)):
        assert torch.equal(as_layout((3, 2, 2))(output), cells)
    signal = torch.arange(12.0).reshape(2, 2, 3)
    assert torch.equal(as_layout((3,))(signal), signal)


class Transformer(nn.Module):
    """Patches of signals, a class token, an encoder."""

    def __init__(self, channels=32, length=256):
        super().__init__()
        self.patch = nn.Conv1d(2, channels, 8, stride=8)
        self.first = nn.Parameter(torch.randn(1, 1, channels))
        self.places = nn.Parameter(torch.randn(1, 1 + length // 8, channels))
        layer = nn.TransformerEncoderLayer(channels, 2, 64, batch_first=True, dropout=0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(channels, 3)

    def forward(self, signals):
        tokens = self.patch(signals).mT
        tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], 1) + self.places
        return self.head(self.encoder(tokens)[:, 0])


def test_tokens_of_signals_are_told_from_channels():
    """There are 32 cells and 32 channels."""
    torch.manual_seed(0)
    model, signals = Transformer().eval(), torch.rand(2, 2, 256)
    found = gradcam(model, signals, "encoder.layers.0.norm2", 1, grid=Tokens((32,)))
    torch.testing.assert_close(gradcam(model, signals, "encoder.layers.0.norm2", 1), found)


def test_a_layer_with_one_cell_in_time_is_told_of():
    torch.manual_seed(0)
    clips = nn.Sequential(
        *(nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)), nn.ReLU(), nn.Conv3d(4, 5, (6, 1, 1)), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 2)),
    ).eval()
    with pytest.warns(UserWarning, match="1 x 8 x 8 cells of `3` tell nothing of when; `1` before it has 6 x 8 x 8"):
        assert gradcam(clips, torch.rand(2, 3, 6, 8, 8)).shape == (2, 1, 8, 8)


def test_maps_on_clips_are_linear_in_time_too():
    maps = torch.zeros(1, 2, 1, 1)
    maps[0, 1] = 1
    assert upsampled(maps, (4, 1, 1)).flatten().tolist() == [0, 0.25, 0.75, 1]
    assert averaged(torch.arange(8.0).reshape(1, 2, 2, 2), (1, 1, 2)).flatten().tolist() == [3, 4]
