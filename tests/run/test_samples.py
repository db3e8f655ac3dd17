"""Which samples, how they are loaded, and what a run makes its fixed batch of."""

import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from tiny import Augmented, Images, TinyModule, loader, trainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from lightning_gradcam import Batch, GradCAMCallback, balanced
from lightning_gradcam.attribution.reading import default_batch
from lightning_gradcam.run.samples import Fingerprint, as_samples, choose, load
from lightning_gradcam.run.trainer import Source

IMAGES = torch.rand(2, 3, 4, 4)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("samples", "length", "indices"),
    [
        (4, 8, [0, 2, 4, 6]),
        (3, 10, [0, 3, 6]),
        (16, 3, [0, 1, 2]),
        (1, 5, [0]),
        ([4, 0], 5, [4, 0]),
        ((2,), 5, [2]),
    ],
)
def test_chooses(samples, length, indices):
    assert choose(samples, length) == indices


def test_indices_out_of_range():
    with pytest.raises(
        ValueError, match=r"`samples` names the indices \[24, 99\], the dataset has 24 samples, 0 to 23"
    ):
        choose([0, 24, 99], 24)
    with pytest.raises(ValueError, match="the dataset to take `samples` from is empty"):
        choose(4, 0)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (0, ValueError, "`samples` must be at least 1, got 0"),
        ([], ValueError, "`samples` must name at least one index, got none"),
        ([0, -1], ValueError, "`samples` must hold indices of the dataset, 0 or above, got -1"),
        ([0.5], ValueError, "`samples` must hold indices of the dataset, 0 or above, got 0.5"),
        ({"a": 1}, TypeError, "`samples` must be a number, indices, a dataset, or the key of a .* loader, got dict"),
        (True, TypeError, "`samples` must be a number, indices, a dataset, or the key of a .* loader, got bool"),
        (Images(0), ValueError, "`samples` must hold at least one sample, got an empty Images"),
    ],
)
def test_refuses_samples(samples, error, message):
    with pytest.raises(error, match=message):
        as_samples(samples)


@pytest.mark.parametrize(
    ("labels", "number", "indices"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], 4, [0, 2, 4, 6]),
        ([0, 0, 0, 0, 0, 0, 1, 2], 4, [0, 3, 6, 7]),  # one more of the first class in turn
        ([5, 5, 9], 10, [0, 1, 2]),
        ([1, 0, 1, 0], 1, [1]),
    ],
)
def test_balanced(labels, number, indices):
    tensors = TensorDataset(torch.zeros(len(labels)), torch.tensor(labels))
    assert balanced(tensors, number) == indices
    assert balanced(Subset(tensors, range(len(labels))), number) == indices
    assert balanced(list(zip(labels, labels, strict=True)), number) == indices


def test_balanced_reads_labels_without_images_where_it_can():
    dataset = Images()
    dataset.images = None
    assert balanced(dataset, 6) == [0, 1, 2, 12, 13, 14]
    with pytest.raises(ValueError, match="`number` must be at least 1, got 0"):
        balanced(dataset, 0)


# Loading


def collate_reversed(items):
    images, labels = default_collate(items)
    return {"image": images.flip(-1), "label": labels}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"batch_size": 3}, {"drop_last": True, "batch_size": 5}])
def test_loads_the_same_samples_whatever_the_loader(workers, options):
    (images, labels), indices, length = load(loader(num_workers=workers, **options), [1, 7, 4])
    assert torch.equal(images, Images().images[[1, 7, 4]])
    assert labels.tolist() == [1, 1, 1]
    assert indices == [1, 7, 4]
    assert length == 24


def test_loads_through_the_collate_function():
    batch, _, _ = load(loader(collate_fn=collate_reversed), 2)
    assert torch.equal(batch["image"], Images().images[[0, 12]].flip(-1))


