"""Several scores a sample: a map each from one forward."""

import pytest
import torch
from captum.attr import LayerGradCam
from tiny import CLASSES, tiny_net
from torch import nn

from lightning_gradcam import Batch, GradCAMCallback, TopTarget, gradcam
from lightning_gradcam.attribution.capture import capture


@pytest.fixture
def net():
    return tiny_net().eval()


@pytest.fixture
def images():
    return torch.rand(4, 3, 16, 16)


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam"])
def test_equals_a_pass_for_each_class(net, images, method):
    several = gradcam(net, images, "4", [2, 0], method)
    assert several.shape == (4, 2, 8, 8)
    for column, index in enumerate((2, 0)):
        assert torch.equal(several[:, column], gradcam(net, images, "4", index, method))


def test_equals_captum(net, images):
    explainer = LayerGradCam(net, net[4])
    found = gradcam(net, images, "4", lambda output, batch: output)
    for index in range(CLASSES):
        expected = explainer.attribute(images, index, relu_attributions=False)[:, 0]
        torch.testing.assert_close(found[:, index], expected.detach())


def test_one_forward_and_a_backward_a_score(net, images):
    forwards, backwards = [], []
    net[4].register_forward_hook(lambda *_: forwards.append(1))

    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
            backwards.append(1)
            return gradient

    seen = capture({"4": net[4]}, lambda: Counting.apply(net(images)), lambda output: output)
    assert seen.gradients["4"].shape == (CLASSES, 4, 8, 8, 8)
    assert (len(forwards), len(backwards)) == (1, CLASSES)


def test_also_where_the_graph_ends_in_the_model(images):
    """A re-entrant checkpoint around the head refuses `autograd.grad`."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4 * 14 * 14, 3))

        def forward(self, images):
            return torch.utils.checkpoint.checkpoint(self.head, self.body(images), use_reentrant=True)

    model = Checkpointed()
    several = gradcam(model, images, "body", [0, 2])
    weights = model.head[1].weight.unflatten(1, (4, 14, 14))
    for column, index in enumerate((0, 2)):
        expected = (weights[index].mean((1, 2))[:, None, None] * model.body(images)).sum(1)
        torch.testing.assert_close(several[:, column], expected.detach())


def test_top_classes(net, images):
    output = net(images)
    top = output.topk(2, 1).indices
    found = gradcam(net, images, "4", TopTarget(2))
    every = gradcam(net, images, "4", [0, 1, 2])
    assert torch.equal(found, torch.stack([every[i, top[i]] for i in range(4)]))
    assert gradcam(net, images, "4", TopTarget(1)).shape == (4, 1, 8, 8)
    assert torch.equal(gradcam(net, images, "4", TopTarget(1))[:, 0], gradcam(net, images, "4", "predicted"))


def test_top_classes_of_a_one_logit_head():
    batch = Batch(torch.zeros(2, 1, 4, 4))
    output = torch.tensor([[3.0], [-2.0]])
    assert TopTarget(2)(output, batch).tolist() == [[3, -3], [2, -2]]
    assert TopTarget(2).classes(output, batch).tolist() == [[1, 0], [0, 1]]


def test_refuses_what_names_no_classes(net, images):
    with pytest.raises(ValueError, match="`k` must be a number of classes of at least 1, got 0"):
        TopTarget(0)
    with pytest.raises(ValueError, match="`k` must be at most the model's 3 classes, got 4"):
        gradcam(net, images, "4", TopTarget(4))
    with pytest.raises(TypeError, match="several of these or a function, got the class TopTarget; make an"):
        GradCAMCallback(target=TopTarget)
    assert GradCAMCallback(target=range(2)).target == GradCAMCallback(target=(0, 1)).target
    for wrong in ([], [0, 0], [-1], [True], ["label"]):
        with pytest.raises(ValueError, match=r"`target` as classes must be indices, at least one, none twice"):
            GradCAMCallback(target=wrong)
    with pytest.raises(ValueError, match="`target` 3 is outside the model's 3 classes"):
        gradcam(net, images, "4", [0, 3])


@pytest.mark.parametrize(("classes", "got"), [(torch.zeros(2, dtype=torch.long), r"\(2,\)"), ([[0, 1]] * 2, "list")])
def test_classes_of_another_shape_are_refused(net, images, classes, got):
    class Wrong(TopTarget):
        def classes(self, output, batch):
            return classes

    with pytest.raises(ValueError, match=rf"`target.classes` must give .* shape \(2, 2\), got {got}"):
        gradcam(net, images[:2], "4", Wrong(2))
