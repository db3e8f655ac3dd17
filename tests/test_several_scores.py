"""Several scores a sample: a map each from one forward, rows for all numbers, a row of the grid."""

import pytest
import torch
from captum.attr import LayerGradCam
from pytorch_lightning.loggers import TensorBoardLogger
from test_callback import Recorder
from tiny import CLASSES, TinyModule, loader, tiny_net, trainer
from torch import nn

from lightning_gradcam import Batch, Display, Drift, GradCAMCallback, Record, TopTarget, compare, gradcam
from lightning_gradcam.capture import capture
from lightning_gradcam.picture.grid import captions
from lightning_gradcam.targets import predict


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

    seen = capture(net, {"4": net[4]}, lambda: Counting.apply(net(images)), lambda output: output)
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


def test_captions_of_several_maps_a_sample():
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), ids=[7, "x"]).repeated(2)
    assert batch.ids == ["#7/1", "#7/2", "x/1", "x/2"]
    said = predict(torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log(), Batch(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])))
    maps, asked = torch.ones(4, 1, 1), torch.tensor([0, 1, 0, 1])
    found = captions(batch, maps, said.repeated(2), ["cat", "dog"], None, asked, 2)
    assert [caption.sample for caption in found] == [
        ("#7/1 cat", "0.75"), ("#7/2 cat", "0.75"), ("x/1 dog", "0.25"), ("x/2 dog", "0.25")
    ]  # fmt: skip
    assert [caption.prediction for caption in found] == [
        ("for cat", "0.75"), ("for dog", "0.25"), ("x for cat", "0.75"), ("for dog", "0.25")
    ]  # fmt: skip
    # Right: what is there; wrong: what is predicted and not there; neither: what is neither.
    assert [caption.right for caption in found] == [True, None, False, True]
    found = captions(batch, maps, said.repeated(2), None, None, torch.tensor([0, 7, 0, 1]), 2)
    assert found[1].prediction == ("for 7", "")  # a class of the target's own, which the model has no probability of
    found = captions(batch, maps, None, None, torch.tensor([0.5] * 4), None, 2)
    assert [caption.prediction for caption in found] == [("score 1", "Δ0.50"), ("score 2", "Δ0.50")] * 2


def fit(target, run="run", **options):
    logger = TensorBoardLogger(".", name="", version=run)
    recorder = Recorder()
    callback = GradCAMCallback("net.4", samples=3, target=target, **options)
    trainer(callback, logger=[logger, recorder]).fit(TinyModule(), loader(), loader())
    return recorder


def test_a_run(monkeypatch):
    pictures = {}
    monkeypatch.setattr(
        "lightning_gradcam.sinks.SINKS",
        {"TensorBoardLogger": lambda logger, key, picture, step: pictures.update({key: picture})},
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
    assert found.drift[1].isnan().tolist() == [False, True] * 3
    assert found.drift[2].isnan().tolist() == [False, False] * 3


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
    assert found.isnan().tolist() == [True, False] * 3
    expected = 1 - found[~found.isnan()].quantile(0.5)
    assert recorder.scalars[-1][1]["gradcam/difference_from_one"] == pytest.approx(expected.item())


def test_the_filmstrip_says_what_each_map_is_of():
    callback = GradCAMCallback("net.4", samples=3, target=[2, 0])
    trainer(callback, max_epochs=1).fit(TinyModule(), loader(), loader())
    frame = callback._history.tracks["gradcam"].frames[-1]
    assert frame.classes.tolist() == [2, 0] * 3
    said = callback._history.classes
    verdict = (said == torch.tensor([0, 0, 2, 2, 1, 1])).int()  # labels of the samples 0, 8 and 16
    assert frame.right.tolist() == torch.where(said == frame.classes, verdict, -1).tolist()


def test_another_number_of_scores_later_is_said():
    scores = iter([2, 2, 3, 2])

    def target(output, batch):
        return output[:, : next(scores)]

    callback = GradCAMCallback("net.4", samples=2, target=target, drift=Drift(noise_floor=False))
    with pytest.warns(UserWarning, match="`target` gave 2 scores a sample before and 3 now; let it give as many"):
        trainer(callback, max_epochs=2).fit(TinyModule(), loader(), loader())
    assert callback._history.count == 2


@pytest.mark.parametrize(("classes", "got"), [(torch.zeros(2, dtype=torch.long), r"\(2,\)"), ([[0, 1]] * 2, "list")])
def test_classes_of_another_shape_are_refused(net, images, classes, got):
    class Wrong(TopTarget):
        def classes(self, output, batch):
            return classes

    with pytest.raises(ValueError, match=rf"`target.classes` must give .* shape \(2, 2\), got {got}"):
        gradcam(net, images[:2], "4", Wrong(2))