def test_augmentations_are_the_same_every_time_and_leave_the_random_states():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = load(loader(Augmented()), 4)[0][0]
    assert torch.equal(first, load(loader(Augmented()), 4)[0][0])
    assert not torch.equal(first, Images().images[[0, 6, 12, 18]])
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_a_random_subset_is_chosen_from():
    sampler = SubsetRandomSampler(range(12, 24))
    assert load(loader(sampler=sampler), 4)[1] == [12, 15, 18, 21]
    assert load(loader(sampler=sampler), [1, 2])[1] == [1, 2]


class Halves(torch.utils.data.Sampler):
    """A sampler of the user's own around another one."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return iter(self.sampler)

    def __len__(self):
        return len(self.sampler)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
@pytest.mark.parametrize("inside", ["alone", "a batch sampler", "another sampler", "Lightning's for processes"])
def test_a_part_is_honoured_in_every_form_and_place(form, inside):
    sampler = SubsetRandomSampler(form(list(range(12, 24))))
    if inside == "a batch sampler":
        data = DataLoader(Images(), batch_sampler=BatchSampler(sampler, 4, False))
    elif inside == "another sampler":
        data = loader(sampler=Halves(sampler))
    elif inside == "alone":
        data = loader(sampler=sampler)
    else:
        data = loader(sampler=DistributedSamplerWrapper(sampler, num_replicas=2, rank=1))
    assert load(data, 4)[1] == [12, 15, 18, 21]


def test_a_part_of_a_part_is_counted_within_it():
    """The indices of a `Subset` are those of the dataset that it is a part of, and not its own."""
    half = Subset(Images(), range(12, 24))
    assert load(loader(half), 3)[1] == [0, 4, 8]
    assert load(loader(half, sampler=SubsetRandomSampler([6, 7, 8])), 3)[1] == [6, 7, 8]
    assert load(loader(half, sampler=DistributedSampler(half, num_replicas=2, rank=0)), 3)[1] == [0, 4, 8]


class Counting:
    def __init__(self):
        self.calls, self.seen = 0, []

    def __call__(self, items):
        self.calls += 1
        self.seen.append(len(items))
        return default_collate(items)


def counting():
    calls, seen = 0, []

    def collate(items):
        nonlocal calls
        calls += 1
        seen.append(len(items))
        return default_collate(items)

    return collate, lambda: (calls, seen)


@pytest.mark.parametrize("form", ["object", "method", "partial", "closure"])
def test_a_collate_function_is_given_back(form):
    counter = Counting()
    collate, state = counter, lambda: (counter.calls, counter.seen)
    if form == "method":
        collate = counter.__call__
    elif form == "partial":
        collate = partial(counter)
    elif form == "closure":
        collate, state = counting()
    batch, _, _ = load(loader(collate_fn=collate), 4)
    assert len(batch[0]) == 4
    assert state() == (0, [])
    assert len(next(iter(loader(collate_fn=collate)))[0]) == 8
    assert state() == (1, [8])


def test_generators_that_a_dataset_holds_are_restored():
    class Transform:
        def __init__(self):
            self.numpy = np.random.default_rng(0)
            self.old = np.random.RandomState(0)

        def __call__(self, image):
            return image + self.numpy.random() + self.old.rand()

    class Own(Images):
        def __init__(self):
            super().__init__()
            self.generators = {"torch": torch.Generator().manual_seed(0), "python": [random.Random(0)]}
            self.transform = Transform()
            self.itself = self
            self.paths = [str(i) for i in range(20_000)]
            held, called = np.random.default_rng(1), np.random.RandomState(1)
            self.closure = lambda: held.random()
            self.partial = partial(called.uniform, 0, 1)
            self.method = random.Random(1).random

        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            noise = torch.rand((), generator=self.generators["torch"]) + self.generators["python"][0].random()
            noise = noise + self.closure() + self.partial() + self.method()
            return self.transform(image + noise).float(), label

    dataset = Own()
    load(loader(dataset), 4)
    assert torch.equal(dataset[0][0], Own()[0][0])
    assert not torch.equal(dataset[0][0], Own()[0][0])  # the counter-check: reading does move them on


class Stream(IterableDataset):
    def __init__(self, batch=None):
        self.batch = batch

    def __iter__(self):
        for i in range(40):
            image = torch.full((3, 8, 8), float(i))
            yield (
                (image, i) if self.batch is None else (image.expand(self.batch, 3, 8, 8), torch.full((self.batch,), i))
            )


@pytest.mark.parametrize("workers", [0, 2])
def test_iterable_datasets_give_their_first_items(workers):
    (_, labels), indices, length = load(DataLoader(Stream(), 4, num_workers=workers), 6)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert indices is length is None


def test_loader_without_batching_gives_its_first_batch():
    (images, _), _, _ = load(DataLoader(Stream(batch=5), batch_size=None), 3)
    assert images.shape == (5, 3, 8, 8)
    with pytest.raises(ValueError, match=r"`samples` as indices needs a dataset that is read by index.*got Stream"):
        load(DataLoader(Stream()), [0, 1])


def test_own_dataset_and_foreign_loaders():
    own = Subset(Images(), [5, 6])
    (images, _), indices, length = load([default_collate([Images()[0]])], own)
    assert torch.equal(images, Images().images[[5, 6]])
    assert (indices, length) == ([0, 1], 2)
    with pytest.raises(ValueError, match="a list, has no `dataset` to take samples from; pass a dataset of your own"):
        load([], 4)


def test_fingerprint_tells_samples_from_pixels():
    batch = Batch(IMAGES, LABELS, ids=[0, 1])
    same = Fingerprint.of(batch, 10)
    assert same == Fingerprint.of(Batch(IMAGES.clone(), LABELS, ids=[0, 1]), 10)
    brighter = Fingerprint.of(Batch(IMAGES + 1, LABELS, ids=[0, 1]), 10)
    assert (brighter.identity, brighter.pixels == same.pixels) == (same.identity, False)
    for other in (
        Fingerprint.of(batch, 11),
        Fingerprint.of(Batch(IMAGES, LABELS, ids=[0, 2]), 10),
        Fingerprint.of(Batch(IMAGES, LABELS + 1, ids=[0, 1]), 10),
    ):
        assert other.identity != same.identity
        assert other.pixels == same.pixels


# In a run


class Hooked(TinyModule):
    """Scales images before, at and after the transfer: 2 * 3 * 5 = 30."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch[0] * 2, batch[1]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return super().transfer_batch_to_device((batch[0] * 3, batch[1]), device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] * 5 + torch.rand(()), batch[1]


