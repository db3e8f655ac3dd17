"""Where there is no map to be had, and how that is told from a wrong name."""

import pytest
import torch
from torch import nn

from lightning_gradcam import gradcam
from lightning_gradcam.attribution.choice import NoMapError

scripts = pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:FutureWarning")


class Net(nn.Module):
    def __init__(self, detached=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.pool, self.head, self.detached = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3), detached

    def forward(self, images):
        pooled = self.pool(self.body(images)).flatten(1)
        return self.head(pooled.detach() if self.detached else pooled)


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [None, "1", "2"])
def test_a_network_without_a_grid(layer):
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(NoMapError) as error:
        gradcam(model, IMAGES, layer)
    if layer is None:
        assert "since none of its modules hands out maps or tokens on a grid; Grad-CAM needs one, so" in str(
            error.value
        )
    else:
        assert f"`target_layer` '{layer}' hands out (2, 8); expected maps or tokens of 2 samples" in str(error.value)


def test_a_name_without_a_grid_where_another_has_one():
    for layer, shape in (("pool", r"\(2, 4, 1, 1\)"), ("head", r"\(2, 3\)")):
        with pytest.raises(ValueError, match=rf"'{layer}' hands out {shape}; .* such as 'body', or say by") as error:
            gradcam(Net(), IMAGES, layer)
        assert not isinstance(error.value, NoMapError)
    with pytest.raises(ValueError, match="is not a layer of Net") as error:
        gradcam(Net(), IMAGES, "neck")
    assert not isinstance(error.value, NoMapError)


@pytest.mark.parametrize("layer", [None, "body"])
def test_a_detached_score(layer):
    expected = {
        None: "has no gradient: it ends behind `pool`, the last module whose output has one; let it pass there",
        "body": r"the score does not depend on `target_layer` 'body': something after it, such as `\.detach\(\)`",
    }
    with pytest.raises(NoMapError, match=expected[layer]):
        gradcam(Net(detached=True), IMAGES, layer)


def test_images_that_become_integers():
    class Counting(Net):
        def forward(self, images):
            return super().forward(images.long().float()).argmax(1, keepdim=True).float()

    with pytest.raises(NoMapError, match="the score has no gradient: the forward detaches it, runs in inf"):
        gradcam(Counting(), IMAGES, target=lambda output, batch: output[:, 0])


@scripts
def test_layers_inside_a_traced_module():
    model = nn.ModuleDict({"net": torch.jit.trace(Net().eval(), IMAGES)})
    model.forward = lambda images: model["net"](images)
    with pytest.raises(NoMapError, match="since `net` is a scripted or traced module, which runs no hooks, so look at"):
        gradcam(model, IMAGES)


@pytest.mark.parametrize("container", [list, tuple, lambda parts: dict(enumerate(parts))])
def test_modules_in_a_plain_container(container):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = container([nn.Conv2d(3, 4, 3), nn.ReLU()])
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.blocks[1](self.blocks[0](images)).mean((2, 3)))

    model = nn.Sequential(Hidden())
    with pytest.raises(NoMapError, match=r"since `0.blocks` holds modules in a plain list, tuple or dict.*ModuleList"):
        gradcam(model, IMAGES)
