"""Arguments in other forms than lists and tuples mean the same; what only looks like a sequence is refused."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny import TinyModule, loader, tiny_net, trainer

from lightning_gradcam import Batch, Display, GradCAMCallback


class ListConfig(Sequence):
    """As those of OmegaConf: a sequence and no list."""

    def __init__(self, items):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


FORMS = [list, tuple, ListConfig]
NUMBERS = [*FORMS, np.array, torch.tensor, lambda items: [np.int64(item) for item in items]]


@pytest.mark.parametrize("form", [*FORMS, np.array])
def test_layers(form):
    assert GradCAMCallback(form(["net.0", "net.4"])).target_layer == ("net.0", "net.4")
    with pytest.raises(ValueError, match=r"must name at least one layer, and none twice, got \['net.0', 'net.0'\]"):
        GradCAMCallback(form(["net.0", "net.0"]))


def test_a_list_of_modules_is_several_layers_and_a_sequential_one():
    net = tiny_net()
    assert GradCAMCallback(ListConfig([net[0], net[4]])).target_layer == (net[0], net[4])
    assert GradCAMCallback(net).target_layer == (net,)


@pytest.mark.parametrize("form", NUMBERS)
def test_grids(form):
    output = torch.arange(12.0).reshape(1, 6, 2)  # tokens of two channels
    tokens = GradCAMCallback("net.4", grid=form([2, 3])).grid(output)
    assert tokens[0, 0].tolist() == [[0, 2, 4], [6, 8, 10]]
    with pytest.raises(ValueError, match=r"`grid` must be \(h, w\) in cells, .* or a function"):
        GradCAMCallback("net.4", grid=form([2, 3, 4, 5]))
    with pytest.raises(ValueError, match=r"`grid` must be \(h, w\) in cells, .* or a function"):
        GradCAMCallback("net.4", grid=form([2, 0]))


@pytest.mark.parametrize("form", NUMBERS)
def test_classes(form):
    callback = GradCAMCallback(target=form([2, 0]))
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    assert callback.target(scores, Batch(torch.zeros(1, 3, 2, 2))).tolist() == [[3, 1]]
    assert callback.settings.question == "target [2, 0] · gradcam"  # by which another run knows it


@pytest.mark.parametrize("index", [np.int64(1), torch.tensor(1), np.array(1)])
def test_a_class_index(index):
    callback = GradCAMCallback(target=index)
    assert callback.target(torch.tensor([[1.0, 2.0]]), Batch(torch.zeros(1, 3, 2, 2))).tolist() == [2]
    assert callback.settings.question == "target 1 · gradcam"


@pytest.mark.parametrize("form", [*FORMS, np.array])
def test_names_and_scale(form):
    assert Display(class_names=form(["ant", "bee"])).class_names == ["ant", "bee"]
    display = Display(mean=form([0.5, 0.25]), std=form([1.0, 2.0]))
    assert (display.mean, display.std) == ([0.5, 0.25], [1, 2])


def test_names_without_an_order_are_refused():
    for names in ({"ant", "bee"}, {"ant": 0, "bee": 1}, (name for name in ("ant", "bee"))):
        with pytest.raises(ValueError, match="`class_names` must be a sequence of names, got"):
            Display(class_names=names)


@pytest.mark.parametrize("form", [*NUMBERS, lambda _: range(3, 7, 3)])
def test_indices(form):
    assert GradCAMCallback(samples=form([3, 6])).samples == [3, 6]


def test_a_number_of_samples():
    for number in (np.int64(3), torch.tensor(3)):
        assert GradCAMCallback(samples=number).samples == 3


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
def test_indices_that_are_none(form):
    for items in ([0, -1], [0.5, 1.0], [True, False]):
        with pytest.raises(ValueError, match="`samples` must hold indices of the dataset, 0 or above, got"):
            GradCAMCallback(samples=form(items))
    with pytest.raises(ValueError, match="`samples` must name at least one index, got none"):
        GradCAMCallback(samples=form([]))


class Items:
    """As a data set of another library: a length, items, and no class of torch's."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= 4:
            raise IndexError
        return torch.full((3, 16, 16), index / 4), index % 3


class LazyItems(Items, Sequence):
    """The same as a sequence, whose items are random."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0] + torch.rand(()) / 100, index % 3


@pytest.mark.parametrize("form", [Items, LazyItems, lambda: list(Items()), lambda: tuple(Items())])
def test_anything_with_a_length_and_items_is_a_dataset(form):
    callback = GradCAMCallback(samples=form())
    trainer(callback, max_epochs=1).fit(TinyModule(), loader(), loader())
    batch = callback._session.probe.batch
    torch.testing.assert_close(batch.images[:, 0, 0, 0], torch.arange(4) / 4, rtol=0, atol=0.01)
    assert batch.labels.tolist() == [0, 1, 2, 0]
    assert batch.ids == [0, 1, 2, 3]


def test_the_first_item_is_asked_for_without_moving_on_random_numbers():
    state = torch.get_rng_state()
    GradCAMCallback(samples=LazyItems())
    assert torch.equal(state, torch.get_rng_state())


def test_images_in_one_tensor_are_a_dataset():
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(GradCAMCallback(samples=images).samples[2], images[2])


@pytest.mark.parametrize("samples", [{"a": 1}, b"abc", tiny_net(), list, iter([1]), loader(), None])
def test_what_is_no_dataset_is_refused(samples):
    with pytest.raises(TypeError, match="`samples` must be a number, indices, a dataset, or the key of a validation"):
        GradCAMCallback(samples=samples)