def watched(module, train, val=None, **options):
    """Fit and return the callback's batch."""
    callback = GradCAMCallback(**options)
    trainer(callback, max_epochs=1).fit(module, train, val)
    return callback._session.probe.batch


def test_passes_the_transfer_hooks():
    images = watched(Hooked(), loader(), loader(), samples=[3]).images
    offset = images - 30 * Images().images[[3]]
    torch.testing.assert_close(offset, offset.mean().expand_as(offset), rtol=0, atol=1e-4)
    assert 0 <= offset.mean() <= 1
    assert torch.equal(images, watched(Hooked(), loader(), loader(), samples=[3]).images)


def test_training_data_serve_without_validation():
    batch = watched(TinyModule(), loader(Images(8)), samples=2)
    assert torch.equal(batch.images, Images(8).images[[0, 4]])
    assert batch.ids == [0, 4]


def test_validation_data_serve_before_lightning_has_loaded_them():
    callback = GradCAMCallback(samples=2)
    fit = trainer(callback, num_sanity_val_steps=0, check_val_every_n_epoch=2)
    fit.fit(TinyModule(), loader(Images(8)), loader(Images(10)))
    assert torch.equal(callback._session.probe.batch.images, Images(10).images[[0, 5]])


def test_first_of_several_validation_loaders(caplog):
    module = TinyModule()
    module.validation_step = lambda batch, batch_idx, dataloader_idx: None
    caplog.set_level("INFO")
    batch = watched(module, loader(), [loader(Images(9)), loader(Images(10))], samples=3)
    assert torch.equal(batch.images, Images(9).images[[0, 3, 6]])
    assert "takes its samples from the first of 2 data loaders" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_iterable_validation_data(workers):
    module = TinyModule()
    module.validation_step = lambda batch, batch_idx: None
    batch = watched(module, loader(), DataLoader(Stream(), 4, num_workers=workers), samples=5, target="predicted")
    assert batch.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero:UserWarning")
