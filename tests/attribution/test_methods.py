"""The methods against pytorch-grad-cam and torchcam, on a network where they differ."""

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from lightning_gradcam import gradcam, neuron_importance
from lightning_gradcam.attribution.methods import METHODS, SIGNED_METHODS

LABELS = [3, 5]


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    model = torchvision.models.vgg11(weights=None, num_classes=10).eval()
    # Random weights let gradients vanish below the epsilons that the other libraries add to denominators.
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(20).requires_grad_(False)  # nobody reads its gradients, which are most of the work
    return model


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def ours(model, images, method):
    return gradcam(model, images, "features[19]", lambda output, batch: output[[0, 1], LABELS], method)


def to_unit(maps):
    """What the other libraries do to every map: clip at 0, shift the minimum to 0, scale the maximum to 1."""
    maps = maps.relu()
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        ("gradcam", pytorch_grad_cam.GradCAM),
        ("hirescam", pytorch_grad_cam.HiResCAM),
        ("gradcam++", pytorch_grad_cam.GradCAMPlusPlus),
        ("xgradcam", pytorch_grad_cam.XGradCAM),
        ("layercam", pytorch_grad_cam.LayerCAM),
    ],
)
def test_equals_pytorch_grad_cam(vgg, images, method, theirs):
    with theirs(vgg, [vgg.features[19]]) as cam:
        targets = [ClassifierOutputTarget(label) for label in LABELS]
        activations_and_grads = cam.activations_and_grads
        output = activations_and_grads(images)
        torch.stack([target(row) for target, row in zip(targets, output, strict=True)]).sum().backward()
        activations = activations_and_grads.activations[0].numpy(force=True)
        gradients = activations_and_grads.gradients[0].numpy(force=True)
        raw = cam.get_cam_image(images, cam.target_layers[0], targets, activations, gradients, False)
    expected = torch.from_numpy(np.asarray(raw))
    found = ours(vgg, images, method)
    if method == "layercam":  # pytorch-grad-cam clips it, which is no change after a ReLU
        found = found.relu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


# Not Grad-CAM++: torchcam puts the sum of A * G^3 into the denominator, the paper the sum of A, times G^3.
@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        ("gradcam", torchcam.methods.GradCAM),
        ("xgradcam", torchcam.methods.XGradCAM),
        ("layercam", torchcam.methods.LayerCAM),
    ],
)
def test_equals_torchcam(vgg, images, method, theirs):
    with theirs(vgg, "features.19") as extractor:
        (expected,) = extractor(LABELS, vgg(images))
    torch.testing.assert_close(to_unit(ours(vgg, images, method)), expected, rtol=1e-3, atol=1e-4)


def test_methods_differ_on_this_network(vgg, images):
    maps = {name: to_unit(ours(vgg, images, name)) for name in METHODS if name != "cam"}
    for name, one in maps.items():
        for other, two in maps.items():
            assert name == other or (one - two).abs().max() > 0.01, (name, other)


def test_only_signed_methods_have_negative_cells_after_a_relu(vgg, images):
    for name, method in METHODS.items():
        if name == "cam":  # refused on this network
            continue
        negative = (ours(vgg, images, name) < 0).any()
        assert negative == (method in SIGNED_METHODS or name == "xgradcam"), name


def test_dead_channels_and_flat_gradients_give_zeros_not_nan():
    zeros = torch.zeros(1, 2, 3, 3)
    for method in METHODS.values():
        assert torch.equal(method(zeros, torch.ones_like(zeros)), torch.zeros(1, 3, 3))
        assert torch.equal(method(torch.ones_like(zeros), zeros), torch.zeros(1, 3, 3))


def test_gradcam_plus_plus_by_hand():
    activations = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]])
    gradients = torch.tensor([[[[1.0, -1.0]], [[2.0, 2.0]]]])
    # Channel 0: sum of A is 3; g = 1 gives 1 / (2 + 3) and g = -1 nothing: weight 0.2.
    # Channel 1: sum of A is 1; g = 2 gives 2 / (2 + 2), twice: weight 1.
    expected = 0.2 * activations[:, 0] + activations[:, 1]
    torch.testing.assert_close(METHODS["gradcam++"](activations, gradients), expected)


def test_own_function_and_wrong_names():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    images = torch.rand(1, 3, 4, 4)
    first = gradcam(model, images, "0", 0, lambda activations, gradients: activations[:, 0])
    torch.testing.assert_close(first, model[0](images)[:, 0].detach())
    with pytest.raises(ValueError, match=r"`method` must be one of \[.*'gradcam'.*\] or a function, got 'camera'"):
        gradcam(model, images, "0", 0, "camera")
    with pytest.raises(TypeError, match=r"`method` must be .* or a function, got int"):
        gradcam(model, images, "0", 0, 3)
    with pytest.raises(ValueError, match=r"`method` must give one map a sample, shape \(1, 4, 4\), got \(1, 2, 4, 4\)"):
        gradcam(model, images, "0", 0, lambda activations, gradients: activations)


class Pooled(nn.Module):
    """Global average pooling and one linear layer, or something else between the two."""

    def __init__(self, between=None, bias=True):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.between = between or nn.Identity()
        self.head = nn.Linear(6, 4, bias)

    def forward(self, images):
        return self.head(self.between(self.features(images).mean((2, 3))))


@pytest.mark.parametrize("bias", [True, False])
def test_gradcam_weights_are_those_of_cam_over_the_number_of_cells(bias):
    """The paper's generalization: alpha = w / Z, so Grad-CAM times Z is CAM, and its sum and the bias the logit."""
    model, images, labels = Pooled(bias=bias).eval(), torch.rand(3, 3, 9, 7), torch.tensor([3, 0, 2])
    features = model.features(images)
    cells = features.shape[2] * features.shape[3]
    alpha = neuron_importance(model, images, "features", "label", labels=labels)
    torch.testing.assert_close(alpha, model.head.weight[labels].detach() / cells)
    # CAM by its definition, from the weights alone.
    expected = torch.einsum("nk,nkhw->nhw", model.head.weight[labels], features).detach()
    torch.testing.assert_close(gradcam(model, images, "features", "label", "cam", labels=labels), expected)
    signed = gradcam(model, images, "features", "label", labels=labels)
    torch.testing.assert_close(signed * cells, expected)
    shift = model.head.bias[labels] if bias else 0
    torch.testing.assert_close(signed.sum((1, 2)) + shift, model(images).gather(1, labels[:, None])[:, 0])


def test_cam_on_a_resnet_equals_torchcam():
    model = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    images = torch.rand(2, 3, 64, 64)
    found = gradcam(model, images, "layer4", list(range(10)), "cam")
    labels = found.flatten(2).amax(2).argmax(1).tolist()  # classes with a positive cell
    with torchcam.methods.CAM(model, "layer4", "fc") as extractor:
        (expected,) = extractor(labels, model(images))
    torch.testing.assert_close(to_unit(found[[0, 1], labels]), expected, rtol=1e-3, atol=1e-4)
    signed = gradcam(model, images, "layer4", 3)
    logits = signed.sum((1, 2)) + model.fc.bias[3]
    torch.testing.assert_close(logits, model(images)[:, 3], rtol=0, atol=2e-5)


@pytest.mark.parametrize("between", [nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Tanh()])
def test_cam_refuses_what_is_not_linear_behind_the_pooling(between):
    model = Pooled(between).eval()
    assert gradcam(model, torch.rand(2, 3, 8, 8), "features").isfinite().all()
    with pytest.raises(ValueError, match=r'`method="cam"` needs a network .* Grad-CAM was made for such networks'):
        gradcam(model, torch.rand(2, 3, 8, 8), "features", method="cam")


@pytest.mark.parametrize("between", [nn.BatchNorm1d(6), nn.LayerNorm(6)])
def test_cam_refuses_what_only_at_the_start_is_as_if_it_were_not_there(between):
    model = Pooled(between).eval()  # a fresh norm, and a head of zeros behind it
    nn.init.zeros_(model.head.weight)
    with pytest.raises(ValueError, match=r'`method="cam"` needs a network'):
        gradcam(model, torch.rand(2, 3, 8, 8), "features", method="cam")


@pytest.mark.parametrize("between", [nn.Dropout(0.5), nn.Flatten()])
def test_cam_takes_what_does_nothing_between(between):
    assert gradcam(Pooled(between), torch.rand(2, 3, 8, 8), "features", method="cam").shape == (2, 6, 6)


def test_cam_takes_a_model_with_parameters_of_its_own():
    model = Pooled()
    model.scale = nn.Parameter(torch.ones(()))
    assert gradcam(model, torch.rand(2, 3, 8, 8), "features", method="cam").shape == (2, 6, 6)
    outer = nn.Sequential(model)
    assert gradcam(outer, torch.rand(2, 3, 8, 8), "0.features", method="cam").shape == (2, 6, 6)


@pytest.mark.parametrize("pooled_first", [True, False])
def test_cam_behind_a_convolution_that_is_a_linear_layer(pooled_first):
    convolution, pool = nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1)
    ends = (pool, convolution) if pooled_first else (convolution, pool)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *ends, nn.Flatten()).eval()
    images = torch.rand(2, 3, 9, 7)
    expected = torch.einsum("k,nkhw->nhw", convolution.weight[2, :, 0, 0], model[:2](images)).detach()
    torch.testing.assert_close(gradcam(model, images, "1", 2, "cam"), expected)


@pytest.mark.parametrize("other", [nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 1, groups=2)])
def test_cam_refuses_other_convolutions(other):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), other, nn.Flatten()).eval()
    with pytest.raises(ValueError, match=r'`method="cam"` needs a network'):
        gradcam(model, torch.rand(2, 3, 8, 8), "1", 2, "cam")


def test_cam_refuses_an_output_without_logits():
    class Maps(Pooled):
        def forward(self, images):
            return self.features(images)

    with pytest.raises(ValueError, match=r'`method="cam"` needs a network'):
        gradcam(Maps(), torch.rand(2, 3, 8, 8), "features", lambda output, batch: output.sum((1, 2, 3)), "cam")


def test_cam_refuses_layers_that_are_not_pooled_and_networks_without_pooling(vgg, images):
    model = Pooled().eval()
    with pytest.raises(ValueError, match=r"goes on from `target_layer` 'features\.0' with global average pooling"):
        gradcam(model, torch.rand(2, 3, 8, 8), "features.0", method="cam")
    with pytest.raises(ValueError, match=r"whose weights it takes; VGG does not"):
        ours(vgg, images, "cam")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_cam_in_other_precisions(dtype):
    model = Pooled().eval().to(dtype)
    assert gradcam(model, torch.rand(4, 3, 32, 32).to(dtype), "features", method="cam").shape == (4, 30, 30)