@pytest.mark.parametrize("val", [[], [loader(Images(0))]])
def test_training_data_serve_where_validation_has_none(val):
    assert torch.equal(watched(TinyModule(), loader(Images(8)), val, samples=2).images, Images(8).images[[0, 4]])


class AugmentsInTraining(TinyModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] * 0 if self.training or self.trainer.training else batch[0]), batch[1]


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_the_fixed_batch_is_no_training_batch(sanity_steps):
    callback = GradCAMCallback(samples=2)
    module = AugmentsInTraining()
    trainer(callback, num_sanity_val_steps=sanity_steps).fit(module, loader(), loader())
    assert torch.equal(callback._session.probe.batch.images, Images().images[[0, 12]])


def test_nan_images():
    broken = Images()
    broken.images[6, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the images of the samples \[6\] hold NaN or infinite values; mend the data"):
        watched(TinyModule(), loader(), loader(broken), samples=4)


def test_batch_fn_that_returns_no_batch():
    with pytest.raises(TypeError, match="`batch_fn` must return a `Batch`, got tuple"):
        watched(TinyModule(), loader(), loader(), batch_fn=lambda batch: tuple(batch))


def test_failure_of_the_first_process_reaches_the_others():
    from lightning_gradcam.run.samples import fixed_batch

    message = ("OSError: disk gone", None)
    other = SimpleNamespace(is_global_zero=False, strategy=SimpleNamespace(broadcast=lambda value: message))
    with pytest.raises(RuntimeError, match="the first process could not load the fixed batch: OSError: disk gone"):
        fixed_batch(other, TinyModule(), Source(loader()), 4, default_batch)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([8.0, 8, 4, 4], "a right or bottom edge before the left or top one, as boxes of x, y, width, height have"),
        ([0.25, 0.25, 0.75, 1.0], "values from 0 to 1 alone, as boxes in fractions of the image have"),
        ([20.0, 4, 30, 12], "boxes outside the images of 16 x 16 pixels, as those of another resolution"),
        ([-9.0, 4, 0, 12], "boxes outside the images of 16 x 16 pixels"),
    ],
)
def test_boxes_in_another_form_are_refused_before_training(box, message):
    callback = GradCAMCallback(batch_fn=lambda batch: Batch(*batch, {"cat": torch.tensor([box] * len(batch[0]))}))
    with pytest.raises(ValueError, match=rf"region 'cat' has {message}.*x0, y0, x1, y1 in pixels"):
        trainer(callback).fit(TinyModule(), loader(), loader())


@pytest.mark.parametrize(
    "box", [[0, 0, 0, 0], [-1.0, -1, -1, -1], [-2.0, -2, 20, 20], [0, 0, 1, 1], [15.0, 15, 16, 16]]
)
def test_boxes_without_an_area_at_the_edge_or_of_a_pixel_are_taken(box):
    callback = GradCAMCallback(batch_fn=lambda batch: Batch(*batch, {"cat": torch.tensor([box] * len(batch[0]))}))
    trainer(callback, max_epochs=1).fit(TinyModule(), loader(), loader())
    assert callback._session.history.count == 2
